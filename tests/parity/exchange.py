"""Run where torch is: ``exchange.py name model.pth`` saves a classifier with ``torch.save``; with a third argument, an
``.npz`` of arrays, these must be what the file holds, and ``load_state_dict`` must take them."""

import sys

import fill
import numpy as np
import torch
from make_goldens import build, filled


def main(name: str, path: str, arrays: str | None = None) -> None:
    model = build(name)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if arrays is None:
        filled(model, {key: fill.fill(key, shape) for key, shape in shapes.items()})
        torch.save(model.state_dict(), path)
        return
    filled(model, dict(np.load(arrays)))  # strict, but for the counts of batches
    for key, value in torch.load(path).items():
        assert key.endswith("num_batches_tracked") or torch.equal(model.state_dict()[key], value), key


if __name__ == "__main__":
    main(*sys.argv[1:])
