"""What a data source is: anything indexable that yields host-side examples.

A detection example is a dict of ``image`` uint8 [h, w, 3], ``image_id`` int, ``boxes`` float32 [n, 4] (xyxy,
continuous), ``labels`` int32 [n] (0 ... K-1), ``iscrowd`` bool [n] and, where the source has them, ``masks``
bool [n, h, w] and ``keypoints`` float32 [n, k, 3].  A classification example is ``image`` and ``label``.  A source
that was asked to skip bad files yields None in their place; the pipeline drops it.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import numpy as np
from pycocotools import mask as rle

__all__ = ["DetectionSource", "Example", "Source", "Subset", "ground_truth_of"]

Example = dict[str, Any]


@runtime_checkable
class Source(Protocol):
    """Examples by index, and the names of the classes in label order."""

    categories: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex) -> Example | None: ...


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
    pixels. An example may have ``size`` (height, width) in place of its image."""
    images, annotations = [], []
    for example in examples:
        height, width = example["size"] if "size" in example else example["image"].shape[:2]
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
