"""Convolution for XLA's CPU backend: the same sums in the formulations that it computes fast.

The value, the derivative with respect to the image and the one with respect to the kernel may each have a formulation
of its own, so ``conv_on_cpu`` has its derivatives written out. The figures in the docstrings are of jax 0.10.2 on two
cores, in float32; ``experiments/benchmark.py classification`` measures what they come to.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

__all__ = ["Window", "conv_on_cpu", "conv_xla", "differs_on_cpu"]

# XLA gives convolutions with the same padding on both sides to a library (YNNPACK) that deals out blocks of 64 output
# channels and 64 columns to the threads: below two blocks it has work for one.
NARROW = 128
# Bundles of groups narrower than this waste the vector units; wider ones multiply by more zeros. For 32 groups of 4
# channels in 8 maps of 56 x 56: 8 channels 24 ms, 16 channels 15 ms, 32 channels 24 ms, all 128 in one 39 ms.
BLOCK = 16
# From here on the nine products of a depthwise kernel gradient no longer fit into the cache together.
LARGE = 2**20
# From so many numbers an image on, a dense convolution's kernel gradient is faster image by image, in strips of rows
# of so many numbers. Of a 3 x 3 window on 8 images, XLA's own and in strips: 112 x 112, 64 to 128 channels 244 and
# 79 ms; 150 x 150, 32 channels 62 and 43; 56 x 56, 64 channels 15 and 10; 28 x 28, 512 channels 137 and 131, but
# 28 x 28, 128 channels 8 and 12. One image of 120 x 160 with 256 channels: 161 and 111.
LARGE_IMAGE = 2**17
STRIP = 2**19
MOST_PIECES = 64  # each is an instruction to compile
# With so many weights in each place of the window, the strips' kernel gradients are too large to be summed; then it is
# one product for each place. 4 maps of 40 x 40, 2048 to 512 channels: XLA's own 3,426 ms, strips 1,311, products 747;
# 1024 to 256: 751, 500, 311; 512 to 512, dilated: 782, 404, 219; but 256 to 256: 176, 81, 81.
WIDE_KERNEL = 2**18
# A dilated window that sees less than this share of the image, and else padding, is multiplied with what it sees. Four
# maps of 40 x 40, 2048 to 256 channels, forward by XLA and so: dilation 12 (0.64 seen) 552 and 326 ms, dilation 24
# (0.36) 1,036 and 218, dilation 36 (0.16) 1,169 and 57.
MOSTLY_SEEN = 0.75


class Window(NamedTuple):
    """How the window moves: each (vertical, horizontal)."""

    strides: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


def conv_xla(x, kernel, window, groups, *, pad_below=0):
    """XLA's own convolution."""
    top, left = window.padding
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=window.strides,
        padding=[(top, top + pad_below), (left, left)],
        rhs_dilation=window.dilation,
        feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def differs_on_cpu(x, kernel, window, groups):
    """Whether ``conv_on_cpu`` does anything but ``conv_xla``."""
    if groups > 1:
        return True
    return (
        _sees_little(x, kernel, window) or _in_large_images(x) or any(_narrow(kernel, axis, window) for axis in (2, 3))
    )


def _in_large_images(x):
    return x.size > 0 and math.prod(x.shape[1:]) >= LARGE_IMAGE


def _seen(size, window, padding, dilation):
    """For each place of a window along one axis, of stride 1: the first and last output (exclusive) that sees the
    image there, and by how much it is away from what it sees; then the number of outputs."""
    outputs = size + 2 * padding - dilation * (window - 1)
    away = [place * dilation - padding for place in range(window)]
    return [(max(0, -a), max(0, -a, min(outputs, size - a)), a) for a in away], outputs


def _sees_little(x, kernel, window):
    if window.strides != (1, 1) or max(window.dilation) == 1 or x.size == 0:
        return False
    share = 1.0
    for axis in (0, 1):
        places, outputs = _seen(x.shape[1 + axis], kernel.shape[axis], window.padding[axis], window.dilation[axis])
        share *= sum(last - first for first, last, _ in places) / (outputs * len(places))
    return share < MOSTLY_SEEN


def _products_of_what_is_seen(x, kernel, window):
    """One matrix product for each place of the window that sees any of the image; padding is not multiplied."""
    vertical, horizontal = (
        _seen(x.shape[1 + axis], kernel.shape[axis], window.padding[axis], window.dilation[axis]) for axis in (0, 1)
    )
    batch, channels = len(x), x.shape[-1]
    total = jnp.zeros((batch, vertical[1], horizontal[1], kernel.shape[-1]), jnp.result_type(x, kernel))
    for row, (top, bottom, down) in enumerate(vertical[0]):
        for column, (left, right, across) in enumerate(horizontal[0]):
            if top < bottom and left < right:
                part = x[:, top + down : bottom + down, left + across : right + across].reshape(-1, channels)
                product = (part @ kernel[row, column]).reshape(batch, bottom - top, right - left, -1)
                total = total.at[:, top:bottom, left:right].add(product)
    return total


