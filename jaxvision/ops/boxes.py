"""Box formats, overlap measures and the regression code of the R-CNN family.

Boxes are ``xyxy`` in pixels (see ``jaxvision.typing``) unless a name says otherwise. A side whose right end lies
left of its left end counts as a side of length zero, so an inverted box is an empty one. Nothing here returns NaN
for finite boxes, neither as value nor as derivative; forward mode, reverse mode and second derivatives all work.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxvision.typing import Array, Float, Int

Number = int | float
Measure = Callable[[Float[Array, "*b 4"], Float[Array, "*b 4"]], Float[Array, "*b"]]

# torchvision and Detectron2 let a regression enlarge a side at most 1000 / 16 times.
MAX_LOG_SCALE = math.log(1000 / 16)
DISTANCE_EPS = 1e-7  # torchvision's, added to the squared diagonal (DIoU) and to alpha's denominator (CIoU)


def area(boxes: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    """Area in square pixels; zero for empty and inverted boxes. Gradients: with respect to the boxes."""
    left, top, right, bottom = _sides(boxes)
    return (right - left) * (bottom - top)


def xyxy_to_xywh(boxes: Float[Array, "*b 4"]) -> Float[Array, "*b 4"]:
    """(left, top, right, bottom) to (left, top, width, height), the format of COCO's files."""
    left, top, right, bottom = _columns(boxes)
    return jnp.stack([left, top, right - left, bottom - top], axis=-1)


def xywh_to_xyxy(boxes: Float[Array, "*b 4"]) -> Float[Array, "*b 4"]:
    """(left, top, width, height) to (left, top, right, bottom)."""
    left, top, width, height = _columns(boxes)
    return jnp.stack([left, top, left + width, top + height], axis=-1)


def xyxy_to_cxcywh(boxes: Float[Array, "*b 4"]) -> Float[Array, "*b 4"]:
    """(left, top, right, bottom) to (centre x, centre y, width, height)."""
    left, top, right, bottom = _columns(boxes)
    return jnp.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], axis=-1)


def cxcywh_to_xyxy(boxes: Float[Array, "*b 4"]) -> Float[Array, "*b 4"]:
    """(centre x, centre y, width, height) to (left, top, right, bottom)."""
    x, y, width, height = _columns(boxes)
    return jnp.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=-1)


def clip(
    boxes: Float[Array, "*b 4"], image_size: tuple[Number, Number] | Float[Array, "2"] | Int[Array, "2"]
) -> Float[Array, "*b 4"]:
    """Cut boxes at the border of an image of ``image_size`` = (height, width) pixels, given as numbers or as an array.

    A box that lies outside becomes an empty one on the border. Gradients: one inside, zero for sides that were cut.
    """
    left, top, right, bottom = _columns(boxes)
    height, width = (jnp.asarray(image_size[i], left.dtype) for i in (0, 1))
    across, down = (lambda x: jnp.clip(x, 0, width)), (lambda y: jnp.clip(y, 0, height))
    return jnp.stack([across(left), down(top), across(right), down(bottom)], axis=-1)


def enlarge(boxes: Float[Array, "*b 4"], factor: Number) -> Float[Array, "*b 4"]:
    """Boxes with sides ``factor`` times as long around the same centres. Gradients: with respect to the boxes."""
    x, y, width, height = _columns(xyxy_to_cxcywh(boxes))
    return cxcywh_to_xyxy(jnp.stack([x, y, factor * width, factor * height], axis=-1))


