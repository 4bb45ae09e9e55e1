"""Evaluate a trained run on its validation set: ``python experiments/evaluate.py runs/digit_scenes_maskrcnn``."""

import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script from anywhere

import tyro

import jaxvision as jv
from experiments.config import from_json, use_compilation_cache
from experiments.tasks import task_of
from jaxvision import train


@dataclasses.dataclass(frozen=True)
class Options:
    """Evaluate a trained run on its validation set and print the figures."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder, as train.py wrote it."""
    which: Literal["best", "last"] = "last"
    """Which checkpoint."""
    images: int | None = None
    """Only the first so many images."""
    output: Path | None = None
    """Write the figures to this JSON file too."""


def load_run(folder: Path, which: str = "last"):
    """(config, model, variables, class names) of a run."""
    variables, saved = train.load_variables(folder / "checkpoints", which=which)
    categories = tuple(saved.pop("categories"))
    config = from_json(saved)
    model = jv.get_model(config.model, num_classes=len(categories), **config.model_options)
    return config, model, variables, categories


def main() -> None:
    logging.basicConfig(format="%(message)s")
    use_compilation_cache()
    options = tyro.cli(Options)
    config, model, variables, _ = load_run(options.run, options.which)
    task = task_of(config.model)
    figures = task.evaluator(config, model, task.sources(config)[1])(variables, options.images)
    for name, value in figures.items():
        print(f"{name:28s} {value:.4f}")
    if options.output is not None:
        options.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
