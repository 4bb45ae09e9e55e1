"""Reader of PASCAL VOC as its archives unpack: ``VOCdevkit/VOC2007`` with images, XML annotations, lists of images."""

import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex
from xml.etree import ElementTree

import numpy as np

from jaxvision.data.coco import too_far
from jaxvision.data.images import OnError, Problems, leads_out
from jaxvision.data.source import Example, ground_truth_of
from jaxvision.data.transforms import scale_boxes
from jaxvision.pictures import check_size

__all__ = ["VOC_CATEGORIES", "VocDetection"]

VOC_CATEGORIES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


class VocDetection:
    """The images of lists in ``ImageSets/Main`` with their boxes.

    VOC counts pixels from 1, both ends included; here a box reaches from ``xmin - 1`` to ``xmax``, clipped to the
    image. Objects marked difficult are ``iscrowd``: they do not train, and are neither found nor missed. ``image_id``
    is the place in the lists.

    devkit: the folder that has ``VOC2007`` and the like in it. splits: the lists to read, one after the other, such as
    "VOC2007/trainval". categories: the names in label order.
    on_error, decode_at_least, and what is raised: as in ``CocoDetection``.
    """

    def __init__(
        self,
        devkit: str | os.PathLike,
        splits: Sequence[str],
        *,
        categories: tuple[str, ...] = VOC_CATEGORIES,
        on_error: OnError = "raise",
        decode_at_least: tuple[int, int] | None = None,
    ):
        self.decode_at_least = decode_at_least
        self.categories, self.category_ids = tuple(categories), tuple(range(1, len(categories) + 1))
        self._problems = Problems(on_error)
        self.pictures: list[pathlib.Path] = []
        self._objects: list[dict[str, Any]] = []
        for split in splits:
            year, _, listing = split.partition("/")
            self._read(pathlib.Path(devkit) / year, listing)
        self._problems.refuse(devkit)
        if not self.pictures:
            raise ValueError(f"{devkit}: {', '.join(splits)} name no usable image")

    def _read(self, folder: pathlib.Path, listing: str) -> None:
        path = folder / "ImageSets" / "Main" / f"{listing}.txt"
        names = names_in(path)
        for name in filter(leads_out, names):
            self._problems.add(f"{path}: the image {name!r} leads out of the folder of images")
        names = [name for name in names if not leads_out(name)]
        pictures = folder / "JPEGImages"
        sound = self._problems.check_files(pictures, [f"{name}.jpg" for name in names])
        for name, there in zip(names, sound):
            objects = self._annotation(folder / "Annotations" / f"{name}.xml")
            if there and objects is not None:
                self.pictures.append(pictures / f"{name}.jpg")
                self._objects.append(objects)

    @property
    def problems(self) -> list[str]:
        """What was skipped so far, file and reason."""
        return list(self._problems.found)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: SupportsIndex) -> Example | None:
        index = range(len(self))[index]
        picture = self._problems.read(self.pictures[index], at_least=self.decode_at_least)
        if picture is None:
            return None
        if picture.size != self._objects[index]["size"]:
            says = "{}×{}".format(*self._objects[index]["size"])
            reason = f"{self.pictures[index]}: is {picture.size[0]}×{picture.size[1]}, but its annotation says {says}"
            if self._problems.on_error == "raise":
                raise ValueError(f"{reason}; mend one of them")
            self._problems.add(reason)
            return None
        example = self._example(index)
        factor = np.array(picture.pixels.shape[1::-1], np.float32) / np.array(picture.size[::-1], np.float32)
        boxes, file = scale_boxes(example["boxes"], factor), self.pictures[index].name
        return {**example, "image": picture.pixels, "file": file, "boxes": boxes}

    def size(self, index: SupportsIndex) -> tuple[int, int]:
        return self._objects[index]["size"]

    def ground_truth(self, indices: Iterable[SupportsIndex] | None = None) -> dict[str, Any]:
        """The truth of the chosen images in COCO format, without reading them."""
        chosen = range(len(self)) if indices is None else [range(len(self))[index] for index in indices]
        return ground_truth_of(
            (self._example(index) for index in chosen),
            categories=self.categories,
            category_ids=self.category_ids,
        )

    def _example(self, index: int) -> Example:
        objects = self._objects[index]
        height, width = objects["size"]
        return {
            "image_id": index,
            "size": (height, width),
            "boxes": objects["boxes"].clip(0, np.array([width, height, width, height], np.float32)),
            "labels": objects["labels"],
            "iscrowd": objects["difficult"],
        }

    def _annotation(self, path: pathlib.Path) -> dict[str, Any] | None:
        """The objects of a file that are sound, and the image's (height, width); None if the file is not."""
        try:
            text = path.read_bytes()
            if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
                raise ValueError("has a DOCTYPE, which annotations do not need, and which may grow without bound")
            if b"\0" in text:  # in UTF-16 a DOCTYPE would pass
                raise ValueError("not text in UTF-8; save it in that encoding")
            root = ElementTree.fromstring(text)
            size = _integer(root, "size/height"), _integer(root, "size/width")
            check_size(width=size[1], height=size[0])
        except FileNotFoundError:
            return self._problems.add(f"{path}: no such annotation")
        except (ElementTree.ParseError, ValueError, LookupError, OSError) as error:  # LookupError: an unknown encoding
            return self._problems.add(f"{path}: {error}")
        boxes, labels, difficult = [], [], []
        for position, item in enumerate(root.iterfind("object")):
            try:
                box, label, apart = _box(item, size), self._label(item.findtext("name")), _difficult(item)
            except ValueError as error:
                self._problems.add(f"{path}: object {position}: {error}")
                continue
            boxes.append(box)
            labels.append(label)
            difficult.append(apart)
        return {
            "size": size,
            "boxes": np.array(boxes, np.float32).reshape(-1, 4),
            "labels": np.array(labels, np.int32),
            "difficult": np.array(difficult, bool),
        }

    def _label(self, name: str | None) -> int:
        name = (name or "").strip()
        if name not in self.categories:
            raise ValueError(f"name {name!r} is none of the {len(self.categories)} categories; give your own list")
        return self.categories.index(name)


