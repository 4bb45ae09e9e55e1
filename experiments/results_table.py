"""Collect the evaluations of runs: ``python experiments/results_table.py runs/digit_scenes_*``.

Takes what train.py or rcnn_svm.py wrote to ``results.json`` in each folder, puts it into experiments/results.json,
and prints all that is there as the README's table; a test compares the two.
"""

import json
import math
from pathlib import Path

import tyro

RESULTS = Path(__file__).resolve().parent / "results.json"
FIGURES = {
    "bbox/AP": "box AP",
    "bbox/AP50": "box AP50",
    "segm/AP": "mask AP",
    "segm/AP50": "mask AP50",
    "bbox/R10_50": "recall of 10 at 0.5",
}


def row_of(folder: Path) -> tuple[str, dict[str, str | int | float]]:
    """The run's name and what the table needs of its config and results."""
    config, figures = (json.loads((folder / name).read_text()) for name in ("config.json", "results.json"))
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


def main(runs: tyro.conf.Positional[tuple[Path, ...]] = ()) -> None:
    """runs: folders of runs, whose rows replace those of the same model."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results |= dict(row_of(folder) for folder in runs)
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    print("\n".join(table(results)))


if __name__ == "__main__":
    tyro.cli(main)
