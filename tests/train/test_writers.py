import errno
import io
import json
import os

import numpy as np
import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

from jaxvision.train.writers import JsonlWriter, TensorBoardWriter, Writer


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


def test_an_evaluation_that_is_done_again_is_written_once(tmp_path):
    """The process ended after it was written, and before the checkpoint of its step knew of it."""
    writer = JsonlWriter(tmp_path)
    writer.start(0)
    writer.scalars(10, {"loss": 1.0})
    writer.scalars(10, {"ap": 0.5})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe{"step": 9}\n')  # damaged
        file.write(b'{"step": 10, "a": 2}')  # the disk was full before the end of the line
    writer = JsonlWriter(tmp_path)
    writer.start(10)
    writer.scalars(10, {"ap": 0.5})
    writer.scalars(10, {"other": 1})
    writer.scalars(20, {"loss": 2.0})
    writer.close()
    assert read(tmp_path) == [
        {"step": 10, "loss": 1.0},
        {"step": 10, "ap": 0.5},
        {"step": 10, "a": 2},
        {"step": 10, "other": 1.0},
        {"step": 20, "loss": 2.0},
    ]


def events(path):
    """The events of a TFRecord file, whose lengths and checksums must be right."""
    data, found = path.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        parts = data[:8], data[12 : 12 + length]
        for part, at in zip(parts, (8, 12 + length)):
            crc = crc32c(part)
            masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32
            assert masked == int.from_bytes(data[at : at + 4], "little")
        found.append(Event.FromString(parts[1]))
        data = data[16 + length :]
    return found


def test_tensorboard(tmp_path):
    for step in (0, 1):
        writer = TensorBoardWriter(tmp_path)
        writer.start(step)
        writer.scalars(step + 1, {"loss": np.float32(0.5), "ap": float("nan"), "bbox/AP": 1})
        writer.close()
    paths = sorted(tmp_path.glob("events.out.tfevents.*"))
    assert len(paths) == 2
    for path in paths:
        head, start, record = events(path)
        step = int(path.name.rsplit(".", 1)[1])
        assert head.file_version == "brain.Event:2"
        assert start.step == step + 1 and start.session_log.status == 1  # TensorBoard drops what was beyond
        assert record.step == step + 1 and record.wall_time > 1.7e9
        assert [(value.tag, value.simple_value) for value in record.summary.value] == [("loss", 0.5), ("bbox/AP", 1.0)]


class Full(io.RawIOBase):
    """A file on a disk that takes ten bytes more."""

    left = 10

    def write(self, data):
        if not self.left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = min(self.left, len(data))
        self.left -= taken
        return taken


@pytest.mark.parametrize("kind", [JsonlWriter, TensorBoardWriter])
def test_a_full_disk_is_said_at_once(tmp_path, kind):
    writer = kind(tmp_path)
    assert isinstance(writer, Writer)
    writer.start(0)
    writer._file.close()
    writer._file = Full()
    with pytest.raises(OSError, match=f"cannot write {tmp_path}.*No space left.* bytes wanted, .* free") as error:
        writer.scalars(1, {"loss": 0.25})
    assert error.value.errno == errno.ENOSPC
    writer.close()
    assert writer._file.closed


@pytest.mark.parametrize("kind", [JsonlWriter, TensorBoardWriter])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, kind):
    (tmp_path / "file").write_text("")
    writer = kind(tmp_path / "file")
    with pytest.raises(OSError, match=f"cannot write {tmp_path}/file"):
        writer.start(0)
    writer.close()
