"""Evaluate a trained run on its validation set: ``python experiments/evaluate.py runs/digit_scenes_maskrcnn``.

Or on another one: its options as in train.py, such as ``--data.val-images DIR --data.val-annotations FILE.json``, with
``--data KIND`` before them for data of another kind.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script from anywhere

import tyro

import jaxvision as jv
from experiments.classes import compare
from experiments.command import Checked, Count, parse_known, script
from experiments.config import data_of, from_json, to_validate, use_compilation_cache
from experiments.tasks import task_of
from jaxvision import train


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """Evaluate a trained run on its validation set and print the figures."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder, as train.py wrote it."""
    which: Literal["best", "last"] = "last"
    """Which checkpoint."""
    images: Count | None = None
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


@script
def main() -> None:
    use_compilation_cache()
    options, about_data = parse_known(Options, description=__doc__)
    config, model, variables, categories = load_run(options.run, options.which)
    config = dataclasses.replace(config, data=to_validate(data_of(config.data, about_data)))
    task = task_of(config.model)
    try:
        source = task.sources(config)[1]
    except FileNotFoundError as error:
        error.add_note(f"If the data of {options.run} moved, say where they are; --help says how.")
        raise
    compare(categories, source.categories, f"the checkpoint of {options.run}", "the validation data")
    figures = task.evaluator(config, model, source)(variables, options.images)
    for name, value in figures.items():
        print(f"{name:28s} {value:.4f}")
    if options.output is not None:
        options.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
