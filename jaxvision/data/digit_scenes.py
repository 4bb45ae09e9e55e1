"""Handwritten digits in photographs: a detection data set made on the spot, without a download.

Each 128×128 scene is a crop of a photograph (those that ship inside scikit-learn and scikit-image) with one to six
digits of scikit-learn's ``load_digits`` painted over it, enlarged to 16-48 pixels, in random saturated colours.  A
digit's mask is where its enlarged picture exceeds a quarter of its maximum and no nearer digit's mask lies over it;
its box is the tight box of that mask.  Training and test scenes use different handwriting (the first 1,437 digits
and the last 360) but crops of the same photographs.  Every scene depends on its split and index alone.
"""

import colorsys
import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxvision.data.source import Example, ground_truth_of

__all__ = ["DigitScenes", "DigitScenesSource", "load_digit_scenes"]

SIZE = 128
SCENES = {"train": 4000, "test": 500}
TRAIN_DIGITS = 1437  # the remaining 360 are for the test scenes
MAX_DIGITS = 6
DIGIT_SIDES = (16, 48)
MIN_VISIBLE = 0.6  # share of a digit's mask that nearer digits must leave uncovered
PICTURES = ("image", "instances", "semantic")
PLACEMENTS = 20  # tries for one digit before it is left out


class Scene(NamedTuple):
    """One painted scene; digits are ordered from far to near."""

    image: np.ndarray  # uint8 [128, 128, 3]
    instances: np.ndarray  # uint8 [128, 128]: 0 or 1 + the number of the digit on top
    semantic: np.ndarray  # uint8 [128, 128]: 0 or 1 + the class of the digit on top
    boxes: np.ndarray  # float32 [n, 4]
    labels: np.ndarray  # int64 [n]


def photographs() -> list[np.ndarray]:
    """The backgrounds, uint8 RGB; all of them lie inside the installed packages."""
    try:
        from skimage import data
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise ImportError(
            f"digit_scenes is made from scikit-learn's and scikit-image's pictures ({error}); "
            "install them with: pip install 'jaxvision-flax[demo]'"
        ) from error
    names = ("astronaut", "chelsea", "coffee", "rocket")
    left, _, _ = data.stereo_motorcycle()
    return [*load_sample_images().images, *(getattr(data, name)() for name in names), left]


def handwriting(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The digits of a split: float32 [n, 8, 8] in 0 ... 16, and their classes."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    part = slice(None, TRAIN_DIGITS) if split == "train" else slice(TRAIN_DIGITS, None)
    return digits.images[part].astype(np.float32), digits.target[part]


def background(rng: np.random.Generator, photos: list[np.ndarray], *, size: int = SIZE) -> np.ndarray:
    """A random square of a random photograph, shrunk to ``size``, mirrored half of the time."""
    photo = photos[rng.integers(len(photos))]
    height, width, _ = photo.shape
    side = int(rng.integers(size, min(height, width) + 1))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    crop = Image.fromarray(photo[top : top + side, left : left + side])
    image = np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR))
    return image[:, ::-1] if rng.random() < 0.5 else image


def enlarge(digit: np.ndarray, side: int) -> np.ndarray:
    """The digit with its 8×8 cells spread over ``side`` pixels, scaled to a maximum of 1.

    One empty cell is added all around first, so that strokes on the rim end round rather than cut.
    """
    padded = Image.fromarray(np.pad(digit, 1))
    full = round(side * padded.width / digit.shape[1])
    large = np.asarray(padded.resize((full, full), Image.Resampling.BICUBIC))
    return np.clip(large / large.max(), 0.0, 1.0)


def place(
    rng: np.random.Generator, mask: np.ndarray, instances: np.ndarray, areas: list[int]
) -> tuple[int, int] | None:
    """(top, left) of a random place for ``mask`` that leaves the digits of ``instances`` visible, or None."""
    side = len(mask)
    for _ in range(PLACEMENTS):
        top, left = rng.integers(SIZE - side + 1, size=2).tolist()
        covers = np.zeros((SIZE, SIZE), bool)
        covers[top : top + side, left : left + side] = mask
        visible = np.bincount(instances[~covers], minlength=len(areas) + 1)[1:]
        if all(seen >= MIN_VISIBLE * area for seen, area in zip(visible, areas)):
            return top, left
    return None


