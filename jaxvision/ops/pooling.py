"""Pooling with torch's rules: windows, padding and ``ceil_mode`` are written out, never "SAME".

Pools are sums or maxima of shifted, strided slices of the padded input, one axis after the other where the order does
not matter. XLA's CPU backend computes these as fast as its own windowed reduction, whose gradient it is slow at: max
pooling 3x3/2 of [8, 112, 112, 64] forward and backward takes over 150 ms with it, 120 ms as nine slices, 30 ms as here.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxvision.ops.convolution import IntOrPair, pair
from jaxvision.typing import Array, Float, Int

__all__ = [
    "adaptive_avg_pool",
    "avg_pool",
    "local_response_norm",
    "max_pool",
    "max_pool_with_indices",
    "max_unpool",
    "soft_max_pool_with_indices",
]


def max_pool(
    x: Float[Array, "*b h w c"],
    *,
    window: IntOrPair,
    strides: IntOrPair | None = None,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
) -> Float[Array, "*b oh ow c"]:
    """Maximum of each window, torch's ``max_pool2d``.

    strides: the window if None. padding: cells of -inf on each side. dilation: the distance between the cells of a
    window. ceil_mode rounds the number of windows up, as long as each starts inside the input or its left padding. NaN
    spreads. Gradient: to the first maximum of a window in row order.
    Raises: ValueError on a window, stride or padding that torch refuses, or an input smaller than one window.
    """
    axes = _axes(x, window, strides, padding, ceil_mode, dilation)
    best = _pad(x, axes, -jnp.inf)
    for i in (1, 0):  # along rows, then down columns: the first maximum in row order wins, from k + k slices
        best = _axis_max(best, x.ndim - 3 + i, axes[i])
    return best


def max_pool_with_indices(
    x: Float[Array, "*b h w c"],
    *,
    window: IntOrPair,
    strides: IntOrPair | None = None,
    padding: IntOrPair = 0,
    ceil_mode: bool = False,
) -> tuple[Float[Array, "*b oh ow c"], Int[Array, "*b oh ow c"]]:
    """``max_pool`` and where each maximum was found: the "switches" of Zeiler and Fergus (arXiv:1311.2901).

    indices: int32, ``row * w + column`` in the plane before padding, the first maximum in row order, as torch.
    Options, gradients and errors as in ``max_pool``; the indices are integers and carry no gradient.
    """
    axes = _axes(x, window, strides, padding, ceil_mode)
    best, index = None, None
    for new, (rows, columns) in zip(_taps(x, axes, -jnp.inf), _positions(axes)):
        inside = _inside(axes, rows, columns)[..., None]
        here = jnp.asarray((rows[:, None] * axes[1].length + columns[None, :])[..., None], jnp.int32)
        if best is None:
            best, index = new, jnp.broadcast_to(jnp.where(inside, here, -1), new.shape)
            continue
        lead = (None,) * (new.ndim - 3)
        better = inside[lead] & ((new > best) | jnp.isnan(new) | (index < 0))
        best, index = jnp.where(better, new, best), jnp.where(better, here[lead], index)
    return best, index


def max_unpool(
    values: Float[Array, "*b oh ow c"], indices: Int[Array, "*b oh ow c"], *, output_size: tuple[int, int]
) -> Float[Array, "*b h w c"]:
    """Put each value back to its index in a plane of zeros: the inverse of ``max_pool_with_indices``.

    output_size: (h, w), the size before pooling. Indices outside the plane are dropped. Where windows overlapped and
    two of them chose one cell, it holds the value of one of them: the maximum itself, if the values come from the pool.
    Gradient: each value gets the gradient of its cell; a cell that several chose gives it to the one it holds, so that
    the gradient of unpooling after pooling is right (torch gives it to all of them).
    """
    height, width = output_size
    *batch, oh, ow, channels = values.shape
    flat = jnp.asarray(values).reshape(-1, oh * ow, channels)
    cells = jnp.asarray(indices).reshape(flat.shape)
    image = jnp.arange(flat.shape[0], dtype=jnp.int32)[:, None, None]
    channel = jnp.arange(channels, dtype=jnp.int32)[None, None, :]
    plane = jnp.zeros((flat.shape[0], height * width, channels), flat.dtype)
    plane = plane.at[image, cells, channel].set(flat, mode="drop", wrap_negative_indices=False)
    return plane.reshape(*batch, height, width, channels)


def soft_max_pool_with_indices(
    x: Float[Array, "*b h w c"],
    *,
    window: IntOrPair,
    strides: IntOrPair | None = None,
    padding: IntOrPair = 0,
    temperature: float | Float[Array, ""],
) -> tuple[Float[Array, "*b oh ow c"], Float[Array, "*b oh ow c 2"]]:
    """The smooth twin of ``max_pool_with_indices``: mean value and mean (row, column) of each window under the weights
    ``softmax(x / temperature)``; padding has no weight.

    Towards temperature 0 both tend to the hard value and ``divmod(index, w)``, and towards infinity to plain means.
    Gradients: to x and to temperature, from values and coordinates.
    Raises: ValueError as ``max_pool``, or if temperature is a number that is not positive.
    """
    if isinstance(temperature, int | float) and temperature <= 0:
        raise ValueError(f"temperature={temperature} must be positive; the limit 0 is max_pool_with_indices")
    axes = _axes(x, window, strides, padding, ceil_mode=False)
    taps = jnp.stack(list(_taps(x, axes, 0)), axis=-1)
    positions = list(_positions(axes))
    inside = np.stack([_inside(axes, rows, columns) for rows, columns in positions], axis=-1)[:, :, None]
    grids = [np.meshgrid(rows, columns, indexing="ij") for rows, columns in positions]
    coordinates = np.stack([np.stack(grid, axis=-1) for grid in grids], axis=-2)  # [oh, ow, k, 2]
    inside = inside[(None,) * (taps.ndim - 4)]
    weights = jax.nn.softmax(jnp.where(inside, taps / temperature, -jnp.inf), axis=-1)
    values = (weights * taps).sum(-1)
    where = jnp.einsum("...hwck,hwkt->...hwct", weights, coordinates.astype(weights.dtype), precision="highest")
    return values, where


def avg_pool(
    x: Float[Array, "*b h w c"],
    *,
    window: IntOrPair,
    strides: IntOrPair | None = None,
    padding: IntOrPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Float[Array, "*b oh ow c"]:
    """Mean of each window, torch's ``avg_pool2d``.

    Padding counts as zeros, or not at all with ``count_include_pad=False``; what ``ceil_mode`` adds beyond it never
    counts.
    Gradient: spread evenly over the window. Strides and errors as in ``max_pool``.
    """
    axes = _axes(x, window, strides, padding, ceil_mode)
    total = _pad(x, axes, 0)
    for i, axis in enumerate(axes):  # a window is the outer product of its sides: k + k slices instead of k * k
        total = sum(_shifted(total, total.ndim - 3 + i, axis, tap) for tap in range(axis.window))
    counts = np.outer(*(_counted(axis, count_include_pad) for axis in axes))[..., None]
    return total * jnp.asarray(1 / counts, total.dtype)[(None,) * (total.ndim - 3)]


def adaptive_avg_pool(x: Float[Array, "*b h w c"], *, size: tuple[int, int]) -> Float[Array, "*b oh ow c"]:
    """Mean over ``size`` bins that cover the input, torch's ``adaptive_avg_pool2d``.

    Bin i of n covers cells ``floor(i h / n)`` to ``ceil((i + 1) h / n)``: bins overlap where n does not divide h, and
    repeat cells where n exceeds it. Gradient: spread evenly over each bin.
    Raises: ValueError if a side of ``size`` is below 1.
    """
    if min(size) < 1:
        raise ValueError(f"size={size}: both sides of the output must be at least 1")
    *batch, height, width, channels = x.shape
    if height % size[0] == 0 and width % size[1] == 0:
        bins = jnp.reshape(x, (*batch, size[0], height // size[0], size[1], width // size[1], channels))
        return bins.mean((-4, -2))
    rows, columns = (
        jnp.asarray(_bin_means(n, length), x.dtype) for n, length in zip(size, (height, width), strict=True)
    )
    x = jnp.einsum("ph,...hwc->...pwc", rows, x, precision="highest")
    return jnp.einsum("qw,...pwc->...pqc", columns, x, precision="highest")


def local_response_norm(
    x: Float[Array, "*b c"], *, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Float[Array, "*b c"]:
    """``x / (k + alpha / size * sum of x**2 over size neighbouring channels) ** beta``, as torch and Caffe.

    AlexNet's paper (section 3.3) does not divide alpha by ``size``: pass ``alpha * size`` for its form. Channels
    beyond the ends count as zeros; an even ``size`` has one neighbour more below than above. Gradients: to x.
    Raises: ValueError if size < 1.
    """
    if size < 1:
        raise ValueError(f"size={size} must be at least 1")
    below = size // 2
    squares = jnp.pad(jnp.square(x), [(0, 0)] * (x.ndim - 1) + [(below, size - 1 - below)])
    total = sum(squares[..., tap : tap + x.shape[-1]] for tap in range(size))
    return x / (k + alpha / size * total) ** beta


class _Axis:
    """One spatial axis: its length, window, stride, padding, dilation and the number of windows."""

    def __init__(self, length, window, stride, padding, dilation, ceil_mode):
        if window < 1 or stride < 1 or dilation < 1:
            raise ValueError(f"window={window}, strides={stride} and dilation={dilation} must be at least 1")
        self.reach = dilation * (window - 1) + 1  # the cells that a window spans
        if not 0 <= 2 * padding <= self.reach:
            raise ValueError(f"padding={padding} must lie between 0 and half of window={window}")
        room = length + 2 * padding - self.reach
        self.length, self.window, self.stride, self.padding, self.dilation = length, window, stride, padding, dilation
        self.count = (-(-room // stride) if ceil_mode else room // stride) + 1
        if ceil_mode and (self.count - 1) * stride >= length + padding:
            self.count -= 1
        if self.count < 1:
            raise ValueError(f"window={window} does not fit into {length} cells with padding={padding}")
        self.starts = np.arange(self.count) * stride - padding


def _axes(x, window, strides, padding, ceil_mode, dilation=1):
    options = [pair(option) for option in (window, window if strides is None else strides, padding, dilation)]
    return tuple(_Axis(x.shape[x.ndim - 3 + i], *(option[i] for option in options), ceil_mode) for i in range(2))


def _pad(x, axes, value):
    widths = [(a.padding, max(int(a.starts[-1]) + a.reach - a.length, 0)) for a in axes]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 3) + widths + [(0, 0)], constant_values=value)


def _shifted(x, dimension, axis, tap):
    first = tap * axis.dilation
    return jax.lax.slice_in_dim(
        x, first, first + (axis.count - 1) * axis.stride + 1, stride=axis.stride, axis=dimension
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _axis_max(x, dimension, axis):
    return _axis_argmax(x, dimension, axis)[0]


@_axis_max.defjvp
def _axis_max_jvp(dimension, axis, primals, tangents):
    best, tap = _axis_argmax(*primals, dimension, axis)
    return best, _take_taps(*tangents, tap, dimension, axis)


def _axis_argmax(x, dimension, axis):
    """The maximum of each window along one axis and the offset, the first, at which it stands. NaN is above all."""
    best = _shifted(x, dimension, axis, 0)
    tap = jnp.zeros(best.shape, np.min_scalar_type(axis.window))  # small, because memory is what costs
    for k in range(1, axis.window):
        new = _shifted(x, dimension, axis, k)
        better = (new > best) | jnp.isnan(new)
        best, tap = jnp.where(better, new, best), jnp.where(better, np.asarray(k, tap.dtype), tap)
    return best, tap


def _take_taps(x, tap, dimension, axis):
    """The cell at offset ``tap`` of each window along one axis.

    It exists for its transpose. Cells are first split by their phase within the stride, which transposes to one
    concatenation; a strided slice a tap transposes to as many paddings with gaps, which takes twice as long.
    """
    stride, length = axis.stride, x.shape[dimension]
    rows = -(-length // stride)
    x = jnp.pad(x, [(0, (rows * stride - length) * (d == dimension)) for d in range(x.ndim)])
    x = x.reshape(*x.shape[:dimension], rows, stride, *x.shape[dimension + 1 :])
    phases = [phase.squeeze(dimension + 1) for phase in jax.lax.split(x, (1,) * stride, axis=dimension + 1)]
    taken = jnp.zeros(tap.shape, x.dtype)
    for k in range(axis.window):
        start, phase = divmod(k * axis.dilation, stride)
        cells = jax.lax.slice_in_dim(phases[phase], start, start + axis.count, axis=dimension)
        taken = jnp.where(tap == k, cells, taken)
    return taken


def _offsets(axes):
    return itertools.product(range(axes[0].window), range(axes[1].window))


def _taps(x, axes, value):
    """The cells at each offset of the window, in row order: each [*b, oh, ow, c]."""
    padded = _pad(x, axes, value)
    for dy, dx in _offsets(axes):
        yield _shifted(_shifted(padded, padded.ndim - 3, axes[0], dy), padded.ndim - 2, axes[1], dx)


def _positions(axes):
    """(rows [oh], columns [ow]) of the same cells, in the plane before padding."""
    return ((axes[0].starts + dy, axes[1].starts + dx) for dy, dx in _offsets(axes))


def _inside(axes, rows, columns):
    valid = [(p >= 0) & (p < axis.length) for axis, p in zip(axes, (rows, columns), strict=True)]
    return valid[0][:, None] & valid[1][None, :]


def _counted(axis, count_include_pad):
    margin = axis.padding if count_include_pad else 0
    return np.minimum(axis.starts + axis.window, axis.length + margin) - np.maximum(axis.starts, -margin)


def _bin_means(bins, length):
    i = np.arange(bins)[:, None]
    first, end = i * length // bins, -(-(i + 1) * length // bins)
    cell = np.arange(length)[None, :]
    return ((cell >= first) & (cell < end)) / (end - first)
