"""From the bytes of images to what networks take."""

import jax.numpy as jnp
import numpy as np

from jaxvision.typing import Array, Float, UInt8

__all__ = ["normalize"]


def normalize(
    images: UInt8[Array, "b h w c"],
    image_sizes: Float[Array, "b 2"] | None,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    scale: float = 1 / 255,
    dtype: str = "float32",
) -> Float[Array, "b h w c"]:
    """``(images * scale - mean) / std`` of each channel, and zero in the padding, beyond ``image_sizes`` = (h, w), if
    there is any.

    It is meant to run inside the compiled program, so that images travel as bytes: a quarter of the memory. dtype: of
    the result, in which the network then computes. Bytes have no gradient: differentiate with respect to the result.
    Raises: ValueError for a ``std`` that is not positive, or images of another dtype.
    """
    if images.dtype != np.uint8:
        raise ValueError(f"images are uint8 in 0 ... 255, not {images.dtype}")
    std = np.asarray(std, np.float64)
    if not (std > 0).all():
        raise ValueError(f"std must be positive, not {std.tolist()}")
    precise = jnp.promote_types(dtype, jnp.float32)
    factor, shift = (jnp.asarray(values, precise) for values in (scale / std, -np.asarray(mean, np.float64) / std))
    pixels = jnp.asarray(images).astype(precise) * factor[None, None, None] + shift[None, None, None]
    if image_sizes is not None:
        rows, columns = (jnp.arange(images.shape[axis])[None] < image_sizes[:, axis - 1, None] for axis in (1, 2))
        pixels = jnp.where(rows[:, :, None, None] & columns[:, None, :, None], pixels, 0)
    return pixels.astype(dtype)