def paint(rng: np.random.Generator, photos: list[np.ndarray], digits: np.ndarray, classes: np.ndarray) -> Scene:
    """One scene."""
    image = background(rng, photos).astype(np.float32)
    instances = np.zeros((SIZE, SIZE), np.uint8)
    areas: list[int] = []  # of the uncovered masks
    labels: list[int] = []
    for _ in range(rng.integers(1, MAX_DIGITS + 1)):
        chosen = rng.integers(len(digits))
        strength = enlarge(digits[chosen], int(rng.integers(DIGIT_SIDES[0], DIGIT_SIDES[1] + 1)))
        mask = strength > 0.25
        corner = place(rng, mask, instances, areas)
        if corner is None:
            continue
        window = tuple(slice(start, start + len(mask)) for start in corner)
        hue, saturation, value = rng.uniform((0.0, 0.6, 0.5), 1.0)
        colour = np.float32(colorsys.hsv_to_rgb(hue, saturation, value)) * 255
        # Twice the strength: the outline of the mask is where the paint is half transparent.
        alpha = np.minimum(2 * strength, 1.0)[..., None]
        image[window] += alpha * (colour - image[window])
        areas.append(int(mask.sum()))
        labels.append(int(classes[chosen]))
        instances[window][mask] = len(areas)
    boxes = [tight_box(instances == number + 1) for number in range(len(labels))]
    semantic = np.array([0, *(label + 1 for label in labels)], np.uint8)[instances]
    return Scene(
        np.round(image).astype(np.uint8), instances, semantic, np.array(boxes, np.float32), np.array(labels, np.int64)
    )


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def decode_png(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data), formats=("PNG",)))


def encode_png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


class DigitScenes(tfds.core.GeneratorBasedBuilder):
    """The TFDS builder; ``load_digit_scenes`` prepares and opens it."""

    VERSION = tfds.core.Version("1.0.0")
    # Nothing is downloaded.  (To look for checksums, TFDS 4.9.10 needs importlib_resources, which it does not require.)
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        plane = tfds.features.Image(shape=(SIZE, SIZE, 1), encoding_format="png")
        features = {
            "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
            "instances": plane,
            "semantic": plane,
            "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
            "labels": tfds.features.Tensor(shape=(None,), dtype=np.int64),
            "image_id": tfds.features.Scalar(dtype=np.int64),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in SCENES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        photos = photographs()
        digits, classes = handwriting(split)
        for index in range(SCENES[split]):
            rng = np.random.default_rng((list(SCENES).index(split), index))
            scene = paint(rng, photos, digits, classes)
            pictures = {name: encode_png(getattr(scene, name)) for name in PICTURES}
            yield index, {**pictures, "boxes": scene.boxes, "labels": scene.labels, "image_id": index}


class DigitScenesSource:
    """The scenes of a prepared split; examples carry ``masks`` and ``semantic`` uint8 [128, 128] as well."""

    categories = tuple(str(digit) for digit in range(10))
    category_ids = tuple(range(1, 11))

    def __init__(self, records: Any):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def size(self, index: SupportsIndex) -> tuple[int, int]:
        return SIZE, SIZE

    def __getitem__(self, index: SupportsIndex) -> Example:
        record = self.records[index]
        pictures = {name: decode_png(record[name]) for name in PICTURES}
        boxes = np.asarray(record["boxes"], np.float32)
        numbers = np.arange(1, len(boxes) + 1, dtype=np.uint8)
        return {
            "image": pictures["image"],
            "size": (SIZE, SIZE),
            "image_id": int(record["image_id"]),
            "boxes": boxes,
            "labels": np.asarray(record["labels"], np.int32),
            "masks": pictures["instances"][None] == numbers[:, None, None],
            "semantic": pictures["semantic"],
            "iscrowd": np.zeros(len(boxes), bool),
        }

    def ground_truth(self, indices: Any = None) -> dict[str, Any]:
        """The truth of the chosen scenes (all by default) in COCO format; the category id of digit d is d + 1."""
        chosen = range(len(self)) if indices is None else indices
        return ground_truth_of(
            (self[index] for index in chosen), categories=self.categories, category_ids=self.category_ids
        )


def load_digit_scenes(split: str, *, data_dir: str | os.PathLike | None = None) -> DigitScenesSource:
    """The scenes of ``split`` ("train" or "test"), painted first (about half a minute) if they are not there yet.

    data_dir: where data sets live, by default $JAXVISION_DATASETS or ./datasets.  The scenes are written to a
    temporary folder that is renamed when complete, so an interrupted preparation starts again the next time.
    Raises: ValueError for another split; ImportError if the extra ``demo`` is missing and the scenes must be painted.
    """
    if split not in SCENES:
        raise ValueError(f"digit_scenes has the splits {', '.join(SCENES)}, not {split!r}")
    folder = pathlib.Path(data_dir or os.environ.get("JAXVISION_DATASETS") or "datasets").expanduser()
    builder = DigitScenes(data_dir=str(folder), file_format="array_record")
    try:
        builder.download_and_prepare()
    except OSError:
        builder = DigitScenes(data_dir=str(folder), file_format="array_record")
        if not builder.is_prepared():  # else another process was first
            raise
    # The pictures are decoded here: TFDS would first advise to install OpenCV.
    encoded = {name: tfds.decode.SkipDecoding() for name in PICTURES}
    return DigitScenesSource(builder.as_data_source(split, decoders=encoded))
