"""What is published: where weights are, what they were trained on, how good they are, and what their input is.

The facts are in ``records.json`` and ``categories_*.json``, written by ``tests/parity/make_records.py``.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxvision.pictures import DAMAGE, check_picture, open_picture, upright
from jaxvision.typing import Float, UInt8


@dataclass(frozen=True)
class Preprocessing:
    """From any image to what a network takes: resize, centre crop, then ``(value * scale - mean) / std``.

    The shorter side becomes ``shorter_side`` pixels, or fewer if the longer one would pass ``longest_side``; the other
    follows, rounded down, or with ``stretch`` is made as long. The resize is Pillow's antialiased bilinear one on
    bytes, as torchvision's for classifiers; torchvision's detectors resize floats without antialias, which differs by
    at most one grey level where the image is enlarged. ``mean`` and ``std`` are in the order of ``channels``.
    """

    shorter_side: int
    longest_side: int | None = None
    crop: int | None = None
    stretch: bool = False
    channels: Literal["RGB", "BGR"] = "RGB"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self):
        if self.crop is not None and self.crop > self.shorter_side:
            raise ValueError(f"crop={self.crop} does not fit into shorter_side={self.shorter_side}")

    def __call__(self, image: Any) -> Float[np.ndarray, "h w 3"]:
        """The float32 image for the network, without a batch axis: ``pixels``, normalised."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return (self.pixels(image).astype(np.float32) * np.float32(self.scale) - mean) / std

    def pixels(self, image: Any) -> UInt8[np.ndarray, "h w 3"]:
        """The bytes of the image for the network, which ``ops.normalize`` takes on the device.

        image: uint8 array [h, w], [h, w, 1], [h, w, 3] or [h, w, 4] in RGB (alpha is dropped), a Pillow image, or
        the path of a file.
        Raises: ValueError for another array, and for a file that is no whole image.
        """
        from PIL import Image

        picture = _open(image)
        width, height = self._size(*picture.size)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        if self.crop is not None:
            left, top = round((width - self.crop) / 2), round((height - self.crop) / 2)
            picture = picture.crop((left, top, left + self.crop, top + self.crop))
        pixels = np.asarray(picture)
        return pixels[..., ::-1] if self.channels == "BGR" else pixels

    def _size(self, width: int, height: int) -> tuple[int, int]:
        if self.stretch:
            return self.shorter_side, self.shorter_side
        short, long = sorted((width, height))
        if self.longest_side is None:
            other = int(self.shorter_side * long / short)
            return (self.shorter_side, other) if width <= height else (other, self.shorter_side)
        factor = min(self.shorter_side / short, self.longest_side / long)
        return max(int(width * factor), 1), max(int(height * factor), 1)


@dataclass(frozen=True)
class WeightsRecord:
    """One set of published weights for one registered model."""

    model: str  # a registered name
    name: str
    url: str  # or "package:" and a file of an installed package
    sha256: str  # 64 hex digits, or the first 8 or 10 where the publisher gives no more
    licence: str
    recipe: str  # how it was trained
    # As the publisher counts: torchvision leaves out frozen scales and shifts, and GoogLeNet's auxiliary heads (which
    # its file holds, untrained), and counts the classifier that vgg16's IMAGENET1K_FEATURES do not have.
    num_params: int
    metrics: Mapping[str, Mapping[str, float]]  # by data set, in per cent
    categories: tuple[str, ...] = field(repr=False)  # name of label 0, 1, ...; empty for weights without a classifier
    preprocessing: Preprocessing
    model_options: Mapping[
        str, Any
    ]  # what get_model must be given to reproduce the metrics; num_classes=0: features only
    default: bool


def get_record(model: str, name: str = "DEFAULT") -> WeightsRecord:
    """The record of that name for a model; "DEFAULT" is the best one.

    Raises: ValueError with the names there are.
    """
    for record in _records():
        if record.model == model and (record.name == name or (name == "DEFAULT" and record.default)):
            return record
    names = list_weights(model)
    if not names:
        raise ValueError(f"no weights for {model!r}; there are for {sorted({r.model for r in _records()})}")
    raise ValueError(f"no weights {name!r} for {model!r}; there are {names}")


def list_weights(model: str) -> list[str]:
    """Names of the published weights for a model; empty if there are none."""
    return [record.name for record in _records() if record.model == model]


@functools.cache
def _records() -> tuple[WeightsRecord, ...]:
    return tuple(
        WeightsRecord(
            **entry
            | {
                "categories": _categories(entry["categories"]) if entry["categories"] else (),
                "preprocessing": Preprocessing(**_tuples(entry["preprocessing"])),
            }
        )
        for entry in _read("records.json")
    )


@functools.cache
def _categories(name: str) -> tuple[str, ...]:
    return tuple(_read(f"categories_{name}.json"))


def _read(name: str) -> list[Any]:
    return json.loads(resources.files("jaxvision.weights").joinpath(name).read_text("utf-8"))


def _tuples(options: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}


def _open(image: Any):
    """A Pillow image in RGB, fully read."""
    from PIL import Image

    if isinstance(image, str | Path):
        try:
            with open_picture(image) as file:
                return upright(file).convert("RGB")
        except FileNotFoundError:
            raise
        except ValueError as error:
            raise ValueError(f"{image}: {error}") from error
        except (*DAMAGE, Image.DecompressionBombError) as error:
            raise ValueError(f"{image} is truncated, damaged, or no image ({error})") from error
    if isinstance(image, Image.Image):
        check_picture(image)
        return image.convert("RGB")
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise ValueError(
            f"an image is uint8 [h, w], [h, w, 1], [h, w, 3] or [h, w, 4], this is {pixels.dtype} "
            f"{list(pixels.shape)}; floats in 0...1 become bytes by (255 * x).round().astype('uint8')"
        )
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    check_picture(picture)
    return picture.convert("RGB")
