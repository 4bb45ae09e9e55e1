"""``read_state_dict``: one flat dict of arrays from any checkpoint file."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvision.weights.torch_pickle import is_array, read_pickle, to_array

PICKLES = (".pth", ".pt", ".pkl", ".ckpt", ".bin")
WRAPPERS = (
    "model",
    "state_dict",
    "model_state_dict",
)  # Detectron2 and torchvision's scripts; Lightning; tutorials


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint (``.pth .pt .pkl .ckpt .bin .safetensors``) under their own keys.

    A checkpoint that nests its weights under "model", "state_dict" or "model_state_dict" is unwrapped; nested
    dicts and lists become dotted keys (``conv1.0``); whatever is not an array is left out. Pickled arrays are
    read-only.

    Raises: UnsafePickleError (a ValueError) if a pickle asks for more than arrays; ValueError for a file that
    is damaged, holds no arrays, or is not what its suffix says; FileNotFoundError.
    """
    path = Path(path)
    with open(path, "rb") as file:
        head = file.read(9)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in PICKLES:
        raise ValueError(
            f"{path}: cannot tell its kind; known suffixes are {(*PICKLES, '.safetensors')}, and "
            ".weights in load_weights, which knows the model"
        )
    if head[8:9] == b"{":
        raise ValueError(f"{path} looks like a safetensors file; rename it to {path.stem}.safetensors")
    tree = read_pickle(path)
    if isinstance(tree, Mapping):
        tree = next((tree[key] for key in WRAPPERS if isinstance(tree.get(key), Mapping)), tree)
    try:
        arrays = {key: to_array(leaf) for key, leaf in _leaves(tree, "", set())}
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not arrays:
        raise ValueError(f"{path} holds no arrays; save model.state_dict()")
    return arrays


def _leaves(tree: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Array stand-ins with dotted keys. Each container is walked once: a pickle can nest one in itself."""
    if is_array(tree):
        yield prefix, tree
    elif isinstance(tree, Mapping | list | tuple) and tree:
        if id(tree) in seen:
            raise ValueError(f"the container at {prefix!r} occurs twice")
        seen.add(id(tree))
        for key, child in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _leaves(child, f"{prefix}.{key}" if prefix else str(key), seen)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    import safetensors.numpy

    try:
        return safetensors.numpy.load_file(path)
    except Exception as error:  # the library's own error is no ValueError
        raise ValueError(f"{path} is truncated, damaged, or no safetensors file ({error}); fetch it again") from error
