"""The convolution and the transposed convolution that every model uses: explicit padding, NHWC, HWIO.

What XLA's CPU backend is slow at has another formulation in ``convolution_cpu``, for all models at once.
"""

import functools

import jax.numpy as jnp
from jax import lax

from jaxvision.ops.convolution_cpu import Window, conv_on_cpu, conv_xla, differs_on_cpu
from jaxvision.typing import Array, Float

IntOrPair = int | tuple[int, int]


def pair(value: IntOrPair) -> tuple[int, int]:
    """``3`` or ``(3, 3)`` as ``(3, 3)``: vertical, horizontal."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def conv(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "kh kw ig o"],
    *,
    strides: IntOrPair = 1,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> Float[Array, "b oh ow o"]:
    """Two-dimensional cross-correlation, as every framework calls convolution.

    padding: zeros on each side, never "SAME" (which at stride 2 pads one side only, a silent shift of one pixel against
    published weights). The output has ``floor((h + 2p - d(k-1) - 1) / s) + 1`` rows. groups: input block g feeds
    output block g alone; ``ig = i / groups``. Linear, and differentiable, in both ``x`` and ``kernel``.

    Raises: ValueError if channels and groups do not fit, or the window is larger than the padded image.
    """
    strides, padding, dilation = pair(strides), pair(padding), pair(dilation)
    _check(x.shape, kernel.shape, padding, dilation, groups)
    if kernel.shape[:2] == (1, 1) and groups == 1 and padding == (0, 0):
        return _conv_1x1(x[:, :: strides[0], :: strides[1]], kernel[0, 0])
    window = Window(strides, padding, dilation)
    plain = functools.partial(conv_xla, window=window, groups=groups)
    if not differs_on_cpu(x, kernel, window, groups):
        return plain(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=lambda x, k: conv_on_cpu(x, k, window, groups), default=plain)


def conv_transpose(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "kh kw i o"],
    *,
    strides: IntOrPair = 1,
    padding: IntOrPair = 0,
    output_padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
) -> Float[Array, "b oh ow o"]:
    """The transpose of ``conv`` with respect to its input: each input cell stamps the kernel onto the output.

    The output has torch's size, ``(h-1)s - 2p + d(k-1) + output_padding + 1`` rows, and torch's kernel orientation (not
    flipped). Linear, and differentiable, in both ``x`` and ``kernel``.

    Raises: ValueError if channels do not fit or output_padding is not smaller than strides or dilation.
    """
    strides, padding, dilation = pair(strides), pair(padding), pair(dilation)
    output_padding = pair(output_padding)
    if any(op >= max(s, d) for op, s, d in zip(output_padding, strides, dilation)):
        raise ValueError(
            f"output_padding {output_padding} must be smaller than strides {strides} or dilation {dilation}"
        )
    window = kernel.shape[:2]
    if window == strides and dilation == (1, 1) and padding == output_padding == (0, 0):
        return _conv_transpose_without_overlap(x, kernel)
    reach = [d * (k - 1) for d, k in zip(dilation, window)]
    return lax.conv_general_dilated(
        x,
        jnp.flip(kernel, (0, 1)),
        window_strides=(1, 1),
        padding=[(r - p, r - p + op) for r, p, op in zip(reach, padding, output_padding)],
        lhs_dilation=strides,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _conv_1x1(x, kernel):
    """One product of two matrices. An einsum is as fast forward; but its kernel gradient contracts three axes, for
    which XLA writes the gradient that arrives once more, transposed: a ResNet-50 step took a fifth longer."""
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:3], kernel.shape[1])


def _conv_transpose_without_overlap(x, kernel):
    """Windows that tile the output: one matrix product, then cells become blocks of pixels."""
    b, h, w, _ = x.shape
    kh, kw, _, out = kernel.shape
    stamps = jnp.einsum("bhwi,yxio->bhywxo", x, kernel)
    return stamps.reshape(b, h * kh, w * kw, out)


def _check(x_shape, kernel_shape, padding, dilation, groups):
    channels, (kh, kw, per_group, out) = x_shape[-1], kernel_shape
    if channels != per_group * groups or out % groups:
        raise ValueError(
            f"{groups} groups, {channels} input channels and a kernel {kernel_shape} do not fit: "
            f"the kernel must be [kh, kw, {channels}/groups, a multiple of groups]"
        )
    for size, k, p, d in zip(x_shape[1:3], (kh, kw), padding, dilation):
        if size + 2 * p < d * (k - 1) + 1:
            raise ValueError(f"a window of {d * (k - 1) + 1} pixels does not fit an image {x_shape[1:3]} padded by {p}")
