"""A row of the table of malformed inputs: what is done, and what the one error must name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

USER_ERRORS = (ValueError, TypeError, OSError)  # what the scripts print as one message


class Case(NamedTuple):
    name: str
    run: Callable[[Path], Any]  # makes the malformed input in a folder, and reads it
    words: tuple[str, ...]  # what the message names: the file, the field or the value


def by_name(cases: tuple[Case, ...]) -> Any:
    """The decorator that runs a test with each case; two of the same name are a mistake."""
    names = [case.name for case in cases]
    assert len(set(names)) == len(names), "two cases share a name"
    return pytest.mark.parametrize("case", cases, ids=names)


def check(case: Case, folder: Path) -> None:
    """One error, of a kind that the scripts show in one message, which names what and where."""
    with pytest.raises(USER_ERRORS) as caught:
        case.run(folder)
    message = str(caught.value)
    missing = [word for word in case.words if word not in message]
    assert not missing, f"{missing} not in: {message}"
