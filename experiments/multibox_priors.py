"""Priors for MultiBox: ``python experiments/multibox_priors.py CONFIG`` prints the k-means centres of the training
boxes of a config of ``experiments/configs``, as the option ``priors`` of the model takes them."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script from anywhere

import jax
import numpy as np
import tyro

from experiments import detection
from experiments.command import Checked, Count, Seed, parse, script
from experiments.config import available
from jaxvision.models.multibox import Priors
from jaxvision.ops import anchors


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """Print priors for MultiBox: the k-means centres of a config's training boxes."""

    config: Annotated[str, tyro.conf.Positional]
    """The name of a config of experiments/configs."""
    number: Count = 64
    """Priors wanted."""
    seed: Seed = 0
    limit: Count | None = None
    """Look at the first so many images only."""


def priors(boxes: np.ndarray, number: int, *, seed: int = 0) -> Priors:
    """``number`` priors of boxes in shares of the image's sides, to three digits, in rising order."""
    centres = anchors.kmeans(jax.random.key(seed), boxes.astype(np.float32), k=number, iterations=100)
    return tuple(sorted(tuple(round(float(side), 3) for side in centre) for centre in centres))


def shares(source, limit: int | None) -> np.ndarray:
    """The boxes of the first images in shares of the sides of a square that the image fits in."""
    found = [np.zeros((0, 4))]
    for index in range(len(source) if limit is None else min(limit, len(source))):
        example = source[index]
        if example is None:
            continue
        found.append(example["boxes"] / max(example["image"].shape[:2]))
    return np.concatenate(found)


@script
def main() -> None:
    options, configs = parse(Options, description=__doc__), available()
    if options.config not in configs:
        raise ValueError(f"no config named {options.config}; there are {', '.join(configs)}")
    train, _ = detection.annotated(configs[options.config][1])
    boxes = shares(train, options.limit)
    if len(boxes) < options.number:
        raise ValueError(f"--number is {options.number}, but there are only {len(boxes)} boxes to find the centres of")
    for prior in priors(boxes, options.number, seed=options.seed):
        print(f"{prior},")


if __name__ == "__main__":
    main()
