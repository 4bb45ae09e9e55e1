"""What a batch holds of each example: one class a task, with the row of an example and that of a gap."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxvision.data.masks import on_boxes
from jaxvision.data.regions import thinned
from jaxvision.data.source import Example, size_of
from jaxvision.data.transforms import central_crop, resize
from jaxvision.typing import IGNORE, Regions, Targets

__all__ = ["ClassificationRows", "DetectionRows", "Rows", "SegmentationRows", "cover", "fit"]

Batch = dict[str, Any]


@runtime_checkable
class Rows(Protocol):
    """Examples as rows of batches. It may be copied to other processes."""

    def prepare(self, example: Example) -> Example:
        """An example before its transforms."""

    def frame(self, example: Example, shape: tuple[int, int]) -> Example:
        """The example at the size in which it goes into ``shape`` = (height, width)."""

    def row(self, example: Example, shape: tuple[int, int], dropped: Any) -> Batch:
        """The row of an example in a batch of ``shape`` = (height, width). ``dropped.add(reason, count, image_id)``
        counts what is left out."""

    def empty(self, shape: tuple[int, int]) -> Batch:
        """The row of a missing example, with ``valid=False``."""


@dataclass(frozen=True)
class ClassificationRows:
    """``images`` uint8 [h, w, 3], ``labels`` int32 and ``valid`` bool.

    An image of another size is scaled to cover the shape and cropped to its middle.
    """

    def prepare(self, example: Example) -> Example:
        return example

    def frame(self, example: Example, shape: tuple[int, int]) -> Example:
        return cover(example, shape)

    def row(self, example: Example, shape: tuple[int, int], dropped: Any) -> Batch:
        return {"images": self.frame(example, shape)["image"], "labels": np.int32(example["label"]), "valid": np.True_}

    def empty(self, shape: tuple[int, int]) -> Batch:
        return {"images": np.zeros((*shape, 3), np.uint8), "labels": np.int32(0), "valid": np.False_}


@dataclass(frozen=True)
class DetectionRows:
    """``images`` uint8 [h, w, 3], zero in the padding at the right and bottom; ``image_sizes`` and ``original_sizes``
    float32 [2], (h, w) inside the padding and of the image as the data set has it; ``image_ids`` int32; ``valid`` bool;
    ``targets``, and with ``max_regions`` ``regions``.

    Images that do not fit are shrunk. Crowd regions and boxes without area never become targets; of more than
    ``max_objects`` the largest stay. Masks, if wanted, are planes of the shape, or with ``mask_side`` grids of so many
    cells a side on their own boxes. Of more than ``max_regions`` of the source's regions (``with_selective_search``)
    some are left out evenly.
    """

    max_objects: int
    with_masks: bool = True
    mask_side: int | None = None
    num_keypoints: int = 0
    max_regions: int = 0

    def prepare(self, example: Example) -> Example:
        for name, wanted in (("masks", self.with_masks), ("keypoints", self.num_keypoints)):
            if wanted and name not in example:
                raise ValueError(f"{name} were asked for, but image {example['image_id']} of this source has none")
        if not self.with_masks:
            return {name: value for name, value in example.items() if name not in ("masks", "mask_boxes")}
        if self.mask_side is not None:
            return on_boxes(example, self.mask_side)
        if "mask_boxes" in example:
            raise ValueError("planes of masks were asked for, but this source gives them on their boxes; set mask_side")
        return example

    def frame(self, example: Example, shape: tuple[int, int]) -> Example:
        return fit(example, shape)

    def row(self, example: Example, shape: tuple[int, int], dropped: Any) -> Batch:
        example = self.frame(example, shape)
        h, w = example["image"].shape[:2]
        images = np.zeros((*shape, 3), np.uint8)
        images[:h, :w] = example["image"]
        row = {
            "images": images,
            "image_sizes": np.array([h, w], np.float32),
            "original_sizes": np.array(size_of(example), np.float32),
            "image_ids": np.int32(example["image_id"]),
            "valid": np.True_,
            "targets": self._targets(example, shape, dropped),
        }
        return row | ({"regions": self._regions(example, dropped)} if self.max_regions else {})

    def empty(self, shape: tuple[int, int]) -> Batch:
        nothing: Example = {
            "image": np.zeros((*shape, 3), np.uint8),
            "image_id": -1,
            "boxes": np.zeros((0, 4), np.float32),
            "labels": np.zeros(0, np.int32),
            "iscrowd": np.zeros(0, bool),
            "masks": np.zeros((0, *shape), bool),
            "keypoints": np.zeros((0, self.num_keypoints, 3), np.float32),
            "regions": np.zeros((0, 4), np.float32),
        }
        return self.row(self.prepare(nothing), shape, None) | {"valid": np.False_}

    def _targets(self, example: Example, shape: tuple[int, int], dropped: Any) -> Targets:
        """The objects of an example that can be targets, padded to ``max_objects`` rows and to the shape."""
        kept = self._kept(example, dropped)

        def padded(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            values = example[name][kept]
            result = np.zeros((self.max_objects, *shape), dtype)
            result[tuple(slice(size) for size in values.shape)] = values
            return result

        grids = "mask_boxes" in example
        plane = example["masks"].shape[1:] if grids else shape
        return Targets(
            boxes=padded("boxes", (4,), np.float32),
            labels=padded("labels", (), np.int32),
            valid=np.arange(self.max_objects) < len(kept),
            masks=padded("masks", plane, np.uint8 if grids else bool) if self.with_masks else None,
            mask_boxes=padded("mask_boxes", (4,), np.float32) if grids else None,
            keypoints=padded("keypoints", (self.num_keypoints, 3), np.float32) if self.num_keypoints else None,
        )

    def _kept(self, example: Example, dropped: Any) -> np.ndarray:
        """The objects that become targets: no crowds, none without area, and of too many the largest."""
        sides = example["boxes"][:, 2:] - example["boxes"][:, :2]
        usable = ~example["iscrowd"] & (sides > 0).all(1)
        kept = np.flatnonzero(usable)
        without_area = int((~usable & ~example["iscrowd"]).sum())
        if without_area:
            dropped.add("the box has no area", without_area, example["image_id"])
        if len(kept) > self.max_objects:
            largest = np.argsort(-sides[kept].prod(1), kind="stable")[: self.max_objects]
            surplus = len(kept) - self.max_objects
            dropped.add(f"more than max_objects={self.max_objects}", surplus, example["image_id"])
            kept = np.sort(kept[largest])
        return kept

    def _regions(self, example: Example, dropped: Any) -> Regions:
        if "regions" not in example:
            raise ValueError(
                f"regions were asked for, but image {example['image_id']} of this source has none: "
                "give it some with jaxvision.data.with_selective_search"
            )
        kept = thinned(example["regions"], self.max_regions)
        if surplus := len(example["regions"]) - len(kept):
            dropped.add(f"more than max_regions={self.max_regions}", surplus, example["image_id"])
        boxes = np.zeros((self.max_regions, 4), np.float32)
        boxes[: len(kept)] = kept
        return Regions(boxes, np.arange(self.max_regions) < len(kept))


@dataclass(frozen=True)
class SegmentationRows:
    """``images`` uint8 [h, w, 3], zero in the padding at the right and bottom; ``image_sizes`` float32 [2], (h, w)
    inside it; ``semantic`` uint8 [h, w], 255 in the padding; ``valid`` bool.

    Images that do not fit are shrunk, and their maps with them.
    """

    def prepare(self, example: Example) -> Example:
        if "semantic" not in example:
            raise ValueError(f"maps of classes were asked for, but image {example.get('image_id')} has none")
        return example

    def frame(self, example: Example, shape: tuple[int, int]) -> Example:
        return fit(example, shape)

    def row(self, example: Example, shape: tuple[int, int], dropped: Any) -> Batch:
        example = self.frame(example, shape)
        size = example["image"].shape[:2]
        row = self.empty(shape) | {"image_sizes": np.array(size, np.float32), "valid": np.True_}
        row["images"][: size[0], : size[1]] = example["image"]
        row["semantic"][: size[0], : size[1]] = example["semantic"]
        return row

    def empty(self, shape: tuple[int, int]) -> Batch:
        return {
            "images": np.zeros((*shape, 3), np.uint8),
            "image_sizes": np.ones(2, np.float32),
            "semantic": np.full(shape, IGNORE, np.uint8),
            "valid": np.False_,
        }


def fit(example: Example, shape: tuple[int, int]) -> Example:
    """The example shrunk, where needed, to lie inside ``shape`` = (height, width)."""
    (h, w), (height, width) = example["image"].shape[:2], shape
    if h <= height and w <= width:
        return example
    factor = min(height / h, width / w)
    size = tuple(max(1, min(limit, round(side * factor))) for side, limit in zip((h, w), shape))
    return resize(example, size=size)


def cover(example: Example, shape: tuple[int, int]) -> Example:
    """The middle of the example, scaled so that it just covers ``shape`` = (height, width)."""
    (h, w), (height, width) = example["image"].shape[:2], shape
    if (h, w) == (height, width):
        return example
    factor = max(height / h, width / w)
    h, w = max(height, round(h * factor)), max(width, round(w * factor))
    return central_crop(resize(example, size=(h, w)), size=shape)
