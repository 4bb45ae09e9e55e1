"""Reads checkpoints that were written by pickle – PyTorch's ``.pth`` in its zip and legacy layouts, and plain
pickles of numpy arrays – without torch and without running anything the file asks for.

Unpickling builds only inert stand-ins from a fixed list of globals; a second pass turns the stand-ins
into read-only numpy arrays after checking every length, offset and stride. The tar layout of PyTorch before
0.1.10 is not read.
"""

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

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


class UnsafePickleError(ValueError):
    """A pickle asked for something other than the parts of arrays; nothing of it was run."""


def read_pickle(path: Path) -> Any:
    """The object in a ``.pth``, ``.pt`` or ``.pkl`` file: dicts, lists, tuples, numbers, strings, and
    stand-ins that ``to_array`` turns into arrays.

    Raises: UnsafePickleError for a pickle that asks for anything else; ValueError for a damaged file.
    """
    with open(path, "rb") as file:
        head = file.read(4)
        file.seek(0)
        try:
            return _read_zip(file) if head.startswith(b"PK") else _read_stream(file)
        except UnsafePickleError as error:
            raise UnsafePickleError(
                f"{path} {error}: a pickle may build arrays only, and nothing of this one was run. If you "
                "trust it, load it where it was made and save only model.state_dict(), or save as safetensors"
            ) from None
        except Exception as error:  # a damaged or hostile pickle can fail in any opcode, with any exception
            raise ValueError(
                f"{path} cannot be read as a PyTorch or numpy pickle: it is truncated, damaged, or another "
                f"kind of file ({type(error).__name__}: {error}); fetch it again"
            ) from error


def is_array(value: Any) -> bool:
    """Whether ``to_array`` accepts the value."""
    return isinstance(value, _Tensor | _NumpyArray)


def to_array(value: Any) -> np.ndarray:
    """A read-only array from a stand-in. Raises: ValueError if it reaches beyond its data."""
    return value.array()


# Stand-ins


class _Inert:
    """What unpickling may build. BUILD, the opcode that sets attributes, is refused by default."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise UnsafePickleError("asks to set attributes of what it loaded")


class _Function(_Inert):
    """One allowed global, callable with REDUCE only."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


class _Name(_Inert):
    """One allowed global that is only passed on, such as a storage class or a dtype."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class _Dict(dict):
    """An OrderedDict; the attributes that torch adds (``_metadata``) are dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Storage(_Inert):
    """A flat run of numbers of one dtype; ``data`` arrives at once (zip) or after the pickle (legacy)."""

    __slots__ = ("data", "dtype", "length")

    def __init__(self, dtype: np.dtype, length: int):
        self.dtype, self.length, self.data = dtype, length, None


class _Slice(NamedTuple):
    """A storage that is part of another one."""

    root: _Storage
    start: int
    length: int


class _Tensor(_Inert):
    __slots__ = ("offset", "size", "storage", "stride")

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any):
        part = _Slice(storage, 0, storage.length) if isinstance(storage, _Storage) else storage
        if not isinstance(part, _Slice):
            raise ValueError("a tensor without a storage")
        if len(rest) > 2 and rest[2]:
            raise ValueError(f"a tensor with the flags {rest[2]}")
        self.storage, self.offset, self.size, self.stride = part, offset, tuple(size), tuple(stride)

    def array(self) -> np.ndarray:
        root, start, length = self.storage
        numbers = (start, length, self.offset, *self.size, *self.stride)
        if len(self.size) != len(self.stride) or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError(f"a tensor of size {self.size}, stride {self.stride}, offset {self.offset}")
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride))
        end = self.offset if 0 in self.size else last + 1
        if end > length or start + length > root.length:
            raise ValueError(f"a tensor of {self.size} reaches element {end} of a storage of {length}")
        flat = root.data[start + self.offset : start + length]
        steps = [step * root.dtype.itemsize for step in self.stride]
        return np.lib.stride_tricks.as_strided(flat, self.size, steps, writeable=False)


class _NumpyDtype(_Inert):
    """A plain dtype; numpy's own ``__setstate__`` trusts its input, so it is not used."""

    __slots__ = ("dtype",)

    def __init__(self, name: Any, *_: Any):
        self.dtype = np.dtype(str(name))
        if self.dtype.kind not in "biufc":
            raise ValueError(f"an array of dtype {name!r}")

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "=") or any(field is not None for field in state[2:5]):
            raise ValueError(f"a dtype with the state {state!r}")
        self.dtype = self.dtype.newbyteorder(order)


