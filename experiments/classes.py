"""Whether those who speak of classes by number mean the same ones."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def check_same_classes(training: Any, validation: Any) -> None:
    """Training and validation source have the same names, and the same ids in the data set's own files, in the same
    order.

    Raises: ValueError naming the first class that differs.
    """
    compare(training.categories, validation.categories, "the training data", "the validation data")
    ids = (getattr(source, "category_ids", ()) for source in (training, validation))
    for name, first, second in zip(training.categories, *ids):
        if first != second:
            raise ValueError(
                f"class {name!r} has the id {first} in the training data, but {second} in the validation data; write "
                "both files with the same ids"
            )


def compare(first: Sequence[str], second: Sequence[str], first_is: str, second_is: str) -> None:
    """The same names in the same order.

    Raises: ValueError naming the first class that differs.
    """
    for label, names in enumerate(itertools.zip_longest(first, second)):
        if names[0] != names[1]:
            one, other = (f"is {name!r}" if name is not None else "is missing" for name in names)
            counts = f" ({len(first)} and {len(second)} classes)" if len(first) != len(second) else ""
            raise ValueError(
                f"class {label} {one} in {first_is}, but {other} in {second_is}{counts}; both must have the same "
                "names in the same order"
            )


def read_classes(path: Path) -> tuple[str, ...]:
    """The names in a text file, one a line, in label order.

    Raises: ValueError for a file that is empty, no UTF-8, or has a line without a name or a name twice; OSError.
    """
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8 ({error.reason}); save it in that encoding") from error
    if not names:
        raise ValueError(f"{path}: empty; write one class name a line, in label order")
    for line, name in enumerate(names, start=1):
        if not name:
            raise ValueError(f"{path}: line {line} is empty; write one class name a line, in label order")
        if names.index(name) + 1 < line:
            raise ValueError(f"{path}: {name!r} is in line {names.index(name) + 1} and again in line {line}")
    return names
