"""The evaluations of runs as tables: ``python experiments/results_table.py runs/digit_scenes_*``.

Prints what train.py or rcnn_svm.py wrote to ``results.json`` in each folder: detectors in one table, segmenters in
another. ``--write`` puts it into experiments/results.json, and prints all that is there as the README's tables; a test
compares the two. ``--figure`` draws the IoU of each class by each segmenter.
"""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script from anywhere

import tyro

from experiments.command import parse, script
from jaxvision.registry import model_task

RESULTS = Path(__file__).resolve().parent / "results.json"
FIGURES = {  # by task, the one first by which a table is sorted
    "detection": {
        "bbox/AP": "box AP",
        "bbox/AP50": "box AP50",
        "segm/AP": "mask AP",
        "segm/AP50": "mask AP50",
        "bbox/R10_50": "recall of 10 at 0.5",
    },
    "segmentation": {
        "mIoU": "mIoU",
        "IoU/background": "IoU of the background",
        "pixel_accuracy": "pixel accuracy",
        "mean_accuracy": "mean accuracy of the classes",
        "border_F": "F score of the borders",
    },
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Print the evaluations of runs as tables."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders of runs; what was written before if there are none."""
    write: bool = False
    """Let the rows replace those of the same models in experiments/results.json."""
    figure: Path | None = None
    """Picture file to draw the IoU of each class by each segmenter to."""


def row_of(folder: Path) -> tuple[str, dict[str, str | int | float]]:
    """The run's name and what the table needs of its config and results.

    Raises: ValueError for a folder that is no run, or one that has not ended.
    """
    files = [folder / name for name in ("config.json", "results.json")]
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file} is missing: {folder} is no run, or one that has not ended")
    try:
        config, figures = (json.loads(file.read_text()) for file in files)
    except ValueError as error:
        raise ValueError(f"{folder}: config.json or results.json is no JSON ({error})") from error
    model = config["model"] + (", SVMs" if config["model_options"].get("scores") == "one_vs_rest" else "")
    wanted = FIGURES[task_of(model)]
    known = {
        name: round(value, 4)
        for name, value in figures.items()
        if value is not None and (name in wanted or name.startswith("IoU/"))
    }
    return model, {"steps": config["steps"], "batch_size": config["batch_size"], **known}


def task_of(model: str) -> str:
    return model_task(model.partition(",")[0])


def tables(results: dict[str, dict[str, str | int | float]]) -> list[list[str]]:
    """The rows in Markdown, a table for each task that has some."""
    found = []
    for task in FIGURES:
        if rows := {model: row for model, row in results.items() if task_of(model) == task}:
            found.append(table(rows, FIGURES[task]))
    return found


def table(rows: dict[str, dict[str, str | int | float]], figures: dict[str, str]) -> list[str]:
    """The rows in Markdown, best first."""
    lines = [f"| model | steps | {' | '.join(figures.values())} |", f"|---|---:|{'---:|' * len(figures)}"]
    for model, row in sorted(rows.items(), key=lambda item: -item[1].get(next(iter(figures)), -math.inf)):
        cells = ("" if name not in row else f"{row[name]:.3f}" for name in figures)
        lines.append(f"| `{model}` | {row['steps']:,} of {row['batch_size']} | {' | '.join(cells)} |")
    return lines


def draw(results: dict[str, dict[str, str | int | float]], path: Path) -> None:
    """The IoU of each class (columns) by each segmenter (rows, best first), as a picture.

    Raises: ValueError where there are no segmenters, or they have different classes.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    rows = sorted((row["mIoU"], model) for model, row in results.items() if task_of(model) == "segmentation")[::-1]
    models = [model for _, model in rows]
    classes = [[name for name in results[model] if name.startswith("IoU/")] for model in models]
    if not models or any(own != classes[0] for own in classes):
        raise ValueError(f"--figure: needs segmenters of the same classes, not {models or 'none'}")
    shares = [[100 * results[model][name] for name in classes[0]] for model in models]
    figure, ax = plt.subplots(figsize=(0.62 * len(classes[0]) + 2.2, 0.42 * len(models) + 0.8), dpi=120)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=110, aspect="auto")
    for y, row in enumerate(shares):
        for x, share in enumerate(row):
            ax.text(x, y, f"{share:.0f}", ha="center", va="center", color="white" if share > 65 else "black")
    ax.set_xticks(range(len(classes[0])), [name.removeprefix("IoU/") for name in classes[0]])
    ax.set_yticks(range(len(models)), [f"{model}  {100 * mean:.0f}" for mean, model in rows])
    ax.set_title("IoU of each class in per cent; beside the names their mean", fontsize=10)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


@script
def main() -> None:
    options = parse(Options, description=__doc__)
    results = dict(row_of(folder) for folder in options.runs)
    if options.write or not options.runs:
        results = (json.loads(RESULTS.read_text()) if RESULTS.exists() else {}) | results
    if options.write:
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    if options.figure is not None:
        draw(results, options.figure)
    print("\n\n".join("\n".join(lines) for lines in tables(results)))


if __name__ == "__main__":
    main()
