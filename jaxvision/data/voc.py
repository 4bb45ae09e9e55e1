"""Reader of PASCAL VOC as its archives unpack: ``VOCdevkit/VOC2007`` with images, XML annotations, lists of images."""

import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex
from xml.etree import ElementTree

import numpy as np

from jaxvision.data.images import OnError, Problems
from jaxvision.data.source import Example, ground_truth_of

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
    on_error, and what is raised: as in ``CocoDetection``.
    """

    def __init__(
        self,
        devkit: str | os.PathLike,
        splits: Sequence[str],
        *,
        categories: tuple[str, ...] = VOC_CATEGORIES,
        on_error: OnError = "raise",
    ):
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
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such list of images; unpack VOC's archives, and name its VOCdevkit")
        for name in (line.split()[0] for line in path.read_text().splitlines() if line.strip()):
            picture = folder / "JPEGImages" / f"{name}.jpg"
            objects = self._annotation(folder / "Annotations" / f"{name}.xml")
            if self._problems.check_file(picture) and objects is not None:
                self.pictures.append(picture)
                self._objects.append(objects)

    @property
    def problems(self) -> list[str]:
        """What was skipped so far, file and reason."""
        return list(self._problems.found)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: SupportsIndex) -> Example | None:
        index = range(len(self))[index]
        image = self._problems.read(self.pictures[index])
        return None if image is None else self._example(index, image.shape[:2]) | {"image": image}

    def ground_truth(self, indices: Iterable[SupportsIndex] | None = None) -> dict[str, Any]:
        """The truth of the chosen images in COCO format, without reading them."""
        chosen = range(len(self)) if indices is None else [range(len(self))[index] for index in indices]
        return ground_truth_of(
            (self._example(index, self._objects[index]["size"]) for index in chosen),
            categories=self.categories,
            category_ids=self.category_ids,
        )

    def _example(self, index: int, size: tuple[int, int]) -> Example:
        objects, (height, width) = self._objects[index], size
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
            root = ElementTree.parse(path).getroot()
            size = _integer(root, "size/height"), _integer(root, "size/width")
        except FileNotFoundError:
            return self._problems.add(f"{path}: no such annotation")
        except (ElementTree.ParseError, ValueError) as error:
            return self._problems.add(f"{path}: {error}")
        boxes, labels, difficult = [], [], []
        for position, item in enumerate(root.iterfind("object")):
            try:
                box, label = _box(item), self._label(item.findtext("name"))
            except ValueError as error:
                self._problems.add(f"{path}: object {position}: {error}")
                continue
            boxes.append(box)
            labels.append(label)
            difficult.append(item.findtext("difficult", "0").strip() == "1")
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


def _box(item: ElementTree.Element) -> tuple[float, float, float, float]:
    """xyxy in continuous pixels."""
    left, top, right, bottom = (_number(item, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
    if right < left or bottom < top:
        raise ValueError(f"bndbox {left:g} {top:g} {right:g} {bottom:g} (xmin ymin xmax ymax) is empty")
    return left - 1, top - 1, right, bottom


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
