"""Priors for MultiBox: ``python experiments/multibox_priors.py CONFIG`` prints the k-means centres of the training
boxes of a config of ``experiments/configs``, as the option ``priors`` of the model takes them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script from anywhere

import jax
import numpy as np
import tyro

from experiments import detection
from experiments.config import available
from jaxvision.models.multibox import Priors
from jaxvision.ops import anchors


def priors(boxes: np.ndarray, number: int, *, seed: int = 0) -> Priors:
    """``number`` priors of boxes in shares of the image's sides, to three digits, in rising order."""
    centres = anchors.kmeans(jax.random.key(seed), boxes.astype(np.float32), k=number, iterations=100)
    return tuple(sorted(tuple(round(float(side), 3) for side in centre) for centre in centres))


def shares(source, limit: int | None) -> np.ndarray:
    """The boxes of the first images in shares of the sides of a square that the image fits in."""
    found = [np.zeros((0, 4))]
    for index in range(len(source) if limit is None else min(limit, len(source))):
        example = source[index]
        found.append(example["boxes"] / max(example["image"].shape[:2]))
    return np.concatenate(found)


def main(config: tyro.conf.Positional[str], number: int = 64, seed: int = 0, limit: int | None = None) -> None:
    """config: its name. number: of priors. limit: look at the first so many images only."""
    train, _ = detection.annotated(available()[config][1])
    for prior in priors(shares(train, limit), number, seed=seed):
        print(f"{prior},")


if __name__ == "__main__":
    tyro.cli(main)
