"""The tables together, as many as were promised."""

import importlib
from pathlib import Path

FILES = sorted(Path(__file__).parent.glob("test_*.py"))


def test_there_are_300_malformed_inputs():
    tables = {path.stem: importlib.import_module(path.stem) for path in FILES if path.stem != "test_count"}
    counts = {name: len(module.CASES) for name, module in tables.items()}
    print(counts)
    assert {"test_coco_files", "test_images_and_voc", "test_weights", "test_checkpoints", "test_command_lines"} <= set(
        counts
    )
    assert sum(counts.values()) >= 300