def _narrow(kernel, axis, window):
    """Whether the kernel has few channels in (axis 2) or out (3). The three channels of an image are left to XLA."""
    few = kernel.shape[axis] < NARROW and kernel.shape[2] >= BLOCK
    return few and window.strides == window.dilation == (1, 1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def conv_on_cpu(x, kernel, window, groups):
    """``conv_xla`` by other means. Bilinear; every derivative, of any order, exists."""
    if groups > 1:
        return _in_groups(x, kernel, window, groups)
    if _sees_little(x, kernel, window):
        return _products_of_what_is_seen(x, kernel, window)
    if _narrow(kernel, 3, window):
        return conv_xla(x, kernel, window, 1, pad_below=1)[:, :-1]  # one row more keeps it from the library
    return conv_xla(x, kernel, window, 1)


@functools.partial(conv_on_cpu.defjvp, symbolic_zeros=True)
def _conv_on_cpu_jvp(window, groups, primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    parts = []
    if not isinstance(dx, SymbolicZero):
        parts.append(_along_image(dx, kernel, window, groups))
    if not isinstance(dkernel, SymbolicZero):
        parts.append(_along_kernel(x, dkernel, window, groups))
    value = conv_on_cpu(x, kernel, window, groups)
    return value, sum(parts) if parts else jnp.zeros_like(value)


def _along_image(x, kernel, window, groups):
    """The formulation whose transpose makes a fast gradient with respect to the image."""
    if groups > 1:
        return _in_groups(x, kernel, window, groups)
    if _sees_little(x, kernel, window):
        return _products_of_what_is_seen(x, kernel, window)
    if _narrow(kernel, 2, window):  # the transpose of padding apart is a convolution that XLA keeps from the library
        top, left = window.padding
        x = jnp.pad(x, ((0, 0), (top, top), (left, left), (0, 0)))
        return conv_xla(x, kernel, window._replace(padding=(0, 0)), 1)
    return conv_xla(x, kernel, window, 1)


def _along_kernel(x, kernel, window, groups):
    """The formulation whose transpose makes a fast gradient with respect to the kernel."""
    if groups == 1:
        large = _in_large_images(x)
        wide = kernel.shape[2] * kernel.shape[3] >= WIDE_KERNEL and window.strides == (1, 1)
        if _sees_little(x, kernel, window) or (large and wide):
            return _products_of_what_is_seen(x, kernel, window)
        return _in_strips(x, kernel, window) if large else conv_xla(x, kernel, window, 1)
    large = x.size // (window.strides[0] * window.strides[1]) >= LARGE
    if large:  # 8 maps of 56 x 56, 144 channels apart: 18 ms, as shifted products 50 ms
        return _in_dense_blocks(x, kernel, window, groups)
    return _in_groups(x, kernel, window, groups)


def _in_groups(x, kernel, window, groups):
    if groups == x.shape[-1] == kernel.shape[-1]:
        return _depthwise_as_shifted_products(x, kernel[:, :, 0], window)
    return _in_dense_blocks(x, kernel, window, groups)


def _in_strips(x, kernel, window):
    """Each image apart, and of it some output rows at a time: what a kernel gradient reads then fits into the cache."""
    (step, _), (top, left), (dilation, _) = window
    x = jnp.pad(x, ((0, 0), (top, top), (left, left), (0, 0)))
    reach = dilation * (kernel.shape[0] - 1) + 1
    height = (x.shape[1] - reach) // step + 1
    images = -(-len(x) // MOST_PIECES)
    strips = min(-(-math.prod(x.shape[1:]) // STRIP), max(MOST_PIECES // len(x), 1))
    rows = -(-height // strips)

    def piece(first, above):
        below = min(above + rows, height)
        strip = x[first : first + images, above * step : (below - 1) * step + reach]
        return conv_xla(strip, kernel, window._replace(padding=(0, 0)), 1)

    return jnp.concatenate(
        [
            jnp.concatenate([piece(first, above) for above in range(0, height, rows)], axis=1)
            for first in range(0, len(x), images)
        ]
    )


def _depthwise_as_shifted_products(x, kernel, window):
    """Sum over the taps of the shifted, strided image times one weight a channel: 3.5 ms where XLA's own takes 100."""
    products = (shifted * weights[None, None, None, :] for shifted, weights in _taps(x, kernel, window))
    return functools.reduce(jnp.add, products)


def _taps(x, kernel, window):
    """For each place in the window the part of the padded image that it sees, and the kernel's weights there."""
    strides, padding, dilation = window
    x = jnp.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))
    height, width = (
        (size - d * (k - 1) - 1) // s + 1 for size, k, s, d in zip(x.shape[1:3], kernel.shape, strides, dilation)
    )
    for row in range(kernel.shape[0]):
        for column in range(kernel.shape[1]):
            top, left = row * dilation[0], column * dilation[1]
            shifted = x[
                :,
                top : top + (height - 1) * strides[0] + 1 : strides[0],
                left : left + (width - 1) * strides[1] + 1 : strides[1],
            ]
            yield shifted, kernel[row, column]


def _in_dense_blocks(x, kernel, window, groups):
    """Groups bundled into blocks, each a dense convolution whose kernel is block diagonal; they run in parallel.

    XLA's own takes 126 ms for what this does in 15, and seconds for the gradient with respect to the kernel.
    """
    width = x.shape[-1] // groups
    least = min(BLOCK, x.shape[-1])
    blocks = max(n for n in range(1, groups + 1) if groups % n == 0 and width * (groups // n) >= least)
    parts = zip(jnp.split(x, blocks, axis=-1), jnp.split(kernel, blocks, axis=-1), strict=True)
    return jnp.concatenate(
        [conv_xla(part, _block_diagonal(taps, groups // blocks), window, 1) for part, taps in parts], -1
    )


def _block_diagonal(kernel, groups):
    """The dense kernel [kh, kw, i, o] that a grouped one [kh, kw, i/groups, o] stands for."""
    kh, kw, per_group, out = kernel.shape
    blocks = kernel.reshape(kh, kw, 1, per_group, groups, out // groups)
    dense = blocks * jnp.eye(groups, dtype=kernel.dtype)[None, None, :, None, :, None]
    return dense.reshape(kh, kw, groups * per_group, out)
