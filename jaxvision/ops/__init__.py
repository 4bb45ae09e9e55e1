"""Kernels: arrays in, arrays out. ``ops.nms`` is the function: import its module's names from ``jaxvision.ops.nms``."""

from jaxvision.ops import anchors, boxes, masks, matching
from jaxvision.ops.convolution import conv, conv_transpose
from jaxvision.ops.nms import batched_nms, nms, relaxed_nms, soft_nms
from jaxvision.ops.pooling import (
    adaptive_avg_pool,
    avg_pool,
    local_response_norm,
    max_pool,
    max_pool_with_indices,
    max_unpool,
    soft_max_pool_with_indices,
)
from jaxvision.ops.resize import resize
from jaxvision.ops.roi import assign_levels, multilevel_roi_align, roi_align, roi_pool

__all__ = [
    "adaptive_avg_pool",
    "anchors",
    "assign_levels",
    "avg_pool",
    "batched_nms",
    "boxes",
    "conv",
    "conv_transpose",
    "local_response_norm",
    "masks",
    "matching",
    "max_pool",
    "max_pool_with_indices",
    "max_unpool",
    "multilevel_roi_align",
    "nms",
    "relaxed_nms",
    "resize",
    "roi_align",
    "roi_pool",
    "soft_max_pool_with_indices",
    "soft_nms",
]
