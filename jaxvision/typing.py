"""Array aliases and the structures that detectors share.

The coordinate convention, stated once for the whole library: boxes are ``xyxy`` (left, top, right, bottom), float,
in pixels of the (padded) input image, and continuous: the image spans ``[0, w] x [0, h]``, the pixel in column ``i``
covers ``[i, i + 1]`` and has its centre at ``i + 0.5``, and a box is ``right - left`` wide (no "+1"). Other formats
carry a suffix (``_cxcywh``). Images are NHWC. Labels are contiguous ``0 ... K-1``; background never leaves a model.

Masks of the ground truth lie on a grid that spans a frame of their own: row i of an m x m mask whose frame reaches from
``top`` to ``bottom`` covers ``[top + i * h / m, top + (i + 1) * h / m]`` with ``h = bottom - top``, columns likewise,
and each cell holds the share of it that the object covers. The frame is the object's box as the data set has it, on
whole pixels, somewhat longer where that gives each pixel a whole number of cells; it moves with the image and is never
clipped, so it may reach beyond the image, where the box does not. Without frames a mask is a plane, and spans the
padded input.

A map of classes has one class a pixel, ``0 ... K-1``; 255 (``IGNORE``) stands where no class is known or wanted, and
neither trains nor counts.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Key, UInt8

Array = jax.Array | np.ndarray
Variables = Mapping[str, Any]  # Flax variables: {"params": ..., "batch_stats": ...}
Features = dict[str, Float[Array, "b _ _ _"]]  # maps by name
Classified = tuple[Float[Array, "b k"], Features]  # a classifier's logits, or its last map pooled, and its maps
Segmented = tuple[Float[Array, "b h w k"], Features]  # a segmenter's logits at the size of the images, and its maps

IGNORE = 255  # in a map of classes

__all__ = [
    "IGNORE",
    "Array",
    "Bool",
    "Classified",
    "Detections",
    "Features",
    "Float",
    "Int",
    "Integer",
    "Key",
    "Regions",
    "Segment",
    "Segmentation",
    "Segmented",
    "Targets",
    "UInt8",
    "Variables",
]


class Targets(NamedTuple):
    """Ground truth of a batch (or of one image, without the leading axis), padded to ``n`` objects.

    Rows with ``valid=False`` are padding: whatever they hold is ignored. Images without objects have no valid row.
    """

    boxes: Float[Array, "*b n 4"]  # xyxy, pixels of the padded input
    labels: Int[Array, "*b n"]  # 0 ... K-1
    valid: Bool[Array, "*b n"]
    # Planes of the padded input (bool, or float in [0, 1]), or, with mask_boxes, shares of 255 on the frames' grids.
    masks: Bool[Array, "*b n h w"] | Float[Array, "*b n h w"] | UInt8[Array, "*b n m m"] | None = None
    mask_boxes: Float[Array, "*b n 4"] | None = None  # the masks' frames; None where masks are planes
    keypoints: Float[Array, "*b n k 3"] | None = None  # x, y in pixels, visibility 0, 1 or 2 as in COCO


class Regions(NamedTuple):
    """Boxes that may hold an object, such as those of selective search, for the detectors that are given them; padded
    to ``n`` rows with ``valid=False``."""

    boxes: Float[Array, "*b n 4"]  # xyxy, pixels of the padded input
    valid: Bool[Array, "*b n"]


class Detections(NamedTuple):
    """What a detector found, best score first; ``n`` is fixed and rows beyond the last detection have
    ``valid=False``, label -1, score 0 and a zero box."""

    boxes: Float[Array, "*b n 4"]
    scores: Float[Array, "*b n"]  # probabilities
    labels: Int[Array, "*b n"]  # 0 ... K-1, or -1
    valid: Bool[Array, "*b n"]
    masks: Float[Array, "*b n m m"] | None = None  # probabilities on the box's own grid; see ops.masks.paste
    keypoints: Float[Array, "*b n k 3"] | None = None
    dense: Any = None


class Segmentation(NamedTuple):
    """The class of every pixel of a batch (or of one image, without the leading axis)."""

    labels: Int[Array, "*b h w"]  # 0 ... K-1, or -1 in the padding
    probabilities: Float[Array, "*b h w k"]  # of the classes; 0 in the padding
    valid: Bool[Array, "*b h w"]  # inside the image


class Segment(NamedTuple):
    """Pixels of one image, and a class that they may be of."""

    label: int | Int[Array, ""]
    mask: Bool[Array, "h w"]
