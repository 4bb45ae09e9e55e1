"""Readers of maps of classes: VOC, Cityscapes, folders as ADE20K's and COCO-Stuff's, COCO's panoptic PNG.

Each gives ``SemanticMaps``, whose examples carry ``semantic``: a class a pixel, and 255 where none is known or wanted.
"""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, SupportsIndex

import numpy as np
from PIL import Image

from jaxvision.data.coco import load_json
from jaxvision.data.folder import pictures_in
from jaxvision.data.images import OnError, Problems, leads_out
from jaxvision.data.source import Example, Source
from jaxvision.data.transforms import nearest
from jaxvision.data.voc import VOC_CATEGORIES, names_in
from jaxvision.pictures import DAMAGE, FORMATS, open_picture
from jaxvision.typing import IGNORE, Int, UInt8

__all__ = [
    "CITYSCAPES_CATEGORIES",
    "SemanticMaps",
    "WithBackground",
    "cityscapes",
    "coco_panoptic",
    "read_map",
    "semantic_folders",
    "voc_segmentation",
]

# The 19 classes that are evaluated, by the label id in the ``labelIds`` files (cityscapesScripts, labels.py).
CITYSCAPES_CATEGORIES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip


class SemanticMaps:
    """Pictures and, for each, the file of its map of classes.

    read: the map of a file, a class a pixel or 255. decode_at_least: as in ``CocoDetection``; the map follows.
    on_error: "raise" refuses missing files at once, and others when they are read; "skip" logs each, lists it in
    ``problems`` and leaves it out.
    Raises: ValueError naming the file for a picture or map that is missing or unreadable, a map of another size than
    its picture, and what ``read`` refuses.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[pathlib.Path, pathlib.Path]],
        read: Callable[[pathlib.Path], UInt8[np.ndarray, "h w"]],
        *,
        categories: Sequence[str],
        where: str | os.PathLike,
        on_error: OnError = "raise",
        decode_at_least: tuple[int, int] | None = None,
    ):
        if not 1 <= len(categories) <= IGNORE:
            raise ValueError(f"{where}: {len(categories)} classes; a map of bytes has from 1 to {IGNORE}")
        self.categories, self.decode_at_least, self._read = tuple(categories), decode_at_least, read
        self._problems = Problems(on_error)
        sound = [self._problems.check_files("", [str(path) for path in column]) for column in zip(*pairs)]
        self._pairs = [pair for pair, *both in zip(pairs, *sound) if all(both)]
        self._problems.refuse(where)
        if not self._pairs:
            first = "".join(f"; the first problem: {problem}" for problem in self.problems[:1])
            raise ValueError(f"{where}: no picture with a map of classes inside{first}")

    @property
    def problems(self) -> list[str]:
        """What was skipped so far, file and reason."""
        return list(self._problems.found)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: SupportsIndex) -> Example | None:
        index = range(len(self))[index]
        path, map_path = self._pairs[index]
        picture = self._problems.read(path, at_least=self.decode_at_least)
        if picture is None:
            return None
        try:
            classes = self._read(map_path)
            if classes.shape != picture.size:
                sizes = "{}×{}, but the picture {} is {}×{}".format(*classes.shape, path, *picture.size)
                raise ValueError(f"{map_path}: is {sizes}; a map has one class for each pixel of its picture")
        except ValueError as error:
            if self._problems.on_error == "raise":
                raise
            self._problems.add(str(error))
            return None
        rows, columns = (nearest(old, new) for old, new in zip(picture.size, picture.pixels.shape))
        return {
            "image": picture.pixels,
            "file": path.name,
            "size": picture.size,
            "image_id": index,
            "semantic": classes[rows[:, None], columns],
        }

    def size(self, index: SupportsIndex) -> tuple[int, int]:
        return self._problems.size(self._pairs[index][0])


class WithBackground:
    """A source whose examples have ``semantic`` with 0 for what is no object and 1 + label else, seen as a source of
    maps: its classes are "background" and then its own."""

    def __init__(self, source: Source):
        self.source, self.categories = source, ("background", *source.categories)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: SupportsIndex) -> Example | None:
        example = self.source[index]
        names = ("image", "file", "size", "image_id", "semantic")
        return example and {name: example[name] for name in names if name in example}

    def size(self, index: SupportsIndex) -> tuple[int, int]:
        return self.source.size(index)


def read_map(
    path: str | os.PathLike, *, num_classes: int, classes: Mapping[int, int] | None = None
) -> UInt8[np.ndarray, "h w"]:
    """The map of classes of a file: grey values of 8 or 16 bits, or numbers in a palette, whose colours mean nothing.

    classes: from a value in the file to its class; values that it lacks become 255. Without it the values are the
    classes, and 255.
    Raises: ValueError naming the file if it is no picture, has colours where numbers are wanted, or holds values that
    are neither classes nor 255.
    """
    values = _values(path)
    if classes is not None:
        table = np.full(max(int(values.max()), *classes) + 1, IGNORE, np.uint8)
        table[list(classes)] = list(classes.values())
        return table[values]
    wrong = np.unique(values[(values >= num_classes) & (values != IGNORE)])
    if wrong.size:
        shown = ", ".join(map(str, wrong[:5])) + ", ..." * (wrong.size > 5)
        raise ValueError(
            f"{path}: has the value(s) {shown}, but there are {num_classes} classes, 0 to {num_classes - 1}, and "
            f"{IGNORE} for none; name all classes, or map the values to classes"
        )
    return values.astype(np.uint8)


def _values(path: str | os.PathLike) -> Int[np.ndarray, "h w"]:
    try:
        with open_picture(path, deep=True) as picture:
            mode, values = picture.mode, np.asarray(picture)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such map of classes") from error
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable map of classes ({error}); restore the file") from error
    if values.ndim == 3:
        raise ValueError(
            f"{path}: has colours ({mode}) where each pixel should hold the number of its class; save it as a grey or "
            "palette PNG of numbers"
        )
    return values.astype(np.int32)


def voc_segmentation(
    devkit: str | os.PathLike,
    splits: Sequence[str],
    *,
    categories: Sequence[str] = ("background", *VOC_CATEGORIES),
    maps: str = "SegmentationClass",
    **options: Any,
) -> SemanticMaps:
    """VOC's maps of the lists in ``ImageSets/Segmentation``, such as "VOC2012/train" (1,464 images) and "VOC2012/val".

    maps: the folder of the maps beside JPEGImages. The 10,582 images of Hariharan et al. 2011 are, as they are handed
    around, a list "trainaug" and the folder "SegmentationClassAug". options: of ``SemanticMaps``.
    """
    pairs = []
    for split in splits:
        year, _, listing = split.partition("/")
        folder = pathlib.Path(devkit) / year
        path = folder / "ImageSets" / "Segmentation" / f"{listing}.txt"
        for name in names_in(path):
            if leads_out(name):
                raise ValueError(f"{path}: the image {name!r} leads out of the folder of images")
            pairs.append((folder / "JPEGImages" / f"{name}.jpg", folder / maps / f"{name}.png"))
    read = partial(read_map, num_classes=len(categories))
    return SemanticMaps(pairs, read, categories=categories, where=devkit, **options)


def cityscapes(root: str | os.PathLike, split: str, **options: Any) -> SemanticMaps:
    """Cityscapes as its archives unpack: ``leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`` and the fine ``labelIds``, of
    which 19 are classes and the others 255."""
    pictures = pathlib.Path(root) / "leftImg8bit" / split
    if not pictures.is_dir():
        raise FileNotFoundError(f"{pictures}: no such folder; unpack Cityscapes' archives, and name the folder of both")
    ending = "_leftImg8bit.png"
    pairs = []
    for path in sorted(pictures.glob(f"*/*{ending}")):
        name = path.name.removesuffix(ending)
        pairs.append((path, pathlib.Path(root) / "gtFine" / split / path.parent.name / f"{name}_gtFine_labelIds.png"))
    classes = {value: label for label, value in enumerate(CITYSCAPES_CATEGORIES)}
    read = partial(read_map, num_classes=len(classes), classes=classes)
    return SemanticMaps(pairs, read, categories=tuple(CITYSCAPES_CATEGORIES.values()), where=root, **options)


def semantic_folders(
    images: str | os.PathLike,
    maps: str | os.PathLike,
    *,
    categories: Sequence[str],
    zero_is_none: bool = False,
    **options: Any,
) -> SemanticMaps:
    """A folder of pictures and one of PNG maps with the same names below it, as ADE20K's and COCO-Stuff's.

    zero_is_none: in the files 0 is no class, and class 0 is 1, as in ADE20K. options: of ``SemanticMaps``.
    Raises: FileNotFoundError without the folders; ValueError as ``SemanticMaps``.
    """
    images, maps = pathlib.Path(images), pathlib.Path(maps)
    for folder in (images, maps):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
    pairs = [(images / name, (maps / name).with_suffix(".png")) for name in pictures_in(images, suffixes)]
    classes = {label + 1: label for label in range(len(categories))} if zero_is_none else None
    read = partial(_read_shifted if zero_is_none else read_map, num_classes=len(categories), classes=classes)
    return SemanticMaps(pairs, read, categories=categories, where=images, **options)


def _read_shifted(path: pathlib.Path, *, num_classes: int, classes: Mapping[int, int]) -> UInt8[np.ndarray, "h w"]:
    read_map(path, num_classes=num_classes + 1)  # refuses what is none of the classes
    return read_map(path, num_classes=num_classes, classes=classes)


def coco_panoptic(
    images: str | os.PathLike,
    annotations: str | os.PathLike,
    maps: str | os.PathLike,
    *,
    category_ids: Sequence[int] | None = None,
    **options: Any,
) -> SemanticMaps:
    """COCO's panoptic annotations as maps of classes: a JSON file, and a folder of PNG whose pixels hold the number of
    their segment, red + 256 green + 65536 blue, where 0 is none.

    category_ids: the data set's own ids of the classes wanted, in label order; all by default. What is of none of them
    is 255. options: of ``SemanticMaps``.
    """
    content = load_json(pathlib.Path(annotations))
    try:
        names = {category["id"]: category["name"] for category in content["categories"]}
        chosen = tuple(names) if category_ids is None else tuple(category_ids)
        labels = {category: label for label, category in enumerate(chosen)}
        pictures = {image["id"]: image["file_name"] for image in content["images"]}
        pairs, segments, outside = [], {}, []
        for annotation in content["annotations"]:
            files = pictures[annotation["image_id"]], annotation["file_name"]
            outside += filter(leads_out, files)
            image, path = (pathlib.Path(folder) / name for folder, name in zip((images, maps), files))
            pairs.append((image, path))
            segments[path.name] = {
                segment["id"]: labels.get(segment["category_id"], IGNORE) for segment in annotation["segments_info"]
            }
    except (KeyError, TypeError) as error:
        raise ValueError(f"{annotations}: a record lacks or misnames {error}; is it COCO's panoptic format?") from error
    if missing := set(chosen) - names.keys():
        raise ValueError(f"{annotations}: has no categories {sorted(missing)}")
    if outside:
        raise ValueError(f"{annotations}: the file {outside[0]!r} leads out of the folder that is given")
    read = partial(_read_segments, segments=segments)
    return SemanticMaps(pairs, read, categories=tuple(names[i] for i in chosen), where=annotations, **options)


def _read_segments(path: pathlib.Path, *, segments: Mapping[str, Mapping[int, int]]) -> UInt8[np.ndarray, "h w"]:
    try:
        with open_picture(path) as picture:
            mode, colours = picture.mode, np.asarray(picture)
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable map of segments ({error}); restore the file") from error
    if mode != "RGB":
        raise ValueError(f"{path}: is {mode}, but a panoptic map holds the number of a segment in red, green and blue")
    numbers = colours.astype(np.int32) @ np.array([1, 256, 65536], np.int32)
    found, inverse = np.unique(numbers, return_inverse=True)
    own = segments[path.name]
    if unknown := [int(number) for number in found if number and int(number) not in own]:
        raise ValueError(f"{path}: has the segment(s) {unknown[:5]}, which its annotation does not list")
    return np.array([own.get(int(number), IGNORE) for number in found], np.uint8)[inverse.reshape(numbers.shape)]
