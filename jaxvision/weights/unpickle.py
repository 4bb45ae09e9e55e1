"""A pickle machine that builds plain values and calls nothing but a given list of functions.

It reads the opcodes of Python's own table (pickletools) and is bounded by what it reads: strings and bytes are at most
as long as the file, memo indices are keys of a dict, and there are at most MAX_OPCODES opcodes, none of which makes
more than a few hundred bytes. A global that is not in the list becomes a ``Foreign`` stand-in: nothing is imported, and
calling it, building it or putting things into it does nothing.
"""

import codecs
import io
import mmap
import pickletools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_OPCODES = 2_000_000  # make at most about 250 MB; the table of a checkpoint with 10,000 tensors has 600,000
MAX_ARGUMENTS = 16  # the functions copy them
MAX_NAME = 256  # characters of a global with its module

KEYS = (str, bytes, int, float, bool, type(None))  # nested tuples can take forever to hash, and overflow C's stack
VALUE = r"(BIN)?INT[12]?|LONG[14]?|(BIN)?FLOAT|(SHORT_)?BIN(STRING|BYTES8?)|STRING|(SHORT_)?(BIN)?UNICODE8?|BYTEARRAY8"
VALUES = {opcode.name for opcode in pickletools.opcodes if re.fullmatch(VALUE, opcode.name)}  # whose argument it is
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class UnsafePickleError(ValueError):
    """A pickle asked for something other than the parts of arrays; nothing of it was run."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """Stands for an object of another program, which is neither imported nor built."""

    name: str


@dataclass(frozen=True, slots=True)
class Function:
    """One allowed global, callable with REDUCE only."""

    call: Callable[..., Any]


class Unpickler:
    """Reads one pickle after the other from the file, of a kind that makes no room for bytes it does not have.

    allowed: a Function or a value for each global by its dotted name. persistent: the object of a persistent id.
    Objects with a method ``build`` may be given their state.
    """

    def __init__(
        self,
        file: io.BytesIO | mmap.mmap,
        allowed: Mapping[str, Any],
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        self.file, self.allowed, self.persistent = file, allowed, persistent
        self.opcodes = 0

    def load(self) -> Any:
        """The next object. Raises: UnsafePickleError, or whatever a damaged pickle leads to."""
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        while True:
            code = self.file.read(1)
            opcode = pickletools.code2op.get(code.decode("latin-1"))
            if opcode is None:
                raise ValueError(f"the opcode {code!r}" if code else "it ends early")
            self.opcodes += 1
            if self.opcodes > MAX_OPCODES:
                raise ValueError(f"more than {MAX_OPCODES} opcodes")
            if opcode.name == "STOP":
                return self.stack.pop()
            self._step(opcode.name, self._argument(opcode))

    def _argument(self, opcode: pickletools.OpcodeInfo) -> Any:
        if opcode.name == "STRING":  # pickletools takes it for ASCII; Python 2 wrote arrays so
            line = self.file.readline().rstrip(b"\n")
            if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
                raise ValueError("a string without quotes")
            return codecs.escape_decode(line[1:-1])[0].decode("latin-1")
        return None if opcode.arg is None else opcode.arg.reader(self.file)

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in VALUES:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in TUPLES:
            count = TUPLES[name]
            if len(stack) < count:
                raise ValueError("too few values for a tuple")
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("PROTO", "FRAME"):
            pass
        elif method := getattr(self, f"_{name.lower()}", None):
            method(argument)
        else:
            raise UnsafePickleError(f"asks for the opcode {name}")

    def _since_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.marks.pop()
        return values

    # Stack and memo

    def _mark(self, _: None) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _pop(self, _: None) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._since_mark()

    def _pop_mark(self, _: None) -> None:
        self._since_mark()

    def _dup(self, _: None) -> None:
        self.stack.append(self.stack[-1])

    def _put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def _memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _get(self, index: int) -> None:
        if index not in self.memo:
            raise ValueError(f"a memo without the index {index}")
        self.stack.append(self.memo[index])

    _binput = _long_binput = _put
    _binget = _long_binget = _get

    # Containers

    def _tuple(self, _: None) -> None:
        values = tuple(self._since_mark())
        self.stack.append(values)

    def _list(self, _: None) -> None:
        values = self._since_mark()
        self.stack.append(values)

    def _dict(self, _: None) -> None:
        values = self._since_mark()
        self.stack.append({})
        self._set_items(values)

    def _append(self, _: None) -> None:
        value = self.stack.pop()
        self._extend([value])

    def _appends(self, _: None) -> None:
        self._extend(self._since_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Foreign):
            raise ValueError(f"items for a {type(target).__name__}")

    def _setitem(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def _setitems(self, _: None) -> None:
        self._set_items(self._since_mark())

    def _set_items(self, values: list[Any]) -> None:
        target, keys = self.stack[-1], values[::2]
        if isinstance(target, Foreign):
            return
        if not isinstance(target, dict) or len(values) % 2:
            raise ValueError(f"items for a {type(target).__name__}")
        check_keys(keys)
        target.update(zip(keys, values[1::2]))

    def _empty_set(self, _: None) -> None:
        self.stack.append(Foreign("builtins.set"))

    def _frozenset(self, _: None) -> None:
        self._since_mark()
        self.stack.append(Foreign("builtins.frozenset"))

    def _additems(self, _: None) -> None:
        self._since_mark()

    # Objects

    def _persid(self, pid: Any) -> None:
        if self.persistent is None:
            raise ValueError("a persistent id")
        self.stack.append(self.persistent(pid))

    def _binpersid(self, _: None) -> None:
        self._persid(self.stack.pop())

    def _global(self, names: str) -> None:
        self.stack.append(self._find(*names.split(" ", 1)))

    def _stack_global(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self._find(module, name))

    def _find(self, module: Any, name: Any) -> Any:
        if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > MAX_NAME:
            raise ValueError(f"a global whose name is no text of at most {MAX_NAME} characters")
        wanted = f"{module}.{name}"
        return self.allowed.get(wanted, Foreign(wanted))

    def _reduce(self, _: None) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self._call(function, arguments)

    def _call(self, function: Any, arguments: Any) -> None:
        if isinstance(function, Foreign):
            self.stack.append(function)
            return
        if not isinstance(function, Function) or not isinstance(arguments, tuple | list):
            raise ValueError("a call of what is no function")
        if len(arguments) > MAX_ARGUMENTS:
            raise ValueError(f"a call with {len(arguments)} arguments")
        self.stack.append(function.call(*arguments))

    def _newobj(self, _: None) -> None:
        self._reduce(None)

    def _newobj_ex(self, _: None) -> None:
        self.stack.pop()
        self.stack.pop()
        if not isinstance(self.stack[-1], Foreign):
            raise ValueError("an object that is built with keywords")

    def _inst(self, names: str) -> None:
        arguments = self._since_mark()
        self._call(self._find(*names.split(" ", 1)), arguments)

    def _obj(self, _: None) -> None:
        function, *arguments = self._since_mark()
        self._call(function, arguments)

    def _build(self, _: None) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Foreign):
            return
        if not hasattr(target, "build"):
            raise UnsafePickleError("asks to set attributes of what it loaded")
        target.build(state)


def check_keys(keys: list[Any]) -> None:
    """Raises: ValueError unless all can be keys of a dict without walking through anything."""
    for key in keys:
        if type(key) not in KEYS:
            raise ValueError(f"a dict key of kind {type(key).__name__}")
