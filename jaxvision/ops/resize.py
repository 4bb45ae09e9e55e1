"""Bilinear resizing with half-pixel centres, as ``torch.nn.functional.interpolate(..., align_corners=False)``."""

import jax.numpy as jnp
import numpy as np

from jaxvision.typing import Array, Float

__all__ = ["resize"]


def resize(
    x: Float[Array, "*b h w c"], *, size: tuple[int, int], antialias: bool = False
) -> Float[Array, "*b oh ow c"]:
    """Resize to ``size`` = (height, width), bilinear, equal to torch's ``interpolate`` to rounding.

    Output pixel i samples ``(i + 0.5) * h / oh - 0.5``; beyond the first and last centre the border value holds.
    antialias: where the image shrinks, widen the triangle by the factor and renormalise at the border, as PIL does.
    Gradients: to x; the operation is linear.
    Raises: ValueError if a side of ``size`` is below 1.
    """
    if min(size) < 1:
        raise ValueError(f"size={size}: both sides must be at least 1")
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    make = _triangle_weights if antialias else _bilinear_weights
    rows, columns = (jnp.asarray(make(n, out, dtype)) for n, out in zip(x.shape[-3:-1], size, strict=True))
    resized = jnp.einsum("ph,...hwc->...pwc", rows, jnp.asarray(x, dtype), precision="highest")
    return jnp.einsum("qw,...pwc->...pqc", columns, resized, precision="highest").astype(x.dtype)


def _bilinear_weights(length, out, dtype):
    """[out, length]. The scale is rounded to the working precision and the position once more, as torch does."""
    scale = np.float64(np.asarray(length, dtype) / np.asarray(out, dtype))
    position = (scale * (np.arange(out) + 0.5) - 0.5).astype(dtype).clip(0, length - 1)
    return np.maximum(1 - np.abs(position[:, None] - np.arange(length, dtype=dtype)[None, :]), 0)


def _triangle_weights(length, out, dtype):
    """[out, length]; every step in the working precision, as torch does."""
    half, one = np.asarray([0.5, 1], dtype)
    scale = np.asarray(length, dtype) / np.asarray(out, dtype)
    centre = scale * (np.arange(out, dtype=dtype) + half)
    distance = np.arange(length, dtype=dtype)[None, :] - centre[:, None] + half
    weights = np.maximum(1 - np.abs(distance / np.maximum(scale, one)), 0)
    return (weights / weights.sum(1, keepdims=True)).astype(dtype)
