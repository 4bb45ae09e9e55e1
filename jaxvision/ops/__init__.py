"""Kernels: arrays in, arrays out. ``ops.nms`` and ``ops.receptive_field`` are the functions: import the names of those
modules from ``jaxvision.ops.nms`` and ``jaxvision.ops.receptive_field``."""

from jaxvision.ops import anchors, boxes, masks, matching
from jaxvision.ops.convolution import conv, conv_transpose
from jaxvision.ops.nms import batched_nms, nms, relaxed_nms, soft_nms
from jaxvision.ops.normalize import normalize
from jaxvision.ops.pooling import (
    adaptive_avg_pool,
    avg_pool,
    local_response_norm,
    max_pool,
    max_pool_with_indices,
    max_unpool,
    soft_max_pool_with_indices,
)
from jaxvision.ops.receptive_field import ReceptiveField, effective_receptive_field, receptive_field
from jaxvision.ops.resize import resize
from jaxvision.ops.roi import assign_levels, multilevel_roi_align, roi_align, roi_pool
from jaxvision.ops.select import best_scores, select

__all__ = [
    "ReceptiveField",
    "adaptive_avg_pool",
    "anchors",
    "assign_levels",
    "avg_pool",
    "batched_nms",
    "best_scores",
    "boxes",
    "conv",
    "conv_transpose",
    "effective_receptive_field",
    "local_response_norm",
    "masks",
    "matching",
    "max_pool",
    "max_pool_with_indices",
    "max_unpool",
    "multilevel_roi_align",
    "nms",
    "normalize",
    "receptive_field",
    "relaxed_nms",
    "resize",
    "roi_align",
    "roi_pool",
    "select",
    "soft_max_pool_with_indices",
    "soft_nms",
]
