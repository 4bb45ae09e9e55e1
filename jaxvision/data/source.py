"""What a data source is: anything indexable that yields host-side examples, and what an example holds.

A source that was asked to skip bad files yields None in their place; the pipeline reads another or leaves a gap.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, SupportsIndex, TypedDict, runtime_checkable

import numpy as np
from pycocotools import mask as rle

__all__ = ["FIELDS", "DetectionSource", "Example", "Field", "Source", "Subset", "ground_truth_of", "size_of"]


class Example(TypedDict, total=False):
    """One image and what is known of it. All have ``image`` and ``size``; classifiers need ``label``, detectors
    ``image_id``, ``boxes``, ``labels`` and ``iscrowd``, and what their heads learn. ``FIELDS`` says how each moves."""

    image: np.ndarray  # uint8 [h, w, 3], RGB
    file: str  # its name in the data set, where it has one
    size: tuple[int, int]  # (height, width) of the image as the data set has it; the decoded one may be smaller
    image_id: int
    label: int  # 0 ... K-1, of the whole image
    boxes: np.ndarray  # float32 [n, 4], xyxy, continuous
    labels: np.ndarray  # int32 [n], 0 ... K-1
    iscrowd: np.ndarray  # bool [n]: neither trains nor counts
    masks: np.ndarray  # planes bool [n, h, w]; with mask_boxes grids uint8 [n, m, m], shares of 255
    mask_boxes: np.ndarray  # float32 [n, 4], the frames of the grids; see jaxvision.typing
    keypoints: np.ndarray  # float32 [n, k, 3]: x, y, visibility 0, 1 or 2
    semantic: np.ndarray  # uint8 [h, w], a class a pixel
    regions: np.ndarray  # float32 [m, 4], xyxy: where objects may be


class Field(NamedTuple):
    """How a transform moves a field. Boxes are clipped to the image, frames are not; masks are planes without frames;
    values and what is not listed stay as they are."""

    kind: Literal["plane", "box", "frame", "mask", "points", "value"]
    of_object: bool = False  # one row an object: where an object goes, the row goes


FIELDS: dict[str, Field] = {
    "semantic": Field("plane"),
    "regions": Field("box"),
    "boxes": Field("box", of_object=True),
    "labels": Field("value", of_object=True),
    "iscrowd": Field("value", of_object=True),
    "masks": Field("mask", of_object=True),
    "mask_boxes": Field("frame", of_object=True),
    "keypoints": Field("points", of_object=True),
}


@runtime_checkable
class Source(Protocol):
    """Examples by index, and the names of the classes in label order."""

    categories: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex) -> Example | None: ...

    def size(self, index: SupportsIndex) -> tuple[int, int]:
        """(height, width) of an example's image, without decoding it."""


def size_of(example: Example) -> tuple[int, int]:
    """(height, width) of the image as the data set has it."""
    return example["size"] if "size" in example else example["image"].shape[:2]


@runtime_checkable
class DetectionSource(Source, Protocol):
    """A source of detection examples, with its truth in COCO format for evaluation."""

    category_ids: tuple[int, ...]  # the data set's own id of each label

    def ground_truth(self, indices: Iterable[SupportsIndex] | None = None) -> dict[str, Any]: ...


class Subset:
    """The examples of ``source`` at ``indices``, in that order."""

    def __init__(self, source: Source, indices: Iterable[SupportsIndex]):
        self.source = source
        self.indices = tuple(int(index) for index in indices)
        outside = [index for index in self.indices if not 0 <= index < len(source)]
        if outside:
            raise ValueError(f"indices {outside[:5]} are outside a source of {len(source)} examples")
        self.categories = source.categories
        if isinstance(source, DetectionSource):
            self.category_ids = source.category_ids

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: SupportsIndex) -> Example | None:
        return self.source[self.indices[index]]

    def size(self, index: SupportsIndex) -> tuple[int, int]:
        return self.source.size(self.indices[index])

    @property
    def problems(self) -> list[str]:
        """What the whole source has skipped so far."""
        return list(getattr(self.source, "problems", []))

    def ground_truth(self, indices: Iterable[SupportsIndex] | None = None) -> dict[str, Any]:
        """The truth of the chosen examples in COCO format; ``indices`` count inside the subset."""
        chosen = self.indices if indices is None else [self.indices[index] for index in indices]
        return self.source.ground_truth(chosen)


def ground_truth_of(
    examples: Iterable[Example], *, categories: Sequence[str], category_ids: Sequence[int]
) -> dict[str, Any]:
    """Detection examples as a COCO-format dict; masks, where there are any, as compressed RLE with areas counted in
    pixels, and therefore planes. Nothing is read of an image but its size."""
    images, annotations = [], []
    for example in examples:
        height, width = size_of(example)
        images.append({"id": int(example["image_id"]), "height": int(height), "width": int(width)})
        for index, (left, top, right, bottom) in enumerate(example["boxes"].tolist()):
            annotation = {
                "id": len(annotations) + 1,  # pycocotools takes id 0 for "not matched"
                "image_id": int(example["image_id"]),
                "category_id": int(category_ids[example["labels"][index]]),
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "iscrowd": int(example["iscrowd"][index]),
            }
            if "masks" in example:
                mask = example["masks"][index]
                code = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
                annotation["segmentation"] = {"size": [int(height), int(width)], "counts": code["counts"].decode()}
                annotation["area"] = float(mask.sum())
            annotations.append(annotation)
    named = [{"id": int(i), "name": name} for i, name in zip(category_ids, categories)]
    return {"images": images, "annotations": annotations, "categories": named}