class _NumpyArray(_Inert):
    __slots__ = ("data", "dtype", "fortran", "shape")

    def __init__(self, *_: Any):
        self.shape = None

    def __setstate__(self, state: Any) -> None:
        _, self.shape, dtype, self.fortran, data = state
        self.dtype = dtype.dtype
        self.data = data.encode("latin1") if isinstance(data, str) else data  # str: written by Python 2

    def array(self) -> np.ndarray:
        if self.shape is None or not isinstance(self.data, bytes):
            raise ValueError("a numpy array without data")
        if any(type(n) is not int or n < 0 for n in self.shape):
            raise ValueError(f"a numpy array of shape {self.shape}")
        if math.prod(self.shape) * self.dtype.itemsize != len(self.data):
            raise ValueError(f"a numpy array of shape {self.shape} and {self.dtype} with {len(self.data)} bytes")
        flat = np.frombuffer(self.data, self.dtype)
        return flat.reshape(self.shape, order="F" if self.fortran else "C").astype(self.dtype.newbyteorder("="))


# The restricted unpickler


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


def _scalar(dtype: _NumpyDtype, data: bytes | str) -> Any:
    raw = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(raw, dtype.dtype, count=1)[0].item()


def _from_buffer(data: bytes | bytearray, dtype: _NumpyDtype, shape: tuple[int, ...], order: str) -> _NumpyArray:
    array = _NumpyArray()
    array.__setstate__((1, shape, dtype, order == "F", bytes(data)))
    return array


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _Dict,
    "torch._utils._rebuild_tensor": _Tensor,
    "torch._utils._rebuild_tensor_v2": _Tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch.Size": lambda size: tuple(size),
    "torch.device": lambda *args: ":".join(str(part) for part in args),
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


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BufferedIOBase, storage: Callable[..., Any] | None = None):
        super().__init__(file, encoding="latin1")
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        wanted = f"{module}.{name}"
        if wanted in FUNCTIONS:
            return _Function(FUNCTIONS[wanted])
        if wanted in NAMES:
            return _Name(wanted)
        raise UnsafePickleError(f"asks for {wanted!r}")

    def persistent_load(self, pid: Any) -> Any:
        if self.storage is None or not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise ValueError(f"an unknown persistent id {pid!r}")
        return self.storage(*pid[1:])


def _dtype(storage: _Name) -> np.dtype:
    kind = storage.name.removeprefix("torch.").removesuffix("Storage")
    return np.dtype(jnp.bfloat16) if kind == "BFloat16" else np.dtype(STORAGES[kind])


def _read_zip(file: io.BufferedIOBase) -> Any:
    with zipfile.ZipFile(file) as archive:
        tables = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(tables) != 1:
            raise ValueError("a zip file without PyTorch's data.pkl")
        folder = tables[0].removesuffix("data.pkl")
        big = f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") == b"big"
        storages: dict[str, _Storage] = {}

        def storage(kind: _Name, key: str, location: str, length: int) -> _Storage:
            if key not in storages:
                dtype = _dtype(kind)
                member = archive.getinfo(f"{folder}data/{key}")
                if member.file_size != length * dtype.itemsize:
                    raise ValueError(f"storage {key} has {member.file_size} bytes, not {length} x {dtype}")
                storages[key] = _Storage(dtype, length)
                data = np.frombuffer(archive.read(member), dtype)
                storages[key].data = data.byteswap() if big else data
            return storages[key]

        return _Unpickler(io.BytesIO(archive.read(tables[0])), storage).load()


def _read_stream(file: io.BufferedIOBase) -> Any:
    first = _Unpickler(file).load()
    if first != LEGACY_MAGIC:
        return first
    for _ in range(2):  # protocol version; sizes of C's integers on the machine that wrote the file
        _Unpickler(file).load()
    storages: dict[str, _Storage] = {}

    def storage(kind: _Name, key: str, location: str, length: int, view: Any = None) -> _Storage | _Slice:
        root = storages.setdefault(key, _Storage(_dtype(kind), length))
        return root if view is None else _Slice(root, *view[1:])

    result = _Unpickler(file, storage).load()
    for key in _Unpickler(file).load():
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
