"""No six lines stand twice in the package or the scripts: one piece of code serves where the logic is the same."""

import ast
import itertools
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parent.parent
LEAST = 6  # lines that make a repetition


class Line(NamedTuple):
    file: str
    number: int
    text: str  # white space folded
    signature: bool  # whether it belongs to the signature of a function, decorators included


class Repetition(NamedTuple):
    first: list[Line]
    second: list[Line]

    def __str__(self):
        return " ~ ".join(f"{run[0].file}:{run[0].number}-{run[-1].number}" for run in self)


def code_lines(file: str, source: str) -> list[Line]:
    """The lines that count: not blank ones, comments, docstrings, imports, nor lines of punctuation alone."""
    tree = ast.parse(source)
    passed_over, signatures = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            passed_over.update(range(node.lineno, node.end_lineno + 1))
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node) is not None:
                passed_over.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                signatures.update(range(start, max(node.body[0].lineno, node.lineno + 1)))
    lines = []
    for number, text in enumerate(source.splitlines(), start=1):
        text = " ".join(text.split())
        if number not in passed_over and not text.startswith("#") and re.search(r"\w", text):
            lines.append(Line(file, number, text, number in signatures))
    return lines


def repetitions(sources: Mapping[str, str], least: int = LEAST) -> Iterator[Repetition]:
    """Every two places that share ``least`` lines or more, each run as long as it goes and without overlap; but not
    those that are nothing but signatures, which must agree where functions are exchanged for each other."""
    files = [code_lines(file, source) for file, source in sources.items()]
    places: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for file, lines in enumerate(files):
        for index in range(len(lines) - least + 1):
            window = tuple(line.text for line in lines[index : index + least])
            places.setdefault(window, []).append((file, index))

    def text(file, index):
        return files[file][index].text if 0 <= index < len(files[file]) else None

    for same in places.values():
        for (file, index), (other, start) in itertools.combinations(same, 2):
            before = text(file, index - 1)
            if before is not None and before == text(other, start - 1):
                continue  # the middle of a longer run, which was found at its start
            limit = start - index if file == other else len(files[file])
            length = 0
            while length < limit and text(file, index + length) == text(other, start + length) is not None:
                length += 1
            run = Repetition(files[file][index : index + length], files[other][start : start + length])
            if length >= least and not all(line.signature for line in itertools.chain(*run)):
                yield run


def sources() -> dict[str, str]:
    paths = [*sorted((ROOT / "jaxvision").rglob("*.py")), *sorted((ROOT / "experiments").glob("*.py"))]
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


def test_nothing_is_written_twice():
    found = sorted(map(str, repetitions(sources())))
    assert not found, "the same lines stand in two places:\n" + "\n".join(found)


BODY = """
def {name}(x,
           y):
    '''{name} has its own docstring,
    of two lines.'''
    import {module}
    one = x + 1
    # {name}
    two = [

        {space}one,
    ]
    three = two * 3
    four = three - 1
    five = four / 2
    return {end}
"""


def test_a_planted_repetition_is_found():
    first = BODY.format(name="first", module="os", space="", end="five + two")
    second = BODY.format(name="second", module="sys", space="    ", end="five + two")
    (found,) = repetitions({"a.py": first, "b.py": "x = 1\n" + second})
    assert str(found) == "a.py:3-16 ~ b.py:4-17"
    (found,) = repetitions({"a.py": first + second})  # within one file too
    assert str(found) == "a.py:3-16 ~ a.py:19-32"
    # One line more in the one than in the other, and one less than makes a repetition.
    shorter = second.replace("    three = two * 3\n", "    three = two * 4\n")
    assert not list(repetitions({"a.py": first, "b.py": shorter}))
    assert list(repetitions({"a.py": first, "b.py": shorter}, least=4))


def test_signatures_may_agree_and_no_more():
    signature = "@one\n@two\ndef f(\n    a: int,\n    b: int,\n    c: int,\n    d: int,\n) -> int:\n"
    assert not list(repetitions({"a.py": signature + "    return 1\n", "b.py": signature + "    return 2\n"}))
    assert list(repetitions({"a.py": signature + "    return 1\n", "b.py": signature + "    return 1\n"}))


def test_a_line_repeated_in_a_row_is_no_pair_with_itself_shifted():
    assert not list(repetitions({"a.py": "x = 1\n" * 11}))
    (found,) = repetitions({"a.py": "x = 1\n" * 12})
    assert len(found.first) == 6
