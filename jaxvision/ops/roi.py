"""Pooling of boxes: RoIAlign (Mask R-CNN, arXiv:1703.06870, section 3), RoIPool (Fast R-CNN, arXiv:1504.08083,
section 2.1) and the choice of a pyramid level (FPN, arXiv:1612.03144, eq. 1).

RoIAlign is trilinear in features, vertical and horizontal weights, and boxes enter through the weights alone. It has
two forms. With a fixed number of samples the corners are gathered, one gather of the concatenated levels; with the
adaptive number, which depends on the box, the weights of all samples of a bin are summed into one row of a matrix.
"""

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxvision.typing import Array, Float, Int

__all__ = ["assign_levels", "multilevel_roi_align", "roi_align", "roi_pool"]


def roi_align(
    features: Float[Array, "h w c"],
    boxes: Float[Array, "n 4"],
    *,
    size: tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Float[Array, "n oh ow c"]:
    """Mean of bilinear samples in each bin of each box, as torchvision and Detectron2 compute it.

    boxes: xyxy; times ``spatial_scale`` they are cells of ``features``. ``aligned=True`` shifts them by half a cell, so
    that cell ``i`` has its centre at ``i + 0.5``; without it the shift is missing and a box is at least one cell wide.
    sampling_ratio: samples per bin and axis; 0 or less means ``ceil(box size / bins)``, separately for each box and
    axis.
    Border: a sample further than one cell outside the map counts as 0; nearer ones take the value at the border.
    Gradients: to features; to boxes through the bilinear weights: the slope of the cell that a sample lies in, and zero
    for a sample that the border rule moved or dropped, for the size of a box narrower than one cell (``aligned=False``)
    and for the adaptive number of samples.
    Raises: ValueError if a side of ``size`` is below 1.
    """
    levels = np.zeros(boxes.shape[0], np.int32)
    return multilevel_roi_align(
        [features],
        boxes,
        levels,
        size=size,
        spatial_scales=(spatial_scale,),
        sampling_ratio=sampling_ratio,
        aligned=aligned,
    )


def multilevel_roi_align(
    features: Sequence[Float[Array, "_ _ c"]],
    boxes: Float[Array, "n 4"],
    levels: Int[Array, " n"],
    *,
    size: tuple[int, int],
    spatial_scales: tuple[float, ...],
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Float[Array, "n oh ow c"]:
    """``roi_align`` of each box on its own level of a pyramid.

    levels: position in ``features``, clamped into its range. Everything else, gradients too, as in ``roi_align``. The
    adaptive form computes every level and adds up; prefer ``sampling_ratio=2`` where the choice is free.
    Raises: ValueError if a side of ``size`` is below 1, or ``features`` and ``spatial_scales`` differ in length.
    """
    if min(size) < 1:
        raise ValueError(f"size={size}: both sides of the output grid must be at least 1")
    if len(features) != len(spatial_scales) or not features:
        raise ValueError(f"{len(features)} levels but spatial_scales={spatial_scales}: give one scale a level")
    features = [jnp.asarray(f) for f in features]
    levels = jnp.clip(jnp.asarray(levels, jnp.int32), 0, len(features) - 1)
    boxes = jnp.asarray(boxes)
    if sampling_ratio <= 0:
        pooled = [
            _pool_adaptive(f, boxes * scale, selected=levels == level, size=size, aligned=aligned)
            for level, (f, scale) in enumerate(zip(features, spatial_scales, strict=True))
        ]
        return sum(pooled[1:], pooled[0])

    heights, widths = (np.asarray([f.shape[axis] for f in features], np.int32) for axis in (0, 1))
    starts = np.concatenate([[0], np.cumsum(heights * widths)[:-1]]).astype(np.int32)
    start, height, width = (jnp.asarray(table)[levels] for table in (starts, heights, widths))
    scale = jnp.asarray(spatial_scales, boxes.dtype)[levels]
    y_bins, x_bins = _bins(boxes * scale[:, None], size=size, aligned=aligned)
    rows, row_weights = _corners(*y_bins, length=height, samples=sampling_ratio)
    columns, column_weights = _corners(*x_bins, length=width, samples=sampling_ratio)
    cells = jnp.concatenate([f.reshape(-1, f.shape[-1]) for f in features])
    rows = start[:, None, None] + rows * width[:, None, None]
    return _pool_corners(cells, rows, columns, row_weights, column_weights).astype(cells.dtype)


def _divide(x, bins):
    """x / bins rounded once, as torch has it: XLA would multiply by 1 / bins, and so make 301 / 7 more than 43."""
    return x / (bins + 0 * lax.stop_gradient(x))


def _bins(boxes, *, size, aligned):
    """(first edge [n, p], length [n, p]) of the bins along y and along x; boxes in cells."""
    low, high = boxes[:, :2], boxes[:, 2:]
    if aligned:
        low, high = low - 0.5, high - 0.5
    extent = high - low if aligned else jnp.maximum(high - low, 1)

    def axis(i, bins):
        length = _divide(extent[:, i], bins)
        edges = low[:, i, None] + length[:, None] * jnp.arange(bins, dtype=boxes.dtype)[None, :]
        return edges, jnp.broadcast_to(length[:, None], edges.shape)

    return axis(1, size[0]), axis(0, size[1])


def _corners(edge, length_of_bin, *, length, samples):
    """Cells [n, p, 2 s] that the samples of each bin lie between, and their weights, border rule and mean included."""
    offset = (np.arange(samples) + 0.5) / samples
    position = edge[..., None] + length_of_bin[..., None] * jnp.asarray(offset, edge.dtype)[None, None, :]
    last = length[:, None, None] - 1
    inside = (position >= -1) & (position <= length[:, None, None])
    position = jnp.clip(position, 0, last.astype(edge.dtype))
    lower = jnp.clip(jnp.floor(lax.stop_gradient(position)).astype(jnp.int32), 0, jnp.maximum(last - 1, 0))
    fraction = position - lower
    cells = jnp.stack([lower, jnp.minimum(lower + 1, last)], axis=-1)
    weights = jnp.stack([1 - fraction, fraction], axis=-1) * jnp.where(inside, 1 / samples, 0)[..., None]
    flat = (*edge.shape, 2 * samples)
    return cells.reshape(flat), weights.reshape(flat).astype(edge.dtype)


# Measured on two cores (512 boxes, four levels of a 640 x 480 image, 256 channels, 7 x 7, 2 samples; torchvision 158 ms
# forward, 600 ms with gradient). Box by box, so that its corners stay in cache: 35 ms, gradient 32 ms (a scatter of
# rows of channels). All boxes in one gather: 155 and 134 ms. A sum of one gather a corner: 21 ms, but 200-500 ms once
# XLA fuses it into what follows, and a scatter over the whole map a corner, 265 ms. Two dense products a level: 835,
# 1,010 ms.
def _pool_corners(cells, *boxes):
    """Weighted sum of corners in each bin: cells [l, c]; boxes: rows, columns and their weights, each [n, p, k]."""
    one = partial(_pool_corners_of_one_box, cells)
    return lax.platform_dependent(
        *boxes,
        cpu=lambda *boxes: lax.map(lambda box: one(*box), boxes),
        default=lambda *boxes: lax.map(lambda box: one(*box), boxes, batch_size=64),  # wide enough for an accelerator
    )


def _pool_corners_of_one_box(cells, rows, columns, row_weights, column_weights):
    bins = rows.shape[0], columns.shape[0]
    index = (rows[:, None, :, None] + columns[None, :, None, :]).reshape(*bins, -1)
    weights = (row_weights[:, None, :, None] * column_weights[None, :, None, :]).reshape(*bins, -1)
    corners = cells.at[index].get(mode="promise_in_bounds")
    return jnp.einsum("pqk,pqkc->pqc", weights, corners, precision="highest")


def _pool_adaptive(features, boxes, *, selected, size, aligned):
    """Two products a box, boxes in chunks so that memory stays bounded; boxes that are not selected give zeros."""
    rows, columns = adaptive_weights(boxes, size=size, plane=features.shape[:2], aligned=aligned)

    def one(box):
        rows, columns = box
        by_rows = jnp.einsum("ph,hwc->pwc", rows, features, precision="highest")
        return jnp.einsum("qw,pwc->pqc", columns, by_rows, precision="highest")

    boxes = (rows * selected[:, None, None], columns)
    return lax.map(one, boxes, batch_size=16).astype(features.dtype)


def adaptive_weights(
    boxes: Float[Array, "n 4"], *, size: tuple[int, int], plane: tuple[int, int], aligned: bool = False
) -> tuple[Float[Array, "n p h"], Float[Array, "n q w"]]:
    """``roi_align`` with the adaptive number of samples as two matrices a box: ``rows @ map @ columns.T``.

    boxes: xyxy, cells of the plane (h, w). Gradients to boxes as in ``roi_align``.
    """
    y_bins, x_bins = _bins(boxes, size=size, aligned=aligned)
    return _bin_weights(*y_bins, length=plane[0]), _bin_weights(*x_bins, length=plane[1])


def _bin_weights(edge, length_of_bin, *, length):
    """[n, p, length]: weight of each cell of an axis in the mean over the adaptive samples of each bin.

    The samples of a bin are at least half a cell apart if there are two, and two thirds if there are more. So at most
    three touch a cell; looking at four from the first one on is enough, whatever the size of the box.

    They are added one by one, not by a reduction. That is faster, and XLA's CPU backend (jax 0.10.2) returns garbage
    where it fuses a reduction with a product by a constant, which features may be: ``x.sum(-1) @ jnp.ones((128, 8))``.
    """
    samples = jnp.ceil(lax.stop_gradient(length_of_bin))[..., None]
    step = length_of_bin[..., None] / jnp.maximum(samples, 1)
    edge = edge[..., None]
    cell = jnp.arange(length, dtype=edge.dtype)[None, None, :]
    spacing = lax.stop_gradient(jnp.where(samples > 1, step, 1))
    first = jnp.floor((cell - 1 - lax.stop_gradient(edge)) * (1 / spacing) - 0.5)
    first = jnp.where(samples > 1, jnp.maximum(first, 0), 0)
    total = jnp.zeros_like(first)
    for k in (first + i for i in range(4)):
        position = edge + (k + 0.5) * step
        counts = (k < samples) & (position >= -1) & (position <= length)
        hat = jnp.maximum(1 - jnp.abs(jnp.clip(position, 0, length - 1) - cell), 0)
        total = total + jnp.where(counts, hat, 0)
    return total / jnp.maximum(samples, 1)


def assign_levels(
    boxes: Float[Array, "*n 4"],
    *,
    num_levels: int,
    lowest_level: int = 2,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
) -> Int[Array, "*n"]:
    """Position 0 ... num_levels-1 of the pyramid level for each box (FPN, eq. 1): a box of ``canonical_size`` squared
    pixels belongs to level ``canonical_level``, one of twice that side to the next.

    boxes: xyxy, pixels of the input image. ``lowest_level`` is the name of position 0. Boxes without area get
    position 0. No gradients: the result is an integer.
    Raises: ValueError if num_levels < 1.
    """
    if num_levels < 1:
        raise ValueError(f"num_levels={num_levels}: a pyramid has at least one level")
    boxes = lax.stop_gradient(jnp.asarray(boxes))
    sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    side = jnp.maximum(jnp.sqrt(sides[..., 0] * sides[..., 1]), jnp.finfo(boxes.dtype).tiny)
    level = jnp.floor(canonical_level + jnp.log2(side / canonical_size) + 1e-6)
    return jnp.clip(level - lowest_level, 0, num_levels - 1).astype(jnp.int32)


def roi_pool(
    features: Float[Array, "h w c"],
    boxes: Float[Array, "n 4"],
    *,
    size: tuple[int, int],
    spatial_scale: float = 1.0,
) -> Float[Array, "n oh ow c"]:
    """Maximum over the cells of each bin of each box, as torchvision computes it.

    boxes: xyxy; times ``spatial_scale`` they are cells, rounded (half away from zero) and inclusive: at least one cell.
    Neighbouring bins may share cells. Border: bins are clipped to the map; a bin that is left empty gives 0.
    Gradients: to the (first) maximum of each bin; to boxes zero, because of the rounding. ``roi_align`` has both.
    Raises: ValueError if a side of ``size`` is below 1.
    """
    if min(size) < 1:
        raise ValueError(f"size={size}: both sides of the output grid must be at least 1")
    features = jnp.asarray(features)
    height, width, channels = features.shape
    boxes = lax.stop_gradient(jnp.asarray(boxes)) * spatial_scale
    boxes = jnp.sign(boxes) * jnp.floor(jnp.abs(boxes) + 0.5)
    rows = _integer_bins(boxes[:, 1], boxes[:, 3], bins=size[0], length=height)
    columns = _integer_bins(boxes[:, 0], boxes[:, 2], bins=size[1], length=width)
    cells = features.reshape(height * width, channels)
    argmax = lax.map(lambda box: _bin_argmax(lax.stop_gradient(cells), *box, width=width), (rows, columns))
    pooled = jnp.take_along_axis(cells, jnp.maximum(argmax, 0).reshape(-1, channels), axis=0)
    return jnp.where(argmax >= 0, pooled.reshape(argmax.shape), 0)


def _integer_bins(low, high, *, bins, length):
    """First cell and end [n, p] of each bin, clipped to the map."""
    size = _divide(jnp.maximum(high - low + 1, 1), bins)
    i = jnp.arange(bins, dtype=low.dtype)[None, :]
    first = low[:, None] + jnp.floor(i * size[:, None])
    end = low[:, None] + jnp.ceil((i + 1) * size[:, None])
    return tuple(jnp.clip(edge, 0, length).astype(jnp.int32) for edge in (first, end))


def _bin_argmax(cells, rows, columns, *, width):
    """Index [p, q, c] of the first maximum of each bin of one box, -1 if the bin is empty.

    The loops run as far as the largest bin, which only the values of the box tell; nothing is differentiated here.
    """
    (top, bottom), (left, right) = rows, columns
    shape = (top.size, left.size, cells.shape[1])

    def cell(dy, dx, best):
        value, index = best
        y, x = (top + dy)[:, None], (left + dx)[None, :]
        here = jnp.where((y < bottom[:, None]) & (x < right[None, :]), y * width + x, -1)[..., None]
        candidate = cells.at[here[..., 0]].get(mode="clip")
        better = (here >= 0) & ((candidate > value) | (index < 0))
        return jnp.where(better, candidate, value), jnp.where(better, here, index)

    def row(dy, best):
        return lax.fori_loop(0, jnp.max(right - left), lambda dx, best: cell(dy, dx, best), best)

    start = (jnp.full(shape, -jnp.inf, cells.dtype), jnp.full(shape, -1, jnp.int32))
    return lax.fori_loop(0, jnp.max(bottom - top), row, start)[1]
