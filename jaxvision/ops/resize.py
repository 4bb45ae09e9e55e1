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
    """[out, length]; positions are rounded to the working precision, as torch rounds them."""
    scale = np.asarray(length, dtype) / np.asarray(out, dtype)
    position = np.clip(
        scale * (np.arange(out, dtype=dtype) + 0.5).astype(dtype) - np.asarray(0.5, dtype), 0, length - 1
    )
    return np.maximum(1 - np.abs(position[:, None] - np.arange(length, dtype=dtype)[None, :]), 0).astype(dtype)


def _triangle_weights(length, out, dtype):
    scale = length / out
    support = max(scale, 1.0)
    centre = scale * (np.arange(out) + 0.5)
    distance = (np.arange(length)[None, :] + 0.5 - centre[:, None]) / support
    weights = np.maximum(1 - np.abs(distance), 0)
    return (weights / weights.sum(1, keepdims=True)).astype(dtype)
