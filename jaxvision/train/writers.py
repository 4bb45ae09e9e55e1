"""Where metrics go: lines of JSON, TensorBoard.

A resumed run repeats the steps after its checkpoint, so ``start(step)`` first drops what was written beyond it.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

__all__ = ["JsonlWriter", "TensorBoardWriter", "Writer"]


@runtime_checkable
class Writer(Protocol):
    """Three methods; anything that has them can be given to ``fit``."""

    def start(self, step: int) -> None:
        """Called once before the first write: the run goes on after ``step``; 0 for a new one."""

    def scalars(self, step: int, values: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonlWriter:
    """``metrics.jsonl``: one object a line, ``{"step": 100, "loss": 0.5, …}``. What is not finite becomes null."""

    def __init__(self, directory: str | os.PathLike):
        self._directory = pathlib.Path(directory)
        self._file = None

    def start(self, step: int) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        kept = "".join(f"{line}\n" for line in lines if _step_of(line) <= step)
        replacement = path.with_suffix(".tmp")
        replacement.write_text(kept)
        replacement.replace(path)
        self._file = path.open("a")

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        # NaN and infinity are not JSON.
        finite = {name: float(value) if abs(value) < float("inf") else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoardWriter:
    """Event files for TensorBoard, through tensorboardX."""

    def __init__(self, directory: str | os.PathLike):
        self._directory = directory
        self._writer = None

    def start(self, step: int) -> None:
        from tensorboardX import SummaryWriter

        # The suffix: two files begun in the same second would otherwise share a name.
        self._writer = SummaryWriter(os.fspath(self._directory), purge_step=step + 1, filename_suffix=f".{step}")

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if abs(value) < float("inf"):  # tensorboardX complains about NaN, a class without objects
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # cut off by a crash: drop it
