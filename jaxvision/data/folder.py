"""Pictures sorted into one folder a class."""

import os
import pathlib
from typing import SupportsIndex

import numpy as np
from PIL import Image

from jaxvision.data.images import OnError, Problems
from jaxvision.data.source import Example
from jaxvision.pictures import FORMATS

__all__ = ["ImageFolder"]


class ImageFolder:
    """The pictures under ``root/CLASS/``, at any depth; classes are numbered in the order of their names.

    Files are known by pillow's suffixes; hidden ones are passed over.  on_error: "raise" refuses a cut-off JPEG or
    PNG at once and any other unreadable picture when it is read; "skip" logs each, lists it in ``problems`` and
    leaves it out (None in its place if found on reading).  Of more than 10,000 pictures all are looked at on reading.
    decode_at_least: as in ``CocoDetection``.
    Raises: FileNotFoundError if there is no such folder; ValueError if it has no classes, a class without pictures,
    or unreadable pictures under "raise".
    """

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        on_error: OnError = "raise",
        decode_at_least: tuple[int, int] | None = None,
    ):
        self.root, self.decode_at_least = pathlib.Path(root), decode_at_least
        root = self.root
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder")
        self._problems = Problems(on_error)
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not folders:
            raise ValueError(f"{root}: no folders inside; expected one folder a class")
        suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
        self.categories = tuple(folder.name for folder in folders)
        names: list[str] = []
        counts = []
        for folder in folders:
            check_name(folder)
            pictures = pictures_in(folder, suffixes)
            if not pictures:
                self._problems.add(f"{folder}: no pictures in the folder of this class")
            names += [os.path.join(folder.name, name) for name in pictures]
            counts.append(len(pictures))
        sound = self._problems.check_files(root, names)
        self._names = [name for name, ok in zip(names, sound) if ok]  # below the root: a million paths are 0.1 GB
        self._labels = np.repeat(np.arange(len(folders)), counts)[np.array(sound, bool)]
        self._problems.refuse(root)
        if not self._names:
            raise ValueError(f"{root}: no usable picture inside")

    @property
    def problems(self) -> list[str]:
        """What was skipped so far, file and reason."""
        return list(self._problems.found)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: SupportsIndex) -> Example | None:
        path = self.root / self._names[index]
        picture = self._problems.read(path, at_least=self.decode_at_least)
        if picture is None:
            return None
        file = f"{path.parent.name}/{path.name}"
        return {"image": picture.pixels, "file": file, "size": picture.size, "label": int(self._labels[index])}

    def size(self, index: SupportsIndex) -> tuple[int, int]:
        return self._problems.size(self.root / self._names[index])


def pictures_in(folder: pathlib.Path, suffixes: set[str]) -> list[str]:
    """The pictures at any depth of a folder, by their names below it, sorted; hidden files are passed over."""
    found = []
    for parent, _, names in os.walk(folder):
        below = os.path.relpath(parent, folder)
        found += [
            os.path.normpath(os.path.join(below, name))
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
        ]
    return sorted(found, key=lambda name: name.split(os.sep))


def check_name(folder: pathlib.Path) -> None:
    """Raises: ValueError for a class that could not be written to a file later."""
    try:
        folder.name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{str(folder)!r}: the name of the class is not UTF-8; rename the folder") from error
