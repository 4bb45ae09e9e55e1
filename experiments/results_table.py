"""The evaluations of runs as a table: ``python experiments/results_table.py runs/digit_scenes_*``.

Prints what train.py or rcnn_svm.py wrote to ``results.json`` in each folder. ``--write`` puts it into
experiments/results.json, and prints all that is there as the README's table; a test compares the two.
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

RESULTS = Path(__file__).resolve().parent / "results.json"
FIGURES = {
    "bbox/AP": "box AP",
    "bbox/AP50": "box AP50",
    "segm/AP": "mask AP",
    "segm/AP50": "mask AP50",
    "bbox/R10_50": "recall of 10 at 0.5",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Print the evaluations of runs as a table."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Folders of runs; what was written before if there are none."""
    write: bool = False
    """Let the rows replace those of the same models in experiments/results.json."""


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
    known = {name: round(figures[name], 4) for name in FIGURES if figures.get(name) is not None}
    return model, {"steps": config["steps"], "batch_size": config["batch_size"], **known}


def table(results: dict[str, dict[str, str | int | float]]) -> list[str]:
    """The rows in Markdown, by box AP."""
    lines = [f"| model | steps | {' | '.join(FIGURES.values())} |", f"|---|---:|{'---:|' * len(FIGURES)}"]
    for model, row in sorted(results.items(), key=lambda item: -item[1].get("bbox/AP", -math.inf)):
        cells = ("" if name not in row else f"{row[name]:.3f}" for name in FIGURES)
        lines.append(f"| `{model}` | {row['steps']:,} of {row['batch_size']} | {' | '.join(cells)} |")
    return lines


@script
def main() -> None:
    options = parse(Options, description=__doc__)
    results = dict(row_of(folder) for folder in options.runs)
    if options.write or not options.runs:
        results = (json.loads(RESULTS.read_text()) if RESULTS.exists() else {}) | results
    if options.write:
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
