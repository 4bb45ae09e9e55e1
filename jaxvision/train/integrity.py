"""What is on disk is what was written: the CRC-32 of each file of a folder, and JSON files that check themselves."""

import errno
import json
import os
import pathlib
import shutil
import zlib
from typing import Any

__all__ = ["add_checksums", "damage", "free_space", "out_of_space", "read_checked", "write_checked"]

CHECKSUMS = "checksums.json"


def add_checksums(folder: pathlib.Path) -> int:
    """Write ``checksums.json`` for the files of a folder; the sum over it, which names this content."""
    return write_checked(folder / CHECKSUMS, {name: _sum(folder / name) for name in _files(folder)})


def damage(folder: pathlib.Path) -> str | None:
    """What differs from ``checksums.json`` in a folder, or None. A file that it does not name is ignored.

    Raises: FileNotFoundError if the folder has no checksums.
    """
    try:
        wanted, _ = read_checked(folder / CHECKSUMS)
    except ValueError as error:
        return str(error)
    for name, (size, crc) in wanted.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
        if _sum(path)[1] != crc:
            return f"{name} is not what was written (CRC-32)"
    return None


def write_checked(path: pathlib.Path, value: Any) -> int:
    """Write JSON with its CRC-32 in place of the file, all or nothing; the CRC-32."""
    crc = _crc(value)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps({"crc32": crc, "value": value}))
    os.replace(part, path)
    return crc


def read_checked(path: pathlib.Path) -> tuple[Any, int]:
    """(value, CRC-32) as ``write_checked`` wrote it.

    Raises: ValueError naming the file if it is not, FileNotFoundError if there is none.
    """
    try:
        found = json.loads(path.read_bytes())
        value, crc = found["value"], found["crc32"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path.name} is not the JSON that was written") from None
    if _crc(value) != crc:
        raise ValueError(f"{path.name} is not what was written (CRC-32)")
    return value, crc


def out_of_space(error: BaseException) -> bool:
    """Whether an error, also one that passed through C++ as text, says that the disk or the quota is full."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    texts = tuple(os.strerror(number) for number in numbers)
    while error is not None:
        if getattr(error, "errno", None) in numbers or any(text in str(error) for text in texts):
            return True
        error = error.__cause__ or error.__context__
    return False


def free_space(folder: pathlib.Path) -> str:
    """Such as ``1.5 MB``: what is free where the folder, or the nearest above it, lies."""
    while not folder.exists():
        folder = folder.parent
    return f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB"


def _files(folder: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _sum(path: pathlib.Path) -> list[int]:
    """[size, CRC-32] of a file."""
    crc, size = 0, 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return [size, crc]


def _crc(value: Any) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())
