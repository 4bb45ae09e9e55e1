"""The README's table of trained detectors says what the evaluations wrote."""

import json
import sys
from pathlib import Path

import pytest

from experiments import results_table
from experiments.config import available
from experiments.results_table import RESULTS, row_of, table
from jaxvision.registry import model_task

ROOT = Path(__file__).parent.parent


def test_readme_has_the_table():
    lines = table(json.loads(RESULTS.read_text()))
    assert "\n".join(lines) in (ROOT / "README.md").read_text(), "run experiments/results_table.py"
    models = {config.model for name, (_, config) in available().items() if name.startswith("digit_scenes")}
    models = {model for model in models if model_task(model) == "detection"}
    assert models == {model.partition(",")[0] for model in json.loads(RESULTS.read_text())}


def test_rows_come_from_what_a_run_wrote(tmp_path):
    config = {"model": "rcnn_small", "model_options": {"scores": "one_vs_rest"}, "steps": 1234, "batch_size": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "results.json").write_text(json.dumps({"bbox/AP": 0.51234, "bbox/AP50": None, "val_loss": 1.0}))
    model, row = row_of(tmp_path)
    assert (model, row) == ("rcnn_small, SVMs", {"steps": 1234, "batch_size": 4, "bbox/AP": 0.5123})
    assert table({model: row})[-1] == "| `rcnn_small, SVMs` | 1,234 of 4 | 0.512 |  |  |  |  |"


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
