"""Where metrics go: lines of JSON, TensorBoard.

A resumed run repeats the steps after its checkpoint, so ``start(step)`` first drops what was written beyond it. Both
write each time at once, so that a full disk is an error where it happens.
"""

import io
import json
import os
import pathlib
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from jaxvision.train.integrity import free_space, out_of_space

__all__ = ["JsonlWriter", "TensorBoardWriter", "Writer"]


@runtime_checkable
class Writer(Protocol):
    """Three methods; anything that has them can be given to ``fit``."""

    def start(self, step: int) -> None:
        """Called once before the first write: the run goes on after ``step``; 0 for a new one."""

    def scalars(self, step: int, values: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonlWriter:
    """``metrics.jsonl``: one object a line, ``{"step": 100, "loss": 0.5, …}``. What is not finite becomes null.

    Raises: OSError naming the file, and on a full disk the space that is wanted and free.
    """

    def __init__(self, directory: str | os.PathLike):
        self._path = pathlib.Path(directory) / "metrics.jsonl"
        self._file = None
        self._repeated: set[tuple[int, frozenset[str]]] = set()  # step and names that the run may write again

    def start(self, step: int) -> None:
        with _named(self._path, 0):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            text = self._path.read_text(errors="replace") if self._path.exists() else ""
            kept = [line for line in text.splitlines() if _step_of(line) <= step]
            if text != "".join(f"{line}\n" for line in kept):
                replacement = self._path.with_suffix(".tmp")
                replacement.write_text("".join(f"{line}\n" for line in kept))
                replacement.replace(self._path)
            self._file = self._path.open("ab", buffering=0)
        # An evaluation of this step, if the process ended before its checkpoint knew of it.
        self._repeated = {(step, frozenset(json.loads(line))) for line in kept if _step_of(line) == step}

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        # NaN and infinity are not JSON.
        finite = {name: float(value) if abs(value) < float("inf") else None for name, value in values.items()}
        record = {"step": step, **finite}
        if (step, frozenset(record)) in self._repeated:
            return
        _append(self._file, (json.dumps(record) + "\n").encode(), self._path)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class TensorBoardWriter:
    """Event files for TensorBoard, of tensorboardX's records; not by its ``SummaryWriter``, whose thread dies of a full
    disk and leaves the training waiting for it.

    Raises: OSError naming the file, and on a full disk the space that is wanted and free.
    """

    def __init__(self, directory: str | os.PathLike):
        self._directory = pathlib.Path(directory)
        self._path, self._file = self._directory, None

    def start(self, step: int) -> None:
        from tensorboardX.proto.event_pb2 import SessionLog

        now = time.time()
        # The step: two files begun in the same second would otherwise share a name.
        self._path = self._directory / f"events.out.tfevents.{now:.0f}.{socket.gethostname()}.{step}"
        with _named(self._path, 0):
            self._directory.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
        self._write(file_version="brain.Event:2")
        self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))  # what is beyond is dropped

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        from tensorboardX.summary import Summary, scalar

        # TensorBoard has no place for NaN, a class without objects.
        entries = [scalar(name, value).value[0] for name, value in values.items() if abs(value) < float("inf")]
        self._write(step=step, summary=Summary(value=entries))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, **content: Any) -> None:
        """One record of a TFRecord file: the length, the event, and a checksum of each."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        event = Event(wall_time=time.time(), **content).SerializeToString()
        length = struct.pack("<Q", len(event))
        sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, event)]
        record = length + sums[0] + event + sums[1]
        _append(self._file, record, self._path)


def _append(file: io.RawIOBase, data: bytes, path: pathlib.Path) -> None:
    """All of it: a disk that fills up takes a part, and says so at the rest."""
    with _named(path, len(data)):
        while data:
            data = data[file.write(data) :]


@contextmanager
def _named(path: pathlib.Path, wanted: int) -> Iterator[None]:
    """An error of the system names the path; a full disk also the bytes that are wanted."""
    try:
        yield
    except OSError as error:
        space = f"; {wanted} bytes wanted, {free_space(path)} free" if out_of_space(error) else ""
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}{space}") from error


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # cut off by a crash: drop it
