"""Reads checkpoints that were written by pickle – PyTorch's ``.pth`` in its zip and legacy layouts, and plain
pickles of numpy arrays – without torch and without running anything the file asks for.

Unpickling builds only inert stand-ins from a fixed list of globals; a second pass turns the stand-ins
into read-only numpy arrays after checking every length, offset and stride. Arrays take at most the bytes of the
file: a zip's entries must be stored, as torch stores them, not compressed. The tar layout of PyTorch before 0.1.10
is not read.
"""

import io
import math
import mmap
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxvision.weights.unpickle import Foreign, Function, Unpickler, UnsafePickleError, check_keys

MAX_DIMENSIONS = 64  # as numpy's
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first object in PyTorch's legacy layout

# The part of a torch storage class's name before "Storage", and torch's own dtype names.
STORAGES = {
    "Float": "float32",
    "Double": "float64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}


def read_pickle(path: Path) -> Any:
    """The object in a ``.pth``, ``.pt`` or ``.pkl`` file: dicts, lists, tuples, numbers, strings, stand-ins that
    ``to_array`` turns into arrays, and a ``Foreign`` (unpickle.py) for each object of another kind.

    Raises: UnsafePickleError for a pickle that asks for more than that; ValueError for a damaged file.
    """
    with open(path, "rb") as file:
        try:
            head = file.read(4)
            if head.startswith(b"PK"):
                return _read_zip(file)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _read_stream(content)
        except UnsafePickleError as error:
            raise refused(path, str(error)) from None
        except Exception as error:  # a damaged or hostile pickle can fail in any opcode, with any exception
            raise ValueError(
                f"{path} cannot be read as a PyTorch or numpy pickle: it is truncated, damaged, or another "
                f"kind of file ({type(error).__name__}: {_short(error)}); fetch it again"
            ) from error


def refused(path: Path, what: str) -> UnsafePickleError:
    """The error for a pickle that asks for something else than arrays."""
    return UnsafePickleError(
        f"{path} {what}: a pickle may build arrays only, and nothing of this one was run. If you "
        "trust it, load it where it was made and save only model.state_dict(), or save as safetensors"
    )


def is_array(value: Any) -> bool:
    """Whether ``to_array`` accepts the value."""
    return isinstance(value, _Tensor | _NumpyArray)


def to_arrays(leaves: dict[str, Any], *, max_bytes: int) -> dict[str, np.ndarray]:
    """Read-only arrays from stand-ins. One that has two keys is made once.

    Raises: ValueError if one reaches beyond its data, or if pickled arrays together have more than ``max_bytes``.
    """
    distinct = {id(leaf): leaf for leaf in leaves.values()}
    if sum(len(leaf.data or b"") for leaf in distinct.values() if isinstance(leaf, _NumpyArray)) > max_bytes:
        raise ValueError(f"its arrays share data, and would have more than the {max_bytes} bytes of the file")
    arrays = {}
    for key, leaf in leaves.items():
        try:
            if id(leaf) not in arrays:
                arrays[id(leaf)] = leaf.array()
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{key[:100]!r} is {_short(error)}") from error
    return {key: arrays[id(leaf)] for key, leaf in leaves.items()}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _dimensions(values: Any) -> tuple[int, ...]:
    """Sizes or strides. Raises: ValueError unless they are a few integers that are not negative."""
    if not isinstance(values, tuple | list) or len(values) > MAX_DIMENSIONS:
        raise ValueError("an array whose shape or strides are no short tuple")
    if any(type(n) is not int or not 0 <= n < 2**63 for n in values):
        raise ValueError(f"an array whose shape or strides are {_numbers(values)}")
    return tuple(values)


def _numbers(values: Any) -> tuple[Any, ...]:
    """For a message: numbers of a sane size, and the kinds of all else."""
    return tuple(n if type(n) is int and abs(n) < 2**80 else type(n).__name__ for n in values)


# Stand-ins


class _Name:
    """One allowed global that is only passed on, such as a storage class or a dtype."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class _Dict(dict):
    """An OrderedDict; the attributes that torch adds (``_metadata``) are dropped."""

    def build(self, state: Any) -> None:
        pass


class _Storage:
    """A flat run of numbers of one dtype; ``data`` arrives at once (zip) or after the pickle (legacy)."""

    __slots__ = ("data", "dtype", "length")

    def __init__(self, dtype: np.dtype, length: int):
        self.dtype, self.length, self.data = dtype, length, None


class _Slice(NamedTuple):
    """A storage that is part of another one."""

    root: _Storage
    start: int
    length: int


class _Tensor:
    __slots__ = ("offset", "size", "storage", "stride")

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any):
        part = _Slice(storage, 0, storage.length) if isinstance(storage, _Storage) else storage
        if not isinstance(part, _Slice):
            raise ValueError("a tensor without a storage")
        if len(rest) > 2 and rest[2]:
            raise ValueError("a tensor with flags")
        self.storage, self.offset, self.size, self.stride = part, offset, _dimensions(size), _dimensions(stride)

    def array(self) -> np.ndarray:
        root, start, length = self.storage
        _dimensions((start, length, self.offset))
        if len(self.size) != len(self.stride):
            raise ValueError(f"a tensor of size {self.size} and stride {self.stride}")
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride))
        end = self.offset if 0 in self.size else last + 1
        if end > length or start + length > root.length:
            raise ValueError(f"a tensor of {self.size} that reaches element {end} of a storage of {length}")
        flat = root.data[start + self.offset : start + length]
        steps = [step * root.dtype.itemsize for step in self.stride]
        return np.lib.stride_tricks.as_strided(flat, self.size, steps, writeable=False)


class _NumpyDtype:
    """A plain dtype; numpy's own ``__setstate__`` trusts its input, so it is not used."""

    __slots__ = ("dtype",)

    def __init__(self, name: Any, *_: Any):
        if not isinstance(name, str) or not re.fullmatch(r"[biufc]\d{1,2}", name):
            raise ValueError(f"an array of dtype {name[:20]!r}" if isinstance(name, str) else "a dtype without a name")
        self.dtype = np.dtype(name)

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or any(field is not None for field in state[2:5]):
            raise ValueError("a dtype with fields")
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError("a dtype with an unknown byte order")
        self.dtype = self.dtype.newbyteorder(state[1])


class _NumpyArray:
    __slots__ = ("data", "dtype", "fortran", "shape")

    def __init__(self, *_: Any):
        self.shape, self.data = None, None

    def build(self, state: Any) -> None:
        _, shape, dtype, self.fortran, self.data = state
        self.shape, self.dtype = _dimensions(shape), dtype.dtype
        if not isinstance(self.data, bytes | bytearray | str):
            raise ValueError("a numpy array without bytes")

    def array(self) -> np.ndarray:
        if self.shape is None:
            raise ValueError("a numpy array without data")
        if math.prod(self.shape) * self.dtype.itemsize != len(self.data):
            raise ValueError(f"a numpy array of shape {self.shape} and {self.dtype} with {len(self.data)} bytes")
        data = self.data.encode("latin1") if isinstance(self.data, str) else self.data  # str: written by Python 2
        flat = np.frombuffer(data, self.dtype)
        array = flat.reshape(self.shape, order="F" if self.fortran else "C")
        array = array.astype(self.dtype.newbyteorder("="), copy=False)
        array.flags.writeable = False
        return array


# The restricted unpickler


def _ordered(*pairs: Any) -> _Dict:
    """An OrderedDict from a list of pairs, which is emptied: a pickle can name one list a million times."""
    made = _Dict()
    for items in pairs:
        if not isinstance(items, list) or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in items):
            raise ValueError("an OrderedDict of what is no list of pairs")
        check_keys([pair[0] for pair in items])
        made.update(items)
        items.clear()
    return made