def _box(item: ElementTree.Element, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """xyxy in continuous pixels of an image of ``size`` = (height, width)."""
    left, top, right, bottom = (_number(item, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
    said = f"bndbox {left:g} {top:g} {right:g} {bottom:g} (xmin ymin xmax ymax)"
    if right < left or bottom < top:
        raise ValueError(f"{said} is empty")
    if left - 1 >= size[1] or top - 1 >= size[0] or right <= 0 or bottom <= 0:
        raise ValueError(f"{said} lies outside its image of {size[0]}×{size[1]}")
    if too_far((left - 1, right), size[1]) is not None or too_far((top - 1, bottom), size[0]) is not None:
        raise ValueError(f"{said} reaches far outside its image of {size[0]}×{size[1]}")
    return left - 1, top - 1, right, bottom


def _difficult(item: ElementTree.Element) -> bool:
    text = item.findtext("difficult", "0").strip()
    if text not in ("", "0", "1"):
        raise ValueError(f"difficult is {text!r}, and should be 0 or 1")
    return text == "1"


def _number(element: ElementTree.Element, field: str) -> float:
    text = element.findtext(field)
    try:
        value = float(text)
    except (TypeError, ValueError):
        raise ValueError(f"{field} is {text!r}, and should be a number") from None
    if not np.isfinite(value):
        raise ValueError(f"{field} is {text!r}, and should be finite")
    return value


def _integer(element: ElementTree.Element, field: str) -> int:
    value = _number(element, field)
    if value != int(value) or value < 1:
        raise ValueError(f"{field} is {value:g}, and should be a whole number of pixels")
    return int(value)


def names_in(path: pathlib.Path) -> list[str]:
    """The images of a list, by the first word of each line.

    Raises: FileNotFoundError if there is no such list; ValueError if it is no text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list of images; unpack VOC's archives, and name its VOCdevkit")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8 ({error}); save it in that encoding") from error
    return [line.split()[0] for line in lines if line.strip()]
