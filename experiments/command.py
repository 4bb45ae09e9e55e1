"""What the scripts share: options that know their ranges, and one message for what a user can mend."""

import contextlib
import dataclasses
import functools
import inspect
import logging
import math
import os
import re
import signal
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


T = TypeVar("T")

# What a user can mend; whatever else is raised is a mistake of ours, and keeps its traceback.
USER_ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError, MemoryError)
ABOUT_ERRORS = "With --traceback an error shows where in the code it comes from."


class Rule(NamedTuple):
    """What a value must be: words that go on from "must be", and whether it is so."""

    words: str
    holds: Callable[[Any], bool]


SOME = Rule("at least one", lambda value: len(value) > 0)
ONCE = Rule("without repetition", lambda value: len(set(value)) == len(value))
RISING = Rule("in rising order", lambda value: list(value) == sorted(value))
Pattern = Annotated[str, Rule("a regular expression", _compiles)]
Count = Annotated[int, Rule("at least 1", lambda value: value >= 1)]
Number = Annotated[int, Rule("at least 0", lambda value: value >= 0)]
Seed = Annotated[int, Rule("at least 0 and below 2**32", lambda value: 0 <= value < 2**32)]
Side = Annotated[int, Rule("between 1 and 8192 pixels", lambda value: 1 <= value <= 8192)]
Share = Annotated[float, Rule("between 0 and 1", lambda value: 0 <= value <= 1)]
Below1 = Annotated[float, Rule("at least 0 and below 1", lambda value: 0 <= value < 1)]
Inside = Annotated[float, Rule("above 0 and below 1", lambda value: 0 < value < 1)]
Area = Annotated[float, Rule("above 0 and at most 1", lambda value: 0 < value <= 1)]
Positive = Annotated[float, Rule("above 0 and finite", lambda value: 0 < value < math.inf)]
NotNegative = Annotated[float, Rule("at least 0 and finite", lambda value: 0 <= value < math.inf)]
Finite = Annotated[float, Rule("finite", math.isfinite)]
Name = Annotated[str, Rule("a name", lambda value: bool(value.strip()))]


class Checked:
    """A dataclass whose values obey the rules of their types, and ``faults``.

    prefix: what the fields' options begin with on the command line.
    Raises: ValueError, when one is made, naming each option that does not.
    """

    prefix: ClassVar[str] = "--"

    def __init_subclass__(cls, prefix: str = "", **options: Any):
        super().__init_subclass__(**options)
        cls.prefix = prefix or cls.prefix

    def __post_init__(self):
        hints = get_type_hints(type(self), include_extras=True)
        faults = [
            f"{self.option(field.name)} is {shown(value)}, and must be {words}"
            for field in dataclasses.fields(self)
            for value, words in broken(hints[field.name], getattr(self, field.name))
        ]
        faults = faults or list(self.faults())
        if faults and _found is None:
            raise ValueError("\n".join(faults))
        if faults:
            _found.extend(faults)

    def faults(self) -> Iterator[str]:
        """What is wrong with values that are right one by one, each naming its option."""
        return iter(())

    @classmethod
    def option(cls, field: str) -> str:
        """A field as it is typed."""
        return cls.prefix + field.replace("_", "-")


def broken(hint: Any, value: Any) -> Iterator[tuple[Any, str]]:
    """The parts of a value that break a rule of its type, and the rule's words."""
    if value is None or value is tyro.MISSING:
        return
    kind, arguments = get_origin(hint), get_args(hint)
    if kind is Annotated:
        wrong = [rule.words for rule in arguments[1:] if isinstance(rule, Rule) and not rule.holds(value)]
        yield from ((value, words) for words in wrong[:1])
        if not wrong:
            yield from broken(arguments[0], value)
    elif kind in (Union, types.UnionType):
        for argument in arguments:
            yield from broken(argument, value)
    elif kind is tuple:
        inside = [arguments[0]] * len(value) if arguments[1:] == (...,) else arguments
        for argument, item in zip(inside, value):
            yield from broken(argument, item)


def shown(value: Any) -> str:
    """As it is typed, shortened."""
    text = " ".join(map(shown, value)) if isinstance(value, tuple) else str(value)
    text = text or "empty"
    return text if len(text) <= 60 else f"{text[:57]}..."


_found: list[str] | None = None  # by the rules, while options are parsed


@contextlib.contextmanager
def aside() -> Iterator[list[str]]:
    """The faults of what is made inside, which are not raised."""
    global _found
    _found = faults = []
    try:
        yield faults
    finally:
        _found = None


@contextlib.contextmanager
def checked_after() -> Iterator[None]:
    """Options are parsed inside, and their faults raised together at the end: tyro would put the first of them into a
    box, under a name of its own.

    Raises: ValueError naming each option that breaks a rule.
    """
    with aside() as faults:
        yield
    if faults:
        raise ValueError("\n".join(dict.fromkeys(faults)))


def parse(options: type[T], *, description: str | None = None, arguments: Sequence[str] | None = None) -> T:
    """A script's options, from the command line or from ``arguments``.

    Raises: ValueError naming each option that breaks a rule; SystemExit for what tyro refuses.
    """
    found, _ = parse_known(options, description=description, arguments=arguments, others=False)
    return found


def parse_known(
    options: type[T], *, description: str | None = None, arguments: Sequence[str] | None = None, others: bool = True
) -> tuple[T, list[str]]:
    """As ``parse``, with what is left of the arguments, where ``others`` are let through."""
    text = inspect.cleandoc(description or options.__doc__ or "")
    with checked_after():
        cli = functools.partial(tyro.cli, options, description=f"{text}\n\n{ABOUT_ERRORS}", args=arguments)
        return cli(return_unknown_args=True) if others else (cli(), [])


def script(main: Callable[[], None]) -> Callable[[], None]:
    """A script's ``main``, of which a user's error ends with one message on stderr and exit code 1, an interruption
    with 130; with ``--traceback`` among the arguments both show where they come from."""

    @functools.wraps(main)
    def run() -> None:
        logging.basicConfig()
        for handler in logging.root.handlers:
            if type(handler) is logging.StreamHandler:  # absl has set one up, as soon as Orbax is imported
                handler.setFormatter(logging.Formatter("%(message)s"))
        arguments = [argument for argument in sys.argv if argument != "--traceback"]
        traceback, sys.argv[:] = len(arguments) < len(sys.argv), arguments
        try:
            main()
            sys.stdout.flush()  # here, where a reader that has gone is no error of the interpreter's
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        except (KeyboardInterrupt, SystemExit) as stop:
            code = stop.code if isinstance(stop, SystemExit) else 130
            if code in (130, 143):
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more would only say which part of the end it met
            if traceback or isinstance(stop, SystemExit):
                raise
            raise SystemExit(code) from None
        except USER_ERRORS as error:
            if traceback:
                raise
            raise SystemExit(f"error: {message(error)}") from None

    return run


def message(error: BaseException) -> str:
    """What an error says and our notes to it, without its type and number."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    notes = [note for note in getattr(error, "__notes__", []) if "Grain" not in note]  # which speaks of tracebacks
    return "\n".join([text.strip() or type(error).__name__, *notes])
