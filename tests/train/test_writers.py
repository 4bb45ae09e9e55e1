import json

import numpy as np

from jaxvision.train.writers import JsonlWriter, TensorBoardWriter


def read(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_jsonl_resumes_without_duplicates(tmp_path):
    writer = JsonlWriter(tmp_path / "run")
    writer.start(0)
    for step in (10, 20, 30):
        writer.scalars(step, {"loss": np.float32(step), "ap": float("nan")})
    writer.close()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # cut off by a crash
    writer = JsonlWriter(tmp_path / "run")
    writer.start(20)
    writer.scalars(30, {"loss": -1})
    assert read(tmp_path / "run") == [
        {"step": 10, "loss": 10.0, "ap": None},
        {"step": 20, "loss": 20.0, "ap": None},
        {"step": 30, "loss": -1.0},
    ]
    writer.close()
    writer = JsonlWriter(tmp_path / "run")
    writer.start(0)  # a new run in an old folder
    writer.close()
    assert read(tmp_path / "run") == []


def test_tensorboard(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    writer.start(0)
    writer.scalars(1, {"loss": 0.5})
    writer.close()
    writer = TensorBoardWriter(tmp_path)
    writer.start(1)
    writer.close()
    events = sorted(tmp_path.glob("events.*"))
    assert events and b"loss" in b"".join(path.read_bytes() for path in events)
