"""Writes the small files of ``files/`` with real torch (2.14.1): ``python tests/weights/make_files.py``."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / "files"


def state() -> OrderedDict:
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    return OrderedDict(
        {
            "plain": base,
            "transposed": base.permute(2, 0, 1),  # shares the storage, other strides
            "slice": base[1, 1:, ::2],  # offset and steps
            "expanded": torch.tensor([1.5]).expand(3, 2),  # stride 0
            "scalar": torch.tensor(2.5),
            "empty": torch.zeros(0, 3),
            "half": torch.tensor([0.5, -2.0], dtype=torch.float16),
            "bfloat16": torch.tensor([1.0, -3.0], dtype=torch.bfloat16),
            "double": torch.tensor([1 / 3], dtype=torch.float64),
            "long": torch.tensor([2**40, -1]),
            "bool": torch.tensor([True, False]),
            "parameter": torch.nn.Parameter(torch.tensor([7.0])),
        }
    )


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    torch.save(state(), FOLDER / "zip.pth")
    torch.save(state(), FOLDER / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3))
    nested = {
        "model": module.state_dict(),
        "epoch": 3,
        "device": torch.device("cpu"),
        "size": torch.Size([1, 2]),
    }
    torch.save(nested, FOLDER / "nested.pth")
    torch.save({"state_dict": {"a": torch.ones(2)}, "loss": np.float64(0.5)}, FOLDER / "lightning.pt")
    torch.save(module, FOLDER / "module.pth")  # a pickled module, which must be refused


if __name__ == "__main__":
    main()
