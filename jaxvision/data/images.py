"""Reading picture files, and what to do about those that cannot be read."""

import logging
import os
import pathlib
import threading
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

__all__ = ["OnError", "Problems", "looks_cut_off", "read_image"]

OnError = Literal["raise", "skip"]

END_MARKS = {".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9", ".png": b"IEND\xaeB\x60\x82"}

logger = logging.getLogger("jaxvision")


def read_image(path: str | os.PathLike) -> np.ndarray:
    """The picture as uint8 RGB [h, w, 3], upright as its EXIF orientation says.

    Raises: ValueError naming the file if it is missing, cut off or not a picture.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith(("I", "F")):
                raise ValueError(f"mode {picture.mode}: more than 8 bits a channel; scale it to 8 bits first")
            return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such image file") from error
    # Pillow reports broken files by whatever its decoders stumble over.
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable image ({error}); restore the file or remove it") from error


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

    def read(self, path: str | os.PathLike) -> np.ndarray | None:
        """The picture, or None if it cannot be read and is to be skipped."""
        try:
            return read_image(path)
        except ValueError as error:
            if self.on_error == "raise":
                raise
            self.add(str(error))
            return None

    def check_file(self, path: str | os.PathLike) -> bool:
        """Whether the file is there and not cut off; it is decoded only where its end looks wrong."""
        try:
            if not os.path.isfile(path):
                raise ValueError(f"{path}: no such image file")
            if looks_cut_off(path):
                read_image(path)
        except (ValueError, OSError) as error:
            self.add(str(error))
            return False
        return True
