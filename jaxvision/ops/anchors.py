"""Anchors of region proposal networks and one-stage detectors, and priors that training boxes suggest."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxvision.typing import Array, Float, Key

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
    too_large = [size for size in feature_sizes if size[0] > image_size[0] or size[1] > image_size[1]]
    if too_large:
        raise ValueError(f"feature map {too_large[0]} is larger than the image {image_size}: both are (height, width)")
    return tuple(
        _everywhere(
            _around_origin(size, ratio, rounded),
            _count(height) * (image_size[0] // max(height, 1)),
            _count(width) * (image_size[1] // max(width, 1)),
        )
        for (height, width), size, ratio in zip(feature_sizes, sizes, aspect_ratios)
    )


def default_boxes(
    feature_sizes: tuple[tuple[int, int], ...],
    image_size: tuple[int, int],
    *,
    scales: tuple[float, ...],
    aspect_ratios: tuple[tuple[Number, ...], ...],
    steps: tuple[Number, ...],
) -> tuple[Float[Array, "n 4"], ...]:
    """SSD's default boxes of each feature map, in pixels of the input (arXiv:1512.02325, section 2.2).

    ``[h * w * a, 4]`` in order (row, column, box). The boxes of a cell of map k are a square of side ``scales[k]``, one
    of side ``sqrt(scales[k] * scales[k + 1])``, and for each aspect ratio ``r`` two of the area of the first, ``r``
    times as wide as high and the reverse. Sides longer than the image's are cut to it, as in torchvision.
    feature_sizes: (height, width) of each map.  image_size: (height, width) of the input.
    scales: shares of the image's sides, one more than there are maps.  steps: distance of the cells in pixels; the cell
    in row ``i`` has its boxes centred at ``(i + 0.5) * step``.
    Boxes are float32, not clipped to the image, and made from iotas: no large constant enters the program.
    Raises: ValueError if the numbers of maps differ.
    """
    maps = len(feature_sizes)
    if not maps == len(aspect_ratios) == len(steps) == len(scales) - 1:
        raise ValueError(
            f"per feature map one tuple of aspect ratios, one step and one scale, and a scale more: got {maps} maps, "
            f"{len(aspect_ratios)} tuples, {len(steps)} steps, {len(scales)} scales"
        )
    levels = []
    for k, ((height, width), step) in enumerate(zip(feature_sizes, steps)):
        between = math.sqrt(scales[k] * scales[k + 1])
        sides = [(scales[k], scales[k]), (between, between)]
        for ratio in aspect_ratios[k]:
            long, short = scales[k] * math.sqrt(ratio), scales[k] / math.sqrt(ratio)
            sides += [(long, short), (short, long)]
        half = np.minimum(np.array(sides, np.float32), 1) * np.array(image_size[::-1], np.float32)[None] / 2
        cell = np.concatenate([-half, half], axis=1)
        levels.append(_everywhere(cell, (_count(height) + 0.5) * step, (_count(width) + 0.5) * step))
    return tuple(levels)


def _around_origin(sizes, aspect_ratios, rounded) -> np.ndarray:
    """Anchors of one cell, centred at the origin; in float32 throughout, as rounding depends on it."""
    heights = np.sqrt(np.asarray(aspect_ratios, np.float32))
    widths = 1 / heights
    sizes = np.asarray(sizes, np.float32)
    half_width = (widths[:, None] * sizes[None, :]).reshape(-1) / 2
    half_height = (heights[:, None] * sizes[None, :]).reshape(-1) / 2
    boxes = np.stack([-half_width, -half_height, half_width, half_height], axis=1)
    return np.round(boxes) if rounded else boxes


def _count(number: int):
    return jnp.arange(number, dtype=jnp.float32)


def _everywhere(cell: np.ndarray, y, x):
    """The boxes of one cell around each place of a grid, given by its rows and columns."""
    y, x = jnp.meshgrid(y, x, indexing="ij")
    shift = jnp.stack([x, y, x, y], axis=-1)
    return (shift[:, :, None] + cell[None, None]).reshape(-1, 4)


@partial(jax.jit, static_argnames=("k", "iterations"))
def kmeans(key: Key[Array, ""], points: Float[Array, "n d"], *, k: int, iterations: int = 50) -> Float[Array, "k d"]:
    """``k`` centres, each the mean of the points that are nearest to it (Lloyd's algorithm), such as priors of boxes.

    The start is k-means++: one point after the other, with a probability in proportion to its squared distance from
    the nearest one chosen before. A centre that no point is nearest to moves to the point that lies farthest from its
    own; where there are fewer different points than centres, some centres are equal.
    Gradients: with respect to the points, their choice of centres held fixed.
    Raises: ValueError unless 1 <= k <= n.
    """
    if not 1 <= k <= len(points):
        raise ValueError(f"k must lie between 1 and the number of points, {len(points)}; got {k}")
    points = jnp.asarray(points)

    def squared(centres):
        return jnp.sum((points[:, None] - centres[None]) ** 2, axis=-1)

    def choose(distance, key):
        index = jax.random.categorical(key, jnp.log(distance))
        return jnp.minimum(distance, squared(points[index][None])[:, 0]), index

    def improve(centres, _):
        distance = squared(centres)
        mine = jax.nn.one_hot(jnp.argmin(distance, axis=1), k, dtype=points.dtype)
        count = jnp.sum(mine, axis=0)
        empty = count == 0
        farthest = points[lax.top_k(jnp.min(distance, axis=1), k)[1]]
        spare = farthest[jnp.cumsum(empty) - 1]  # the first empty cluster takes the farthest point, and so on
        mean = mine.T @ points / jnp.maximum(count, 1)[:, None]
        return jnp.where(empty[:, None], spare, mean), None

    chosen = lax.scan(choose, jnp.ones(len(points), points.dtype), jax.random.split(key, k))[1]
    return lax.scan(improve, points[chosen], length=iterations)[0]
