"""``read_state_dict``: one flat dict of arrays from any checkpoint file."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvision.weights.torch_pickle import is_array, read_pickle, refused, to_arrays
from jaxvision.weights.unpickle import Foreign

SAFETENSORS = ".safetensors"
PICKLES = (".pth", ".pt", ".pkl", ".ckpt", ".bin", ".tar")  # PyTorch's examples write .pth.tar, which is no tar archive
WRAPPERS = (
    "model",
    "state_dict",
    "model_state_dict",
    "net",
    "weights",
    "model_ema",
)  # Detectron2 and torchvision's scripts; Lightning; tutorials; the average of the weights, where it is alone
MAX_DEPTH = 100  # of containers in containers
MAX_KEY = 1000  # characters
NUMBERS = ("BOOL", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "F16", "BF16", "F32", "F64", "C64")


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint (``.pth .pt .pkl .ckpt .bin .tar .safetensors``, or without a suffix) under their own
    keys.

    A checkpoint that nests its weights under "model", "state_dict", "model_state_dict", "net", "weights" or
    "model_ema" (the first of them that is there) is unwrapped, and what lies beside them is passed over, objects of
    other programs too, which are never built. Nested dicts and lists become dotted keys (``conv1.0``); whatever is not
    an array is left out. Pickled arrays are read-only, and take no more memory than their file.

    Raises: UnsafePickleError (a ValueError) if there are other objects than arrays among the weights; ValueError for a
    file that is damaged, holds no arrays, or is not what its suffix says; FileNotFoundError; IsADirectoryError.
    """
    path = Path(path)
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if file.suffix.lower() in (*PICKLES, SAFETENSORS))
        raise IsADirectoryError(
            f"{path} is a folder; name the file of weights in it ({', '.join(inside[:3]) or 'none'})"
        )
    arrays = _read_safetensors(path) if _is_safetensors(path) else _read_pickle(path)
    if not arrays:
        raise ValueError(f"{path} holds no arrays; save model.state_dict()")
    return arrays


def _is_safetensors(path: Path) -> bool:
    """By the suffix, or by the content if there is none that says it. Raises: ValueError if neither says what it is."""
    with open(path, "rb") as file:
        head = file.read(9)
    suffix = path.suffix.lower()
    if suffix == SAFETENSORS:
        return True
    if suffix in PICKLES:
        if head[8:9] == b"{":
            raise ValueError(f"{path} looks like a safetensors file; rename it to {path.stem}.safetensors")
        return False
    if head[8:9] == b"{" or head.startswith((b"PK\x03\x04", b"\x80")):
        return head[8:9] == b"{"
    raise ValueError(
        f"{path}: cannot tell its kind, from its content neither; known suffixes are {(*PICKLES, SAFETENSORS)}, and "
        ".weights in load_weights, which knows the model"
    )


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
    tree = read_pickle(path)
    while isinstance(tree, Mapping) and (
        inner := next((tree[key] for key in WRAPPERS if isinstance(tree.get(key), Mapping)), None)
    ):
        tree = inner
    try:
        leaves = {}
        for key, leaf in _leaves(tree, "", {}, 0):
            if key in leaves:
                raise ValueError(f"the key {key[:100]!r} occurs twice")
            leaves[key] = leaf
        foreign = [(key, leaf) for key, leaf in leaves.items() if isinstance(leaf, Foreign)]
        if not foreign:
            return to_arrays(leaves, max_bytes=path.stat().st_size)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    key, leaf = foreign[0]
    raise refused(path, f"asks for {leaf.name!r}" + f" (at {key[:100]!r}, among its weights)" * bool(key))


def _leaves(tree: Any, prefix: str, seen: dict[int, int], depth: int) -> Iterator[tuple[str, Any]]:
    """Stand-ins of arrays and of foreign objects with dotted keys.

    ``seen`` counts the leaves of each container, which is walked once: a pickle can nest one in itself.
    """
    if is_array(tree) or isinstance(tree, Foreign):
        yield prefix, tree
    elif isinstance(tree, Mapping | list | tuple) and tree:
        if depth > MAX_DEPTH:
            raise ValueError(f"containers {depth} deep at {prefix[:100]!r}")
        if seen.get(id(tree)) == 0:  # numbers only, such as a tuple that two optimisers share
            return
        if id(tree) in seen:
            raise ValueError(f"the container at {prefix[:100]!r} occurs twice")
        seen[id(tree)], found = -1, 0
        for key, child in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            if isinstance(key, str | bytes) and len(prefix) + len(key) > MAX_KEY:
                raise ValueError(f"the key of {len(key)} characters at {prefix[:100]!r}")
            for leaf in _leaves(child, f"{prefix}.{key}" if prefix else str(key), seen, depth + 1):
                found += 1
                yield leaf
        seen[id(tree)] = found


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    import safetensors
    import safetensors.numpy

    try:
        with safetensors.safe_open(path, "numpy") as file:
            kinds = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 (no dict)
        other = [f"{key} is {kind}" for key, kind in kinds.items() if kind not in NUMBERS]
        arrays = {} if other else safetensors.numpy.load_file(path)
    except Exception as error:  # the library's own error is no ValueError
        raise ValueError(f"{path} is truncated, damaged, or no safetensors file ({error}); fetch it again") from error
    if other:
        raise ValueError(
            f"{path}: {other[0]}, which is not read; save it as F32, F16 or BF16 ({len(other)} of {len(kinds)})"
        )
    return arrays
