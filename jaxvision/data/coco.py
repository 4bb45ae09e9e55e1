"""Reader of data sets in COCO's JSON format: https://cocodataset.org/#format-data."""

import array
import contextlib
import gc
import json
import math
import os
import pathlib
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from pycocotools import mask as rle

from jaxvision.data.images import OnError, Problems, leads_out
from jaxvision.data.masks import coverage, frames_of, run_lengths
from jaxvision.data.source import Example
from jaxvision.data.transforms import scale_boxes, scale_points
from jaxvision.pictures import check_size

__all__ = ["CocoDetection"]

Record = dict[str, Any]
MAX_OUTLINE = 2**20  # pixels of a polygon's sides: pycocotools takes 52 bytes for each


class CocoDetection:
    """The images of a COCO-format file with their boxes, and masks and keypoints where it has them.

    Labels number the category ids in rising order, gaps closed; ``category_ids`` leads back.  Boxes are clipped to
    the image.  Crowd regions stay, with ``iscrowd``; images without objects stay, with empty arrays.  Objects without
    keypoints in a file that has some get zeros (not labelled).  Boxes, polygons and keypoints may reach beyond the
    image by its own size.

    mask_side: masks are planes if None, else grids of so many cells a side on the objects' own boxes, which never take
    a plane. decode_at_least: (height, width) that a JPEG must still have when it is decoded at a half, a quarter or an
    eighth of its size, with all that goes with it; whole images if None, and where masks are planes.
    on_error: "raise" lists everything wrong with the annotations and every missing image file at once, cut-off ones too
    in sets of up to 10,000 images, and refuses an image that turns out unreadable when it is read.  "skip" drops the
    annotation or image, logs each case once (logger "jaxvision") and lists it in ``problems``; an image found
    unreadable later reads as None.
    The file is decoded once; what is kept are arrays, which take a sixth of its text's size.
    Raises: FileNotFoundError without the file or folder; ValueError, always, for JSON that is broken or lacks one of
    its three lists or a category's id or name, and under "raise" for the rest.
    """

    def __init__(
        self,
        images_dir: str | os.PathLike,
        annotation_file: str | os.PathLike,
        *,
        with_masks: bool = True,
        mask_side: int | None = None,
        decode_at_least: tuple[int, int] | None = None,
        on_error: OnError = "raise",
    ):
        self.images_dir, self.annotation_file = pathlib.Path(images_dir), pathlib.Path(annotation_file)
        if not self.images_dir.is_dir():
            raise FileNotFoundError(f"{self.images_dir}: no such folder of images")
        self.with_masks, self.mask_side = with_masks, mask_side
        self.decode_at_least = None if with_masks and mask_side is None else decode_at_least
        self._problems = Problems(on_error)
        content = load_json(self.annotation_file)
        named = self._categories(content["categories"])
        self.category_ids = tuple(named)
        self.categories = tuple(named.values())
        points = (annotation.get("keypoints") for annotation in content["annotations"])
        self.num_keypoints = max((len(values) // 3 for values in points if isinstance(values, list)), default=0)
        listed = self._images(content.pop("images"))
        self._objects = self._annotations(content.pop("annotations"), listed)
        readable = self._problems.check_files(self.images_dir, [image.file_name for image in listed.values()])
        places = [place for place, ok in enumerate(readable) if ok]
        self._problems.refuse(self.annotation_file)
        if not places:
            raise ValueError(f"{self.annotation_file}: no usable image in {self.images_dir}")
        images = list(listed.values())
        self.images = [images[place] for place in places]
        self._places = places  # of the images among all that are listed, which number the objects

    def _categories(self, records: list[Record]) -> dict[int, str]:
        """Names by id, in the order of the ids."""
        for record in records:
            missing = {"id", "name"} - record.keys()
            if missing:
                raise ValueError(f"{self.annotation_file}: category {record} lacks {sorted(missing)}")
            if type(record["id"]) is not int or not abs(record["id"]) < 2**31:
                raise ValueError(
                    f"{self.annotation_file}: the id of category {short(record)} must be an integer below 2^31"
                )
            if not is_text(record["name"]):
                raise ValueError(f"{self.annotation_file}: the name of category {short(record)} must be text")
        named = {record["id"]: record["name"] for record in sorted(records, key=lambda record: record["id"])}
        if len(named) < len(records):
            raise ValueError(f"{self.annotation_file}: two categories share an id; give each its own")
        if not named:
            raise ValueError(f"{self.annotation_file}: the list 'categories' is empty")
        return named

    def _images(self, records: list[Record]) -> dict[int, "ImageRecord"]:
        listed: dict[int, ImageRecord] = {}
        for position, record in enumerate(records):
            reason = image_fault(record)
            if not reason and record["id"] in listed:
                reason = f"the id {record['id']} is taken by {listed[record['id']].file_name}"
            if not reason:
                listed[record["id"]] = ImageRecord(*(record[name] for name in ImageRecord._fields))
                continue
            name = record.get("file_name")
            name = name if is_text(name) else f"at position {position}"
            self._problems.add(f"{self.annotation_file}: image {name}: {reason}")
        return listed

    def _annotations(self, records: list[Record], images: dict[int, "ImageRecord"]) -> "Objects":
        """The sound annotations as arrays, in the order of the images."""
        label_of = {category: label for label, category in enumerate(self.category_ids)}
        place_of = {image: place for place, image in enumerate(images)}
        kept = Builder(self.num_keypoints)
        ids: set[int] = set()
        records.reverse()
        for position in range(len(records)):
            record = records.pop()  # so that its objects can go
            name = record.get("id", f"at position {position}")
            reason = self._fault(record, images, label_of)
            if not reason and "id" in record:
                reason = id_fault(name, ids)
            if reason:
                self._problems.add(f"{self.annotation_file}: annotation {short(name)}: {reason}")
            else:
                segmentation = record["segmentation"] if self.with_masks else None
                image = images[record["image_id"]]
                ids.add(name)
                kept.add(record, place_of[image.id], label_of[record["category_id"]], segmentation, image.size)
        return kept.finish(len(images))

    def _fault(self, record: Record, images: dict[int, "ImageRecord"], label_of: dict[int, int]) -> str | None:
        """What is wrong with an annotation, or None."""
        wanted = ("image_id", "category_id", "bbox", *(("segmentation",) if self.with_masks else ()))
        missing = [key for key in wanted if key not in record]
        if missing:
            hint = "; or read with with_masks=False" if missing == ["segmentation"] else ""
            return f"lacks {missing}{hint}"
        if type(record["image_id"]) is not int or record["image_id"] not in images:
            return f"image_id {short(record['image_id'])} is not in the list 'images'"
        if type(record["category_id"]) is not int or record["category_id"] not in label_of:
            return f"category_id {short(record['category_id'])} is not in the list 'categories'"
        if type(record.get("iscrowd", 0)) is not int or record.get("iscrowd", 0) not in (0, 1):
            return f"iscrowd must be 0 or 1, not {short(record['iscrowd'])}"
        if "area" in record and not (are_numbers([record["area"]]) and record["area"] >= 0):
            return f"area must be a finite number of pixels, not {short(record['area'])}; or leave it out"
        size = images[record["image_id"]].size
        reason = box_fault(record["bbox"], size)
        if not reason and self.with_masks:
            reason = segmentation_fault(record["segmentation"], size)
        return reason or keypoints_fault(record.get("keypoints", []), self.num_keypoints, size)

    @property
    def problems(self) -> list[str]:
        """What was skipped so far, file and reason."""
        return list(self._problems.found)

    def __len__(self) -> int:
        return len(self.images)

    def size(self, index: SupportsIndex) -> tuple[int, int]:
        return self.images[index].size

    def __getitem__(self, index: SupportsIndex) -> Example | None:
        record, objects = self.images[index], self._objects
        path = self.images_dir / record.file_name
        picture = self._problems.read(path, at_least=self.decode_at_least)
        if picture is None:
            return None
        height, width = picture.size
        if picture.size != record.size:
            reason = f"{path}: is {height}×{width}, but the annotations say {record.height}×{record.width}"
            if self._problems.on_error == "raise":
                raise ValueError(f"{reason}; mend the file or {self.annotation_file}")
            self._problems.add(reason)
            return None
        own = objects.of_image(self._places[index])
        boxes = objects.boxes[own].astype(np.float32)
        boxes[:, 2:] += boxes[:, :2]
        boxes = np.clip(boxes, 0, np.array([width, height] * 2, np.float32))
        factor = np.array(picture.pixels.shape[1::-1], np.float32) / np.array([width, height], np.float32)
        example: Example = {
            "image": picture.pixels,
            "file": record.file_name,
            "size": record.size,
            "image_id": record.id,
            "boxes": scale_boxes(boxes, factor),
            "labels": objects.labels[own],
            "iscrowd": objects.iscrowd[own],
        }
        if self.with_masks and self.mask_side is None:
            masks = [rle.decode(objects.code(number, record.size)) for number in range(own.start, own.stop)]
            example["masks"] = np.array(masks, bool).reshape(-1, height, width)
        elif self.with_masks:
            runs = (run_lengths(objects.code(number, record.size)["counts"]) for number in range(own.start, own.stop))
            frames = frames_of(boxes, self.mask_side)
            grids = [coverage(r, record.size, frame, side=self.mask_side) for r, frame in zip(runs, frames)]
            example["masks"] = np.array(grids, np.uint8).reshape(-1, self.mask_side, self.mask_side)
            example["mask_boxes"] = scale_boxes(frames, factor)
        if self.num_keypoints:
            points = objects.keypoints[own].reshape(-1, self.num_keypoints, 3)
            example["keypoints"] = scale_points(points, factor)
        return example

    def ground_truth(self, indices: Iterable[SupportsIndex] | None = None) -> dict[str, Any]:
        """The annotations of the chosen images (all by default) in COCO format, segmentations as compressed RLE.

        A missing area is that of the mask, or of the box without masks; annotations are numbered anew.
        """
        chosen = range(len(self)) if indices is None else indices
        images, annotations, objects = [], [], self._objects
        for index in chosen:
            record = self.images[index]
            images.append(record._asdict())
            own = objects.of_image(self._places[index])
            for number in range(own.start, own.stop):
                annotation = {
                    "id": len(annotations) + 1,
                    "image_id": record.id,
                    "category_id": self.category_ids[objects.labels[number]],
                    "bbox": objects.boxes[number].tolist(),
                    "iscrowd": int(objects.iscrowd[number]),
                    "area": float(objects.areas[number]),
                }
                if self.with_masks:
                    code = objects.code(number, record.size)
                    annotation["segmentation"] = {"size": list(code["size"]), "counts": code["counts"].decode()}
                if math.isnan(annotation["area"]):
                    annotation["area"] = float(rle.area(code) if self.with_masks else objects.boxes[number, 2:].prod())
                if self.num_keypoints:
                    points = objects.keypoints[number]
                    annotation |= {"keypoints": points.tolist(), "num_keypoints": int((points[2::3] > 0).sum())}
                annotations.append(annotation)
        named = [{"id": i, "name": name} for i, name in zip(self.category_ids, self.categories)]
        return {"images": images, "annotations": annotations, "categories": named}


class ImageRecord(NamedTuple):
    """What is kept of an entry of the list 'images'."""

    id: int
    file_name: str
    height: int
    width: int

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width


class Objects(NamedTuple):
    """All annotations in the order of the images; ``first[i] ... first[i + 1]`` are those of image i."""

    first: np.ndarray  # [i + 1]
    boxes: np.ndarray  # float64 [n, 4], as in the file: x, y, width, height
    labels: np.ndarray  # int32 [n]
    iscrowd: np.ndarray  # bool [n]
    areas: np.ndarray  # float64 [n], NaN where the file has none
    keypoints: np.ndarray  # float32 [n, 3 k]
    numbers: np.ndarray  # [n]: the number of each in the file, which the following know them by
    polygons: np.ndarray  # float64: x, y, ... of all polygons, in the order of the file
    polygon_ends: np.ndarray  # [p]: where each polygon ends
    object_ends: np.ndarray  # [n]: the number of polygons up to and with each annotation of the file
    codes: dict[int, bytes]  # compressed RLE of those that have no polygons

    def of_image(self, place: int) -> slice:
        return slice(int(self.first[place]), int(self.first[place + 1]))

    def code(self, number: int, size: tuple[int, int]) -> dict[str, Any]:
        """The mask as compressed RLE."""
        position = int(self.numbers[number])
        if position in self.codes:
            return {"size": list(size), "counts": self.codes[position]}
        first = self.object_ends[position - 1] if position else 0
        ends = self.polygon_ends[first : self.object_ends[position]].tolist()
        starts = [int(self.polygon_ends[first - 1]) if first else 0, *ends[:-1]]
        polygons = [self.polygons[start:end].tolist() for start, end in zip(starts, ends)]
        return rle.merge(rle.frPyObjects(polygons, *size))


class Builder:
    """Collects annotations in flat arrays as they come, so that their Python objects can go."""

    def __init__(self, num_keypoints: int):
        self.width = 3 * num_keypoints
        self.places, self.labels, self.iscrowd = array.array("q"), array.array("i"), array.array("b")
        self.boxes, self.areas, self.keypoints = array.array("d"), array.array("d"), array.array("f")
        self.polygons, self.polygon_ends, self.object_ends = array.array("d"), array.array("q"), array.array("q")
        self.codes: dict[int, bytes] = {}

    def add(self, record: Record, place: int, label: int, segmentation: Any, size: tuple[int, int]) -> None:
        if isinstance(segmentation, list):
            for polygon in segmentation:
                self.polygons.extend(polygon)
                self.polygon_ends.append(len(self.polygons))
        elif segmentation is not None:
            counts = segmentation["counts"]
            code = counts.encode() if isinstance(counts, str) else rle.frPyObjects(segmentation, *size)["counts"]
            self.codes[len(self.places)] = code
        self.object_ends.append(len(self.polygon_ends))
        self.places.append(place)
        self.labels.append(label)
        self.iscrowd.append(record.get("iscrowd", 0))
        self.boxes.extend(record["bbox"])
        self.areas.append(record.get("area", math.nan))
        self.keypoints.extend(record.get("keypoints") or [0] * self.width)

    def finish(self, images: int) -> Objects:
        places = np.asarray(self.places)
        order = np.argsort(places, kind="stable")
        return Objects(
            first=np.searchsorted(places[order], np.arange(images + 1)),
            boxes=np.asarray(self.boxes).reshape(-1, 4)[order],
            labels=np.asarray(self.labels)[order],
            iscrowd=np.asarray(self.iscrowd).astype(bool)[order],
            areas=np.asarray(self.areas)[order],
            keypoints=np.asarray(self.keypoints).reshape(len(order), self.width)[order],
            numbers=order,
            polygons=np.asarray(self.polygons),
            polygon_ends=np.asarray(self.polygon_ends),
            object_ends=np.asarray(self.object_ends),
            codes=self.codes,
        )


def load_json(path: pathlib.Path) -> dict[str, list[Record]]:
    """The three lists of records of an annotation file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such annotation file")
    try:
        with without_collection():
            content = json.loads(path.read_text(encoding="utf-8"), object_hook=packed)
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError as well, and integers of 5,000 digits
        raise ValueError(f"{path}: not valid JSON in UTF-8 ({error}); export or download it again") from error
    lists = ("images", "annotations", "categories")
    for key in lists:
        if not isinstance(content, dict) or key not in content:
            raise ValueError(
                f"{path}: the key '{key}' is missing; a COCO file has 'images', 'annotations' and 'categories'"
            )
        if not isinstance(content[key], list) or not all(isinstance(record, dict) for record in content[key]):
            raise ValueError(f"{path}: '{key}' must be a list of objects")
    return {key: content[key] for key in lists}


def packed(record: Record) -> Record:
    """A record as it comes from the parser; sound polygons become arrays at once, which take a third of the memory."""
    polygons = record.get("segmentation")
    if type(polygons) is list and all(map(are_numbers, polygons)):
        record["segmentation"] = [array.array("d", polygon) for polygon in polygons]
    return record


@contextlib.contextmanager
def without_collection():
    """No search for garbage while millions of objects are made that all stay: it would take half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def short(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "an integer of over 40 digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def is_text(value: Any) -> bool:
    """Whether it is text that can be written to a file: JSON may hold halves of characters."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def too_far(values: Collection, side: int) -> float | int | None:
    """The coordinate that lies beyond an image's side by more than its length, or None."""
    low, high = min(values), max(values)
    if low < -side:
        return low
    return high if high > 2 * side else None


def are_numbers(values: Any) -> bool:
    """Whether it is a list of finite numbers: no booleans, no text, nothing beyond what a float holds."""
    if type(values) is not list or not set(map(type, values)) <= {int, float}:
        return False
    try:
        return math.isfinite(math.fsum(values))
    except (OverflowError, ValueError):  # huge numbers, or infinities of both signs
        return False


def image_fault(record: Record) -> str | None:
    missing = [key for key in ImageRecord._fields if key not in record]
    if missing:
        return f"lacks {missing}"
    name = record["file_name"]
    if not is_text(name) or not name or "\0" in name:
        return f"file_name {short(name)} must be the name of a file"
    if leads_out(name):
        return f"file_name {short(name)} leads out of the folder of images; give the folder above, and names below it"
    if type(record["id"]) is not int or not abs(record["id"]) < 2**31:
        return f"the id must be an integer below 2^31, not {short(record['id'])}; number the images anew"
    sides = [record["height"], record["width"]]
    if not all(type(side) is int and side > 0 for side in sides):
        return f"height {short(sides[0])} and width {short(sides[1])} must be positive integers"
    try:
        check_size(width=sides[1], height=sides[0])
    except ValueError as error:
        return f"height {short(sides[0])} and width {short(sides[1])}: {error}"
    return None


def id_fault(number: Any, taken: set[int]) -> str | None:
    if type(number) is not int:
        return f"the id must be an integer, not {short(number)}; or leave it out"
    if number in taken:
        return f"the id {short(number)} is that of another annotation too; number them anew, or leave the ids out"
    return None


def outline(polygon: Collection) -> float:
    """The length of its sides, each by its larger part."""
    points = np.array(polygon).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(1).sum())


def box_fault(box: Any, size: tuple[int, int]) -> str | None:
    if not are_numbers(box) or len(box) != 4:
        return f"bbox must be four finite numbers [x, y, width, height], not {short(box)}"
    x, y, width, height = box
    if width < 0 or height < 0:
        return f"bbox {short(box)} has a negative width or height; COCO boxes are [x, y, width, height]"
    if width == 0 or height == 0:
        return f"bbox {short(box)} has no area"
    if x >= size[1] or y >= size[0] or x + width <= 0 or y + height <= 0:
        return f"bbox {short(box)} lies outside its image of {size[0]}×{size[1]}"
    if too_far((x, x + width), size[1]) is not None or too_far((y, y + height), size[0]) is not None:
        return f"bbox {short(box)} reaches far outside its image of {size[0]}×{size[1]}"
    return None


def keypoints_fault(points: Any, count: int, size: tuple[int, int]) -> str | None:
    if not (are_numbers(points) and len(points) in (0, 3 * count)):
        return f"keypoints must be {3 * count} finite numbers [x1, y1, v1, ...] as elsewhere in the file"
    if not points:
        return None
    if not set(points[2::3]) <= {0, 1, 2}:
        return f"the visibilities of keypoints must be 0, 1 or 2, not {short(points[2::3])}"
    for values, side in ((points[::3], size[1]), (points[1::3], size[0])):
        far = too_far(values, side)
        if far is not None:
            return f"keypoints reach to {short(far)}, far outside their image of {size[0]}×{size[1]}"
    return None


def segmentation_fault(segmentation: Any, size: tuple[int, int]) -> str | None:
    if isinstance(segmentation, list):
        if not segmentation:
            return "segmentation is empty; or read with with_masks=False"
        height, width = size
        for polygon in segmentation:
            if type(polygon) is not array.array or len(polygon) < 6 or len(polygon) % 2:
                return "segmentation must be polygons [x1, y1, x2, y2, ...] of at least three points"
            for values, side in ((polygon[::2], width), (polygon[1::2], height)):
                far = too_far(values, side)
                if far is not None:
                    return f"segmentation reaches to {short(far)}, far outside its image of {height}×{width}"
            if 2 * len(polygon) * max(size) > MAX_OUTLINE and outline(polygon) > MAX_OUTLINE:
                return f"the outline of the segmentation is longer than {MAX_OUTLINE:,} pixels; it goes to and fro"
        return None
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        return "segmentation must be polygons, or an RLE with 'size' and 'counts'"
    if segmentation["size"] != list(size):
        return f"segmentation is for an image of {short(segmentation['size'])}, not {list(size)}"
    counts = segmentation["counts"]
    if isinstance(counts, str):
        runs = run_lengths(counts.encode(errors="replace"))
    else:
        runs = counts if are_numbers(counts) and all(type(count) is int for count in counts) else None
    if runs is None or min(runs, default=0) < 0 or sum(map(int, runs)) != math.prod(size):
        return f"the counts of the segmentation do not add up to the {math.prod(size)} pixels of the image"
    return None
