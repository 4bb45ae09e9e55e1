"""List everything wrong with a data set before training on it: ``python experiments/data_check.py CONFIG [overrides]``.

CONFIG is what train.py takes. Annotations are checked, and every image is read once. Exits with 1 if anything is wrong.
"""

import dataclasses
import logging
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script from anywhere

import numpy as np
from tqdm import tqdm

from experiments import detection
from experiments.classes import check_same_classes
from experiments.command import script
from experiments.config import parse
from experiments.tasks import task_of
from jaxvision.data import Example
from jaxvision.typing import IGNORE


def check(source: Any) -> tuple[list[str], Counter, int]:
    """What is wrong, the number of objects (or of images, where images or pixels have classes) of each class, and that
    of images without any. Reads every image."""
    classes, empty = Counter(), 0
    for index in tqdm(range(len(source)), desc="read", leave=False, disable=None):
        example = source[index]
        if example is None:
            continue
        labels = classes_of(example)
        classes.update(source.categories[label] for label in labels)
        empty += not labels
    return list(getattr(source, "problems", [])), classes, empty


def classes_of(example: Example) -> list[int]:
    """That of each object, or those of the image."""
    if "labels" in example:
        return example["labels"].tolist()
    if "semantic" in example:
        return [label for label in np.unique(example["semantic"]).tolist() if label != IGNORE]
    return [example["label"]]


@script
def main() -> None:
    logging.getLogger().setLevel(logging.ERROR)  # the problems are listed below
    config = parse(__doc__)
    if hasattr(config.data, "on_error"):
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, on_error="skip"))
    task = task_of(config.model)
    sources = detection.annotated if task is detection else task.sources  # without selective search
    parts, wrong = dict(zip(("training", "validation"), sources(config))), 0
    for part, source in parts.items():
        problems, classes, empty = check(source)
        wrong += len(problems)
        print(f"{part}: {len(source)} images, {empty} of them without objects, {len(problems)} problems")
        print("\n".join(f"  - {problem}" for problem in problems), end="\n" if problems else "")
        print("  " + ", ".join(f"{name} {classes[name]}" for name in source.categories))
    check_same_classes(*parts.values())
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
