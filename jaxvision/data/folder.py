"""Pictures sorted into one folder a class."""

import os
import pathlib
from typing import SupportsIndex

from PIL import Image

from jaxvision.data.images import OnError, Problems
from jaxvision.data.source import Example

__all__ = ["ImageFolder"]


class ImageFolder:
    """The pictures under ``root/CLASS/``, at any depth; classes are numbered in the order of their names.

    Files are known by pillow's suffixes; hidden ones are passed over.  on_error: "raise" refuses a cut-off JPEG or
    PNG at once and any other unreadable picture when it is read; "skip" logs each, lists it in ``problems`` and
    leaves it out (None in its place if found on reading).
    Raises: FileNotFoundError if there is no such folder; ValueError if it has no classes, a class without pictures,
    or unreadable pictures under "raise".
    """

    def __init__(self, root: str | os.PathLike, *, on_error: OnError = "raise"):
        root = pathlib.Path(root)
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder")
        self._problems = Problems(on_error)
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not folders:
            raise ValueError(f"{root}: no folders inside; expected one folder a class")
        suffixes = Image.registered_extensions()
        self.categories = tuple(folder.name for folder in folders)
        self.files: list[tuple[pathlib.Path, int]] = []
        for label, folder in enumerate(folders):
            pictures = [
                path
                for path in sorted(folder.rglob("*"))
                if path.suffix.lower() in suffixes and not path.name.startswith(".")
            ]
            if not pictures:
                self._problems.add(f"{folder}: no pictures in the folder of this class")
            self.files += [(path, label) for path in pictures if self._problems.check_file(path)]
        self._problems.refuse(root)
        if not self.files:
            raise ValueError(f"{root}: no usable picture inside")

    @property
    def problems(self) -> list[str]:
        """What was skipped so far, file and reason."""
        return list(self._problems.found)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: SupportsIndex) -> Example | None:
        path, label = self.files[index]
        image = self._problems.read(path)
        return None if image is None else {"image": image, "label": label}
