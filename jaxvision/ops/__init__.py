"""Kernels: arrays in, arrays out. ``ops.nms`` is the function: import its module's names from ``jaxvision.ops.nms``."""

from jaxvision.ops import anchors, boxes, matching
from jaxvision.ops.convolution import conv, conv_transpose
from jaxvision.ops.nms import batched_nms, nms, relaxed_nms, soft_nms
from jaxvision.ops.roi import assign_levels, multilevel_roi_align, roi_align, roi_pool

__all__ = [
    "anchors",
    "assign_levels",
    "batched_nms",
    "boxes",
    "conv",
    "conv_transpose",
    "matching",
    "multilevel_roi_align",
    "nms",
    "relaxed_nms",
    "roi_align",
    "roi_pool",
    "soft_nms",
]
