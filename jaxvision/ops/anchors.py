"""Anchors of region proposal networks and one-stage detectors."""

import jax.numpy as jnp
import numpy as np

from jaxvision.typing import Array, Float

Number = int | float


def anchor_boxes(
    feature_sizes: tuple[tuple[int, int], ...],
    image_size: tuple[int, int],
    *,
    sizes: tuple[tuple[Number, ...], ...],
    aspect_ratios: tuple[tuple[Number, ...], ...],
    rounded: bool = True,
) -> tuple[Float[Array, "n 4"], ...]:
    """Anchors of each feature map, ``[h * w * a, 4]`` in order (row, column, anchor), in pixels of the input.

    An anchor of size ``s`` and aspect ratio ``r`` = height / width has the area of a square of side ``s``; within a
    cell the ratio changes slowest. The cell in row ``i`` has its anchors centred at ``i * stride``, with no half-pixel
    offset, and stride = image size // feature size along each axis, as torchvision's ``AnchorGenerator`` has it.
    feature_sizes: (height, width) of each map.  image_size: (height, width) of the padded input.
    sizes, aspect_ratios: one tuple a map.  rounded: round the corners around the centre to whole pixels (half to even).
    Anchors are float32, not clipped to the image, and made from iotas: no large constant enters the program.
    Raises: ValueError if the numbers of maps differ or a map is larger than the image.
    """
    if not len(feature_sizes) == len(sizes) == len(aspect_ratios):
        raise ValueError(
            f"one tuple of sizes and one of aspect ratios per feature map: got {len(feature_sizes)} maps, "
            f"{len(sizes)} tuples of sizes, {len(aspect_ratios)} of aspect ratios"
        )
    return tuple(
        _level(feature_size, image_size, _around_origin(size, ratio, rounded))
        for feature_size, size, ratio in zip(feature_sizes, sizes, aspect_ratios)
    )


def _around_origin(sizes, aspect_ratios, rounded) -> np.ndarray:
    """Anchors of one cell, centred at the origin; in float32 throughout, as rounding depends on it."""
    heights = np.sqrt(np.asarray(aspect_ratios, np.float32))
    widths = 1 / heights
    sizes = np.asarray(sizes, np.float32)
    half_width = (widths[:, None] * sizes[None, :]).reshape(-1) / 2
    half_height = (heights[:, None] * sizes[None, :]).reshape(-1) / 2
    boxes = np.stack([-half_width, -half_height, half_width, half_height], axis=1)
    return np.round(boxes) if rounded else boxes


def _level(feature_size, image_size, cell: np.ndarray):
    height, width = feature_size
    if height > image_size[0] or width > image_size[1]:
        raise ValueError(f"feature map {feature_size} is larger than the image {image_size}: both are (height, width)")
    y = jnp.arange(height, dtype=jnp.float32) * (image_size[0] // max(height, 1))
    x = jnp.arange(width, dtype=jnp.float32) * (image_size[1] // max(width, 1))
    y, x = jnp.meshgrid(y, x, indexing="ij")
    shift = jnp.stack([x, y, x, y], axis=-1)
    return (shift[:, :, None] + cell[None, None]).reshape(-1, 4)
