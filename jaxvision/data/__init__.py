"""Data sets, readers, transforms and the input pipeline; everything runs on the host, in numpy.

Names are loaded at first use: Grain and TFDS take a while that a model need not wait for.
"""

import importlib

ROOMS = {
    "Batches": "pipeline",
    "ClassificationRows": "rows",
    "CocoDetection": "coco",
    "DetectionRows": "rows",
    "DetectionSource": "source",
    "DigitCrops": "digits",
    "DigitScenes": "digit_scenes",
    "DigitScenesSource": "digit_scenes",
    "Digits": "digits",
    "Example": "source",
    "ImageFolder": "folder",
    "PreparedDetection": "prepared",
    "PreparedImages": "prepared",
    "SegmentationRows": "rows",
    "SemanticMaps": "semantic",
    "Source": "source",
    "Subset": "source",
    "VocDetection": "voc",
    "WithBackground": "semantic",
    "WithRegions": "regions",
    "batches": "pipeline",
    "border_weights": "masks",
    "central_crop": "transforms",
    "cityscapes": "semantic",
    "coco_panoptic": "semantic",
    "colour_jitter": "transforms",
    "cover": "rows",
    "elastic": "transforms",
    "fit": "rows",
    "flip_horizontal": "transforms",
    "load_digit_scenes": "digit_scenes",
    "nearest_shape": "batching",
    "random_crop": "transforms",
    "random_resized_crop": "transforms",
    "read_map": "semantic",
    "resize": "transforms",
    "scale_jitter": "transforms",
    "selective_search": "regions",
    "semantic_folders": "semantic",
    "voc_segmentation": "semantic",
    "with_selective_search": "regions",
}

__all__ = list(ROOMS)


def __getattr__(name: str):
    if name not in ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxvision.data.{ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *ROOMS})
