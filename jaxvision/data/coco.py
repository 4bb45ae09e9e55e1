"""Reader of data sets in COCO's JSON format: https://cocodataset.org/#format-data."""

import collections
import json
import math
import os
import pathlib
from collections.abc import Iterable
from typing import Any, SupportsIndex

import numpy as np
from pycocotools import mask as rle

from jaxvision.data.images import OnError, Problems
from jaxvision.data.source import Example

__all__ = ["CocoDetection"]

Record = dict[str, Any]


class CocoDetection:
    """The images of a COCO-format file with their boxes, and masks and keypoints where it has them.

    Labels number the category ids in rising order, gaps closed; ``category_ids`` leads back.  Boxes are clipped to
    the image.  Crowd regions stay, with ``iscrowd``; images without objects stay, with empty arrays.  Objects without
    keypoints in a file that has some get zeros (not labelled).

    on_error: "raise" lists everything wrong with the annotations and every cut-off or missing image file at once, and
    refuses an image that turns out unreadable when it is read.  "skip" drops the annotation or image, logs each case
    once (logger "jaxvision") and lists it in ``problems``; an image found unreadable later reads as None.
    Raises: FileNotFoundError without the file or folder; ValueError, always, for JSON that is broken or lacks one of
    its three lists or a category's id or name, and under "raise" for the rest.
    """

    def __init__(
        self,
        images_dir: str | os.PathLike,
        annotation_file: str | os.PathLike,
        *,
        with_masks: bool = True,
        on_error: OnError = "raise",
    ):
        self.images_dir, self.annotation_file = pathlib.Path(images_dir), pathlib.Path(annotation_file)
        if not self.images_dir.is_dir():
            raise FileNotFoundError(f"{self.images_dir}: no such folder of images")
        self.with_masks = with_masks
        self._problems = Problems(on_error)
        content = load_json(self.annotation_file)
        named = self._categories(content["categories"])
        self.category_ids = tuple(named)
        self.categories = tuple(named.values())
        self._label = {category: label for label, category in enumerate(named)}
        points = [len(a["keypoints"]) // 3 for a in content["annotations"] if isinstance(a.get("keypoints"), list)]
        self.num_keypoints = max(points, default=0)

        listed = self._images(content["images"])
        self._annotations: dict[int, list[Record]] = collections.defaultdict(list)
        for position, annotation in enumerate(content["annotations"]):
            reason = self._fault(annotation, listed)
            if reason:
                name = annotation.get("id", f"at position {position}")
                self._problems.add(f"{self.annotation_file}: annotation {name}: {reason}")
            else:
                self._annotations[annotation["image_id"]].append(annotation)
        self.images = [i for i in listed.values() if self._problems.check_file(self.images_dir / i["file_name"])]
        self._problems.refuse(self.annotation_file)
        if not self.images:
            raise ValueError(f"{self.annotation_file}: no usable image in {self.images_dir}")

    def _categories(self, records: list[Record]) -> dict[int, str]:
        """Names by id, in the order of the ids."""
        for record in records:
            missing = {"id", "name"} - record.keys()
            if missing:
                raise ValueError(f"{self.annotation_file}: category {record} lacks {sorted(missing)}")
            if not isinstance(record["id"], int):
                raise ValueError(f"{self.annotation_file}: the id of category {record} must be an integer")
        named = {record["id"]: record["name"] for record in sorted(records, key=lambda record: record["id"])}
        if len(named) < len(records):
            raise ValueError(f"{self.annotation_file}: two categories share an id; give each its own")
        if not named:
            raise ValueError(f"{self.annotation_file}: the list 'categories' is empty")
        return named

    def _images(self, records: list[Record]) -> dict[int, Record]:
        listed: dict[int, Record] = {}
        for position, record in enumerate(records):
            missing = [key for key in ("id", "file_name", "height", "width") if key not in record]
            if missing:
                reason = f"lacks {missing}"
            elif not isinstance(record["id"], int) or not abs(record["id"]) < 2**31:
                reason = f"the id must be an integer below 2^31, not {record['id']!r}; number the images anew"
            elif not all(isinstance(record[key], int) and record[key] > 0 for key in ("height", "width")):
                reason = f"height {record['height']!r} and width {record['width']!r} must be positive integers"
            elif record["id"] in listed:
                reason = f"the id {record['id']} is taken by {listed[record['id']]['file_name']}"
            else:
                listed[record["id"]] = record
                continue
            name = record.get("file_name", f"at position {position}")
            self._problems.add(f"{self.annotation_file}: image {name}: {reason}")
        return listed

    def _fault(self, annotation: Record, images: dict[int, Record]) -> str | None:
        """What is wrong with an annotation, or None."""
        wanted = ("image_id", "category_id", "bbox", *(("segmentation",) if self.with_masks else ()))
        missing = [key for key in wanted if key not in annotation]
        if missing:
            hint = "; or read with with_masks=False" if missing == ["segmentation"] else ""
            return f"lacks {missing}{hint}"
        if not isinstance(annotation["image_id"], int) or annotation["image_id"] not in images:
            return f"image_id {annotation['image_id']!r} is not in the list 'images'"
        if not isinstance(annotation["category_id"], int) or annotation["category_id"] not in self._label:
            return f"category_id {annotation['category_id']!r} is not in the list 'categories'"
        image = images[annotation["image_id"]]
        size = (image["height"], image["width"])
        reason = box_fault(annotation["bbox"], size)
        if not reason and self.with_masks:
            reason = segmentation_fault(annotation["segmentation"], size)
        points = annotation.get("keypoints", [])
        if not reason and not (is_numbers(points) and len(points) in (0, 3 * self.num_keypoints)):
            reason = (
                f"keypoints must be {3 * self.num_keypoints} finite numbers [x1, y1, v1, ...] as elsewhere in the file"
            )
        return reason

    @property
    def problems(self) -> list[str]:
        """What was skipped so far, file and reason."""
        return list(self._problems.found)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: SupportsIndex) -> Example | None:
        record = self.images[index]
        path = self.images_dir / record["file_name"]
        image = self._problems.read(path)
        if image is None:
            return None
        height, width = image.shape[:2]
        if (height, width) != (record["height"], record["width"]):
            reason = f"{path}: is {height}×{width}, but the annotations say {record['height']}×{record['width']}"
            if self._problems.on_error == "raise":
                raise ValueError(f"{reason}; mend the file or {self.annotation_file}")
            self._problems.add(reason)
            return None
        annotations = self._annotations.get(record["id"], [])
        boxes = np.array([a["bbox"] for a in annotations], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        example = {
            "image": image,
            "image_id": record["id"],
            "boxes": np.clip(boxes, 0, np.array([width, height] * 2, np.float32)),
            "labels": np.array([self._label[a["category_id"]] for a in annotations], np.int32),
            "iscrowd": np.array([bool(a.get("iscrowd", 0)) for a in annotations], bool),
        }
        if self.with_masks:
            masks = [rle.decode(code_of(a["segmentation"], (height, width))) for a in annotations]
            example["masks"] = np.array(masks, bool).reshape(-1, height, width)
        if self.num_keypoints:
            points = [a.get("keypoints") or [0] * 3 * self.num_keypoints for a in annotations]
            example["keypoints"] = np.array(points, np.float32).reshape(-1, self.num_keypoints, 3)
        return example

    def ground_truth(self, indices: Iterable[SupportsIndex] | None = None) -> dict[str, Any]:
        """The annotations of the chosen images (all by default) in COCO format, segmentations as compressed RLE.

        A missing area is that of the mask, or of the box without masks; annotations are numbered anew.
        """
        chosen = self.images if indices is None else [self.images[index] for index in indices]
        annotations = []
        for record in chosen:
            for annotation in self._annotations.get(record["id"], ()):
                kept = {**annotation, "id": len(annotations) + 1, "iscrowd": int(annotation.get("iscrowd", 0))}
                area = annotation["bbox"][2] * annotation["bbox"][3]
                if self.with_masks:
                    code = code_of(annotation["segmentation"], (record["height"], record["width"]))
                    area = float(rle.area(code))
                    kept["segmentation"] = {"size": list(code["size"]), "counts": code["counts"].decode()}
                annotations.append({"area": area, **kept})
        named = [{"id": i, "name": name} for i, name in zip(self.category_ids, self.categories)]
        return {"images": chosen, "annotations": annotations, "categories": named}


def load_json(path: pathlib.Path) -> dict[str, list[Record]]:
    """The content of an annotation file, which has the three lists of records."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # a UnicodeDecodeError as well
        raise ValueError(f"{path}: not valid JSON ({error}); export or download it again") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or key not in content:
            raise ValueError(
                f"{path}: the key '{key}' is missing; a COCO file has 'images', 'annotations' and 'categories'"
            )
        if not isinstance(content[key], list) or not all(isinstance(record, dict) for record in content[key]):
            raise ValueError(f"{path}: '{key}' must be a list of objects")
    return content


def is_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(v, int | float) and math.isfinite(v) for v in values)


def box_fault(box: Any, size: tuple[int, int]) -> str | None:
    if not is_numbers(box) or len(box) != 4:
        return f"bbox must be four finite numbers [x, y, width, height], not {box!r}"
    x, y, width, height = box
    if width < 0 or height < 0:
        return f"bbox {box} has a negative width or height; COCO boxes are [x, y, width, height]"
    if width == 0 or height == 0:
        return f"bbox {box} has no area"
    if x >= size[1] or y >= size[0] or x + width <= 0 or y + height <= 0:
        return f"bbox {box} lies outside its image of {size[0]}×{size[1]}"
    return None


def segmentation_fault(segmentation: Any, size: tuple[int, int]) -> str | None:
    if isinstance(segmentation, list):
        if not segmentation:
            return "segmentation is empty; or read with with_masks=False"
        if not all(is_numbers(polygon) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in segmentation):
            return "segmentation must be polygons [x1, y1, x2, y2, ...] of at least three points"
        return None
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        return "segmentation must be polygons, or an RLE with 'size' and 'counts'"
    if list(segmentation["size"]) != list(size):
        return f"segmentation is for an image of {segmentation['size']}, not {list(size)}"
    counts = segmentation["counts"]
    if isinstance(counts, str):
        counts = run_lengths(counts)
    if not is_numbers(counts) or min(counts, default=0) < 0 or sum(counts) != math.prod(size):
        return f"the counts of the segmentation do not add up to the {math.prod(size)} pixels of the image"
    return None


def run_lengths(code: str) -> list[int] | None:
    """The counts of a compressed RLE, or None if it is none.

    Each count is written as characters of five bits, lowest first, a sixth bit on all but the last, and from the
    fourth count on as the difference to the count before the last.  pycocotools decodes a code that is too short to
    uninitialised memory, so codes are checked here first.
    """
    digits = np.frombuffer(code.encode(), np.uint8).astype(np.int64) - 48
    if not digits.size or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        return None
    ends = np.flatnonzero(digits < 32)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(digits.size) - np.repeat(starts, ends - starts + 1)
    if place.max() > 6:  # more than the 32 bits of a count
        return None
    counts = np.add.reduceat((digits & 31) << (5 * place), starts)
    counts -= np.where(digits[ends] & 16, 1 << (5 * (place[ends] + 1)), 0)  # the sign bit
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts.tolist()


def code_of(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """The compressed RLE of polygons, of an uncompressed RLE, or of one that is compressed already."""
    if isinstance(segmentation, list):
        return rle.merge(rle.frPyObjects(segmentation, *size))
    if isinstance(segmentation["counts"], list):
        return rle.frPyObjects(segmentation, *size)
    return {"size": list(size), "counts": segmentation["counts"].encode()}
