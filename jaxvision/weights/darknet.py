"""Reads the ``.weights`` files of darknet, which hold numbers in the order of the layers, and no names.

A header of three int32 (major, minor, revision) and the number of images seen (int32 in version 0.1, 64 bits from 0.2
on); then float32, little-endian: of a convolution its biases, with batch norm (whose shifts are the biases) the scales,
rolling means and rolling variances, and its kernel [out, in, h, w]; of a connected layer biases and matrix [out, in].
"""

import math
from pathlib import Path

import flax.linen as nn
import numpy as np

from jaxvision.weights.convert import torch_shapes

DARKNET = ".weights"
VERSIONS = {(0, 1): 16, (0, 2): 20}  # bytes of the header
NORM = ("bias", "weight", "running_mean", "running_var")


def read_darknet(path: str | Path, module: nn.Module, *, other_outputs: bool = False) -> dict[str, np.ndarray]:
    """The arrays of the file under torch's keys for the module, whose ``darknet_layers`` names its layers in order.

    other_outputs: the last layer may have any number of outputs, as that of a network for other classes has.
    Raises: ValueError if the module has no such layers, the header is not darknet's, or the file is shorter or longer
    than the module's layers are, with the bytes wanted and found; FileNotFoundError.
    """
    path, kind = Path(path), type(module).__name__
    if not hasattr(module, "darknet_layers"):
        raise ValueError(f"{path} holds no names, and the order of {kind}'s layers in darknet is unknown")
    size, start = path.stat().st_size, _header(path)
    shapes = _shapes(module)
    total = start + 4 * sum(map(math.prod, shapes.values()))
    if other_outputs and size != total:
        shapes = _with_other_outputs(shapes, (size - total) // 4)
        total = start + 4 * sum(map(math.prod, shapes.values()))
    state, end = {}, start
    for key in shapes:
        begin, end = end, end + 4 * math.prod(shapes[key])
        if end > size:
            raise ValueError(
                f"{path} ends within {key} of {kind}, which wants the bytes {begin} to {end} of {size}; all layers "
                f"want {total} bytes. {_remedy(module)}"
            )
        state[key] = np.fromfile(path, "<f4", math.prod(shapes[key]), offset=begin).reshape(shapes[key])
    if end != size:
        raise ValueError(
            f"{path} goes on after {kind}'s last layer, {key}: {end} bytes are wanted, {size} found. {_remedy(module)}"
        )
    return state


def _header(path: Path) -> int:
    """The length of the header in bytes."""
    version = np.fromfile(path, "<i4", 3)
    if tuple(version[:2]) not in VERSIONS or len(version) < 3:
        raise ValueError(
            f"{path} does not begin like a darknet .weights file: three int32 (0, 1 or 2, revision) are wanted, found "
            f"{version.tolist()}. A checkpoint of another kind must keep its own suffix (.pth, .safetensors)"
        )
    return VERSIONS[tuple(version[:2])]


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of the arrays in the order of the file, by key."""
    keys = []
    for layer, norm in module.darknet_layers:
        first = [f"{layer}.bias"] if norm is None else [f"{norm}.{leaf}" for leaf in NORM]
        keys += [*first, f"{layer}.weight"]
    shapes = torch_shapes(module)
    return {key: shapes[key] for key in keys}


def _with_other_outputs(shapes: dict[str, tuple[int, ...]], surplus: int) -> dict[str, tuple[int, ...]]:
    """With so many outputs of the last layer more as the surplus numbers make, if they make whole ones."""
    bias, weight = list(shapes)[-2:]
    outputs, *inputs = shapes[weight]
    more, rest = divmod(surplus, math.prod(inputs) + 1)
    if rest or outputs + more < 1:
        return shapes
    return {**shapes, bias: (outputs + more,), weight: (outputs + more, *inputs)}


def _remedy(module: nn.Module) -> str:
    return (
        f"Fetch the file again if it is cut off; else its cfg is not that of {type(module).__name__}("
        f"num_classes={module.num_classes}, …): build the model with the cfg's classes, boxes a cell and batch norm"
    )
