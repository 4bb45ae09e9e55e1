"""The README's tables of trained networks say what the evaluations wrote."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from experiments import results_table
from experiments.config import available
from experiments.results_table import FIGURES, RESULTS, row_of, tables
from jaxvision.registry import model_task

ROOT = Path(__file__).parent.parent


def test_readme_has_the_tables():
    for lines in tables(json.loads(RESULTS.read_text())):
        assert "\n".join(lines) in (ROOT / "README.md").read_text(), "run experiments/results_table.py"
    models = {config.model for name, (_, config) in available().items() if name.startswith("digit_scenes")}
    assert {model_task(model) for model in models} == set(FIGURES)
    trained = {model.partition(",")[0] for model in json.loads(RESULTS.read_text())}
    assert trained <= models and {model for model in models - trained if model_task(model) == "detection"} == set()


def test_rows_come_from_what_a_run_wrote(tmp_path):
    config = {"model": "rcnn_small", "model_options": {"scores": "one_vs_rest"}, "steps": 1234, "batch_size": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "results.json").write_text(json.dumps({"bbox/AP": 0.51234, "bbox/AP50": None, "val_loss": 1.0}))
    model, row = row_of(tmp_path)
    assert (model, row) == ("rcnn_small, SVMs", {"steps": 1234, "batch_size": 4, "bbox/AP": 0.5123})
    ((*_, line),) = tables({model: row})
    assert line == "| `rcnn_small, SVMs` | 1,234 of 4 | 0.512 |  |  |  |  |"


def segmenters(tmp_path, **figures):
    for name in ("fcn_small", "unet_small"):
        (tmp_path / name).mkdir()
        config = {"model": name, "model_options": {}, "steps": 3000, "batch_size": 8}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        (tmp_path / name / "results.json").write_text(json.dumps(figures | {"val_loss": 0.5}))
    return dict(row_of(tmp_path / name) for name in ("fcn_small", "unet_small"))


def test_segmenters_have_a_table_and_a_picture(tmp_path):
    rows = segmenters(tmp_path, **{"mIoU": 0.75, "IoU/background": 0.9, "IoU/cat": 0.6})
    ((head, _, line, _),) = tables(rows)
    assert line == "| `fcn_small` | 3,000 of 8 | 0.750 | 0.900 |  |  |  |" and "IoU/cat" not in head
    results_table.draw(rows, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.width > picture.height > 100
    del rows["unet_small"]["IoU/cat"]
    with pytest.raises(ValueError, match="same classes"):
        results_table.draw(rows, tmp_path / "figure.png")
    with pytest.raises(ValueError, match="not none"):
        results_table.draw({}, tmp_path / "figure.png")


def test_only_write_writes(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.json").write_text(
        json.dumps({"model": "ssd_small", "model_options": {}, "steps": 3, "batch_size": 2})
    )
    (tmp_path / "results.json").write_text(json.dumps({"bbox/AP": 0.25}))
    kept = tmp_path / "kept.json"
    monkeypatch.setattr(results_table, "RESULTS", kept)
    for arguments, exists in (([], False), (["--write"], True)):
        monkeypatch.setattr(sys, "argv", ["results_table.py", str(tmp_path), *arguments])
        results_table.main()
        assert "| `ssd_small` | 3 of 2 | 0.250 |" in capsys.readouterr().out
        assert kept.exists() is exists
    assert json.loads(kept.read_text()) == {"ssd_small": {"steps": 3, "batch_size": 2, "bbox/AP": 0.25}}
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(SystemExit, match=r"results\.json is no JSON"):
        results_table.main()
