"""Sets of TensorFlow Datasets, once they are prepared: reading them needs no TensorFlow."""

import contextlib
import io
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from jaxvision.data.images import Picture, read_picture, size_in_header
from jaxvision.data.source import Example, ground_truth_of

__all__ = ["PreparedDetection", "PreparedImages"]


class _Prepared:
    """The records of a split, and the sizes of their images; a set for a task says which classes it has."""

    def __init__(
        self,
        name: str,
        split: str,
        *,
        data_dir: str | os.PathLike | None = None,
        decode_at_least: tuple[int, int] | None = None,
    ):
        self.name, self.decode_at_least = f"{name} {split}", decode_at_least
        features, self.records = open_split(name, split, data_dir)
        self.categories = self._classes(name, features)

    def __len__(self) -> int:
        return len(self.records)

    def size(self, index: SupportsIndex) -> tuple[int, int]:
        return header(self.records[index], index, self.name)


class PreparedImages(_Prepared):
    """A split of a prepared set that has the features ``image`` and ``label``; images are decoded by pillow, as RGB.

    name: as TFDS has it, such as "cifar10", "imagenet2012:5.1.0" or "imagenet_v2/top-images".
    data_dir: where data sets live, by default $JAXVISION_DATASETS or ./datasets. decode_at_least: as in
    ``CocoDetection``.
    Raises: FileNotFoundError with the command that prepares the set; ValueError for a split that it does not have, a
    set without these features, and one that is prepared in another format than array_record.
    """

    def _classes(self, name: str, features: dict[str, Any]) -> tuple[str, ...]:
        if not isinstance(features.get("label"), tfds.features.ClassLabel):
            raise ValueError(
                f"{name} has the features {', '.join(sorted(features))}; an image and a class label are needed"
            )
        return tuple(features["label"].names)

    def __getitem__(self, index: SupportsIndex) -> Example:
        record = self.records[index]
        picture = decode(record, index, self.name, at_least=self.decode_at_least)
        return {"image": picture.pixels, "size": picture.size, "label": int(record["label"])}


class PreparedDetection(_Prepared):
    """A split of a prepared set that has ``image`` and ``objects`` with ``bbox`` and ``label``, such as "coco/2017",
    "voc/2007" or your own builder's.

    Objects marked ``is_crowd`` or ``is_difficult`` are ``iscrowd``. ``image_id`` is the feature ``image/id``, or the
    place in the split. TFDS's VOC does not subtract the 1 from which VOC counts pixels, so there the left and upper
    sides lie one pixel further in than ``VocDetection`` has them.
    name, data_dir, and what is raised: as in ``PreparedImages``.
    """

    def _classes(self, name: str, features: dict[str, Any]) -> tuple[str, ...]:
        objects = getattr(features.get("objects"), "feature", {})
        label = objects["label"] if "bbox" in objects and "label" in objects else None
        if not isinstance(label, tfds.features.ClassLabel):
            raise ValueError(
                f"{name} has the features {', '.join(sorted(features))}; an image and objects with bbox and a class "
                "label are needed"
            )
        return tuple(label.names)

    @property
    def category_ids(self) -> tuple[int, ...]:
        return tuple(range(1, len(self.categories) + 1))

    def __getitem__(self, index: SupportsIndex) -> Example:
        record = self.records[index]
        picture = decode(record, index, self.name, at_least=self.decode_at_least)
        annotation = self._annotation(index, record, *picture.pixels.shape[:2])
        return {"image": picture.pixels, "size": picture.size, **annotation}

    def _annotation(self, index: SupportsIndex, record: dict[str, Any], height: int, width: int) -> Example:
        objects = record["objects"]
        top, left, bottom, right = np.asarray(objects["bbox"], np.float32).reshape(-1, 4).T
        apart = np.zeros(len(top), bool)
        for flag in ("is_crowd", "is_difficult"):
            apart |= np.asarray(objects.get(flag, apart), bool)
        return {
            "image_id": int(record.get("image/id", range(len(self))[index])),
            "boxes": np.stack([left * width, top * height, right * width, bottom * height], axis=1),
            "labels": np.asarray(objects["label"], np.int32).reshape(-1),
            "iscrowd": apart,
        }

    def ground_truth(self, indices: Iterable[SupportsIndex] | None = None) -> dict[str, Any]:
        """The truth of the chosen images (all by default) in COCO format; label k has the category id k + 1. Of the
        images only the headers are read."""
        chosen = range(len(self)) if indices is None else indices
        return ground_truth_of(map(self._truth, chosen), categories=self.categories, category_ids=self.category_ids)

    def _truth(self, index: SupportsIndex) -> Example:
        record = self.records[index]
        height, width = header(record, index, self.name)
        return {"size": (height, width), **self._annotation(index, record, height, width)}


def open_split(name: str, split: str, data_dir: str | os.PathLike | None) -> tuple[Any, Any]:
    """The features of a set that has images, and the records of a split with its images still encoded."""
    folder = pathlib.Path(data_dir or os.environ.get("JAXVISION_DATASETS") or "datasets").expanduser()
    remedy = (
        f"pip install 'jaxvision-flax[tfds]' and run tfds build {name} --data_dir {folder} --file_format array_record"
    )
    try:
        builder = read_only_builder.builder_from_files(name, data_dir=str(folder))
    except tfds.core.DatasetNotFoundError as error:
        raise FileNotFoundError(f"the data set {name} is not prepared in {folder}; {remedy}") from error
    features, splits = dict(builder.info.features.items()), builder.info.splits
    if type(features.get("image")) is not tfds.features.Image:
        raise ValueError(f"{name} has the features {', '.join(sorted(features))}; an image is needed")
    if split not in splits:
        raise ValueError(f"{name} has the splits {', '.join(sorted(splits))}, not {split!r}")
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise ValueError(f"{name} in {folder} is not in the format array_record, which alone can be shuffled; {remedy}")
    pictures = (key for key, value in features.items() if type(value) is tfds.features.Image)
    encoded = {key: tfds.decode.SkipDecoding() for key in pictures}
    return features, builder.as_data_source(split, decoders=encoded)


def decode(record: dict[str, Any], index: SupportsIndex, name: str, *, at_least: tuple[int, int] | None) -> Picture:
    """The record's image.

    Raises: ValueError naming the set and the place in it.
    """
    with named(name, index):
        return read_picture(io.BytesIO(record["image"]), at_least=at_least)


def header(record: dict[str, Any], index: SupportsIndex, name: str) -> tuple[int, int]:
    """(height, width) of the record's image, which is not decoded.

    Raises: as ``decode``.
    """
    with named(name, index):
        return size_in_header(io.BytesIO(record["image"]))


@contextlib.contextmanager
def named(name: str, index: SupportsIndex) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}, example {index}: {str(error).partition(': ')[2]}") from error