def iou(a: Float[Array, "*b 4"], b: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    """Intersection over union, in [0, 1]; zero where both boxes are empty.

    Gradients: with respect to both boxes; zero where the boxes do not touch.
    """
    intersection, union = _intersection_union(a, b)
    return _ratio(intersection, union)


def giou(a: Float[Array, "*b 4"], b: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    """Generalised IoU (arXiv:1902.09630), in [-1, 1]: IoU less the share of the enclosing box that neither covers.

    Where the enclosing box is empty the share is zero (torchvision: NaN). Gradients: with respect to both boxes, also
    where they do not touch.
    """
    intersection, union = _intersection_union(a, b)
    width, height = _enclosing(a, b)
    enclosing = width * height
    return _ratio(intersection, union) - _ratio(enclosing - union, enclosing)


def diou(a: Float[Array, "*b 4"], b: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    """Distance IoU (arXiv:1911.08287), in [-1, 1]: IoU less the squared distance of the centres over the squared
    diagonal of the enclosing box. Gradients: with respect to both boxes, also where they do not touch.
    """
    width, height = _enclosing(a, b)
    (left_a, top_a, right_a, bottom_a), (left_b, top_b, right_b, bottom_b) = _sides(a), _sides(b)
    x = (left_a + right_a - left_b - right_b) / 2
    y = (top_a + bottom_a - top_b - bottom_b) / 2
    return iou(a, b) - (x**2 + y**2) / (width**2 + height**2 + DISTANCE_EPS)


def ciou(a: Float[Array, "*b 4"], b: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    """Complete IoU (arXiv:1911.08287, equations 8 to 11): DIoU less alpha times the difference v of aspect ratios.

    Gradients: with respect to both boxes, with alpha held constant as in the paper.
    """
    v = (4 / math.pi**2) * (_aspect_angle(a) - _aspect_angle(b)) ** 2
    alpha = jax.lax.stop_gradient(v / (1 - iou(a, b) + v + DISTANCE_EPS))
    return diou(a, b) - alpha * v


def pairwise(measure: Measure, a: Float[Array, "n 4"], b: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """Table of ``measure(a[i], b[j])``, for example ``pairwise(iou, a, b)``."""
    return jax.vmap(jax.vmap(measure, (None, 0)), (0, None))(a, b)


def encode(
    boxes: Float[Array, "*b 4"],
    anchors: Float[Array, "*b 4"],
    *,
    weights: tuple[Number, Number, Number, Number] = (1, 1, 1, 1),
) -> Float[Array, "*b 4"]:
    """Regression targets that move each anchor onto its box (R-CNN, arXiv:1311.2524, appendix C).

    Offset of the centre in units of the anchor's sides, and log of the ratio of the sides, each times its weight.
    A side that is not positive, of box or anchor, counts as one pixel, so padding gives finite targets.
    Gradients: with respect to boxes and anchors.
    """
    x, y, width, height = _columns(xyxy_to_cxcywh(boxes))
    anchor_x, anchor_y, anchor_width, anchor_height = _columns(xyxy_to_cxcywh(anchors))
    width, height, anchor_width, anchor_height = (
        jnp.where(side > 0, side, 1) for side in (width, height, anchor_width, anchor_height)
    )
    wx, wy, ww, wh = weights
    return jnp.stack(
        [
            wx * (x - anchor_x) / anchor_width,
            wy * (y - anchor_y) / anchor_height,
            ww * jnp.log(width / anchor_width),
            wh * jnp.log(height / anchor_height),
        ],
        axis=-1,
    )


def decode(
    deltas: Float[Array, "*b 4"],
    anchors: Float[Array, "*b 4"],
    *,
    weights: tuple[Number, Number, Number, Number] = (1, 1, 1, 1),
    max_log_scale: float = MAX_LOG_SCALE,
) -> Float[Array, "*b 4"]:
    """Boxes from regression outputs, the inverse of ``encode``.

    The log scales are clamped from above at ``max_log_scale`` before the exponential. No box is clipped to an image.
    Gradients: with respect to deltas and anchors; zero for a log scale beyond the clamp.
    """
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(_columns(deltas), weights))
    x, y, width, height = _columns(xyxy_to_cxcywh(anchors))
    centre_and_size = [
        x + dx * width,
        y + dy * height,
        jnp.exp(jnp.minimum(dw, max_log_scale)) * width,
        jnp.exp(jnp.minimum(dh, max_log_scale)) * height,
    ]
    return cxcywh_to_xyxy(jnp.stack(centre_and_size, axis=-1))


def _columns(boxes):
    boxes = jnp.asarray(boxes)
    return boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]


def _sides(boxes):
    """The four sides with right >= left and bottom >= top."""
    left, top, right, bottom = _columns(boxes)
    return left, top, jnp.maximum(left, right), jnp.maximum(top, bottom)


def _intersection_union(a, b):
    (left_a, top_a, right_a, bottom_a), (left_b, top_b, right_b, bottom_b) = _sides(a), _sides(b)
    width = jnp.maximum(jnp.minimum(right_a, right_b) - jnp.maximum(left_a, left_b), 0)
    height = jnp.maximum(jnp.minimum(bottom_a, bottom_b) - jnp.maximum(top_a, top_b), 0)
    intersection = width * height
    area_a = (right_a - left_a) * (bottom_a - top_a)
    area_b = (right_b - left_b) * (bottom_b - top_b)
    return intersection, area_a + area_b - intersection


def _enclosing(a, b):
    """Width and height of the smallest box around both."""
    (left_a, top_a, right_a, bottom_a), (left_b, top_b, right_b, bottom_b) = _sides(a), _sides(b)
    width = jnp.maximum(right_a, right_b) - jnp.minimum(left_a, left_b)
    height = jnp.maximum(bottom_a, bottom_b) - jnp.minimum(top_a, top_b)
    return width, height


def _ratio(numerator, denominator):
    """Quotient, zero where the denominator is; the inner ``where`` keeps its derivative finite there."""
    positive = denominator > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1), 0)


def _aspect_angle(boxes):
    """atan(width / height), zero for a point; the inner ``where`` keeps its derivative finite there."""
    left, top, right, bottom = _sides(boxes)
    width, height = right - left, bottom - top
    point = (width == 0) & (height == 0)
    return jnp.where(point, 0, jnp.arctan2(width, jnp.where(point, 1, height)))