def _encode(text: Any, encoding: Any) -> str:
    """Bytes as Python 2 and protocols before 3 spell them; the array that they belong to encodes them, once."""
    if encoding not in ("latin1", "latin-1") or not isinstance(text, str):
        raise ValueError("bytes in another encoding than latin1")
    return text


def _scalar(dtype: _NumpyDtype, data: Any) -> Any:
    if not isinstance(data, bytes | str) or len(data) != dtype.dtype.itemsize:
        raise ValueError("a numpy scalar of another length than its dtype's")
    raw = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(raw, dtype.dtype)[0].item()


def _from_buffer(data: Any, dtype: _NumpyDtype, shape: Any, order: Any) -> _NumpyArray:
    array = _NumpyArray()
    array.build((1, shape, dtype, order == "F", data))
    return array


def _device(kind: Any, index: Any = None) -> str:
    if not isinstance(kind, str) or not isinstance(index, int | None):
        raise ValueError("a device without a name")
    return kind if index is None else f"{kind[:20]}:{index}"


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "torch._utils._rebuild_tensor": _Tensor,
    "torch._utils._rebuild_tensor_v2": _Tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.Size": _dimensions,
    "torch.device": _device,
    "numpy.dtype": _NumpyDtype,
    "_codecs.encode": _encode,
    "__builtin__.bytes": lambda: b"",  # how protocols before 3 spell it
} | {
    f"numpy.{core}.{name}": function
    for core in ("core", "_core")
    for name, function in {
        "multiarray._reconstruct": _NumpyArray,
        "multiarray.scalar": _scalar,
        "numeric._frombuffer": _from_buffer,
    }.items()
}
NAMES = (
    {"numpy.ndarray"}
    | {f"torch.{kind}Storage" for kind in STORAGES}
    | {f"torch.{dtype}" for dtype in STORAGES.values()}
)


