"""Reading picture files, and what to do about those that cannot be read."""

import contextlib
import io
import logging
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from jaxvision.pictures import DAMAGE, open_picture, upright, upright_size

__all__ = ["OnError", "Picture", "Problems", "looks_cut_off", "read_image", "read_picture", "size_in_header"]

OnError = Literal["raise", "skip"]

END_MARKS = {".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9", ".png": b"IEND\xaeB\x60\x82"}
MAX_CHECKED = 10_000  # files whose end is looked at before training; it takes a second, or minutes over a network

logger = logging.getLogger("jaxvision")


class Picture(NamedTuple):
    """A decoded picture, perhaps smaller than the file's."""

    pixels: np.ndarray  # uint8 [h, w, 3], RGB, upright
    size: tuple[int, int]  # (height, width) of the whole picture, upright


def read_picture(file: str | os.PathLike | io.BytesIO, *, at_least: tuple[int, int] | None = None) -> Picture:
    """The picture of a file as uint8 RGB, upright as its EXIF orientation says.

    at_least: (height, width) that a JPEG must keep when it is decoded at a half, a quarter or an eighth of its size,
    which saves the work of the rest.
    Raises: ValueError naming the file if it is missing, cut off, too large or not a picture of a known format.
    """
    with _faults_named(file), open_picture(file) as picture:
        size = upright_size(picture)
        if at_least is not None:
            picture.draft("RGB", at_least[::-1] if size == picture.size[::-1] else at_least)
        picture = upright(picture)
        return Picture(np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB")), size)


def read_image(path: str | os.PathLike) -> np.ndarray:
    """The pixels of the whole picture, as ``read_picture``."""
    return read_picture(path).pixels


def size_in_header(file: str | os.PathLike | io.BytesIO) -> tuple[int, int]:
    """(height, width) of a picture, upright, of which no more than the header is read.

    Raises: as ``read_picture``, where the header shows it.
    """
    with _faults_named(file), open_picture(file) as picture:
        return upright_size(picture)


@contextlib.contextmanager
def _faults_named(file: str | os.PathLike | io.BytesIO) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"{file}: no such image file") from error
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise ValueError(f"{file}: not a readable image ({error}); restore the file or remove it") from error


def looks_cut_off(path: str | os.PathLike) -> bool:
    """Whether a JPEG or PNG lacks its end mark: a cheap hint that it may be truncated, not a proof."""
    mark = END_MARKS.get(pathlib.Path(path).suffix.lower())
    if mark is None:
        return False
    with open(path, "rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - 64))
        return mark not in file.read()


class Problems:
    """What is wrong with a data set: collected to be raised together ("raise"), or logged once each ("skip")."""

    def __init__(self, on_error: OnError):
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', not {on_error!r}")
        self.on_error = on_error
        self.found: dict[str, None] = {}  # in the order of discovery
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:  # a lock cannot go to another process, which lists for itself
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def add(self, message: str) -> None:
        with self._lock:
            if message in self.found:
                return
            self.found[message] = None
        if self.on_error == "skip":
            logger.warning("skipped: %s", message)

    def refuse(self, where: str | os.PathLike) -> None:
        """Raises ValueError if anything was found and the user did not choose to skip it."""
        if self.found and self.on_error == "raise":
            shown = "\n".join(f"  - {message}" for message in list(self.found)[:10])
            more = f"\n  ... and {len(self.found) - 10} more" if len(self.found) > 10 else ""
            raise ValueError(
                f"{where}: {len(self.found)} problem(s) found\n{shown}{more}\n"
                "Mend them, or pass on_error='skip' to leave the named images and annotations out."
            )

    def read(self, path: str | os.PathLike, *, at_least: tuple[int, int] | None = None) -> Picture | None:
        """The picture, or None if it cannot be read and is to be skipped."""
        try:
            return read_picture(path, at_least=at_least)
        except ValueError as error:
            if self.on_error == "raise":
                raise
            self.add(str(error))
            return None

    def size(self, path: str | os.PathLike) -> tuple[int, int]:
        """(height, width) by the file's header; of one that is to be skipped that of a square, so that it has a place
        among the others until it is read."""
        try:
            return size_in_header(path)
        except ValueError as error:
            if self.on_error == "raise":
                raise
            self.add(str(error))
            return 1, 1

    def check_files(self, folder: str | os.PathLike, names: Sequence[str]) -> list[bool]:
        """Which of these files are there and, where they are few, not cut off. Each folder is listed once."""
        paths = [os.path.join(folder, name) for name in names]
        there = {parent: listed(parent) for parent in {os.path.dirname(path) for path in paths}}
        return [self._is_sound(path, there[os.path.dirname(path)], len(paths)) for path in paths]

    def _is_sound(self, path: str, there: set[str], count: int) -> bool:
        """A file is decoded only where its end looks wrong."""
        try:
            if os.path.basename(path) not in there:
                raise ValueError(f"{path}: no such image file")
            if count <= MAX_CHECKED and looks_cut_off(path):
                read_picture(path)
        except (ValueError, OSError) as error:
            self.add(str(error))
            return False
        return True


def leads_out(name: str) -> bool:
    """Whether a name in a list of files leads out of the folder that they are to lie in."""
    return os.path.isabs(name) or ".." in name.split("/")


def listed(folder: str) -> set[str]:
    """The names of the files in a folder; none if there is no such folder."""
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name for entry in entries if not entry.is_dir()}
    except OSError:
        return set()