ALLOWED = {name: Function(function) for name, function in FUNCTIONS.items()} | {name: _Name(name) for name in NAMES}


def _stored(pid: Any) -> tuple[np.dtype, str, int, Any]:
    """Dtype, key, length and rest of the persistent id of a storage."""
    if isinstance(pid, tuple) and pid[:1] == ("module",):
        raise UnsafePickleError("asks for a module with its source")
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
        raise ValueError("an unknown persistent id")
    _, kind, key, _, length, *rest = pid
    if isinstance(kind, Foreign):  # of quantised numbers, for example
        raise UnsafePickleError(f"asks for {kind.name!r}")
    name = kind.name.removeprefix("torch.").removesuffix("Storage") if isinstance(kind, _Name) else ""
    if name not in STORAGES or not isinstance(key, str):
        raise ValueError("a storage without a kind or a key")
    _dimensions((length,))
    return np.dtype(jnp.bfloat16 if name == "BFloat16" else STORAGES[name]), key, length, rest


def _read_zip(file: io.BufferedIOBase) -> Any:
    size = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        tables = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(tables) != 1:
            raise ValueError("a zip file without PyTorch's data.pkl")
        folder = tables[0].removesuffix("data.pkl")
        left = size  # entries can lie upon each other

        def read(name: str) -> bytes:
            nonlocal left
            member = archive.getinfo(name)
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(
                    f"the entry {name} is compressed, and torch stores it; zip the files again with zip -0"
                )
            left -= member.file_size
            if left < 0:
                raise ValueError(f"the entries up to {name} are larger than the file")
            return archive.read(member)

        big = f"{folder}byteorder" in archive.namelist() and read(f"{folder}byteorder") == b"big"
        storages: dict[str, _Storage] = {}

        def storage(pid: Any) -> _Storage:
            dtype, key, length, _ = _stored(pid)
            if key not in storages:
                data = read(f"{folder}data/{key}")
                if len(data) != length * dtype.itemsize:
                    raise ValueError(f"storage {key} has {len(data)} bytes, not {length} x {dtype}")
                storages[key] = _Storage(dtype, length)
                flat = np.frombuffer(data, dtype)
                storages[key].data = flat.byteswap() if big else flat
            return storages[key]

        return Unpickler(io.BytesIO(read(tables[0])), ALLOWED, storage).load()


def _read_stream(file: mmap.mmap) -> Any:
    unpickler = Unpickler(file, ALLOWED)
    first = unpickler.load()
    if first != LEGACY_MAGIC:
        return first
    for _ in range(2):  # protocol version; sizes of C's integers on the machine that wrote the file
        unpickler.load()
    storages: dict[str, _Storage] = {}

    def storage(pid: Any) -> _Storage | _Slice:
        dtype, key, length, view = _stored(pid)
        root = storages.setdefault(key, _Storage(dtype, length))
        if not view or view[0] is None:
            return root
        _, start, count = view[0]
        return _Slice(root, *_dimensions((start, count)))

    unpickler.persistent = storage
    result = unpickler.load()
    if isinstance(result, Foreign):
        return result
    for key in unpickler.load():
        root = storages[key]
        (length,) = struct.unpack("<q", file.read(8))
        if length != root.length:
            raise ValueError(f"storage {key} holds {length} elements, not {root.length}")
        root.data = np.frombuffer(file.read(length * root.dtype.itemsize), root.dtype)
        if root.data.size != length:
            raise ValueError("the file ends early")
    if any(root.data is None for root in storages.values()):
        raise ValueError("a storage has no data")
    return result
