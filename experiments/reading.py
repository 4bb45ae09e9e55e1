"""From a config to what networks are fed: transforms, batches, and the preprocessing of single images."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from experiments.config import Config
from jaxvision import data, ops
from jaxvision.data.rows import Rows
from jaxvision.typing import Array, Float


def train_batches(config: Config, rows: Rows, source: Any) -> data.Batches:
    """Endless augmented, shuffled batches of this process's share."""
    return _batches(config, rows, source, train=True, batch_size=config.batch_size // jax.process_count())


def validation_batches(config: Config, rows: Rows, source: Any, *, devices: int = 1) -> data.Batches:
    """This process's share of every image, once and in order, ``eval_batch_size`` for each of its ``devices``; the last
    batch of a shape is padded with rows that are not valid."""
    return _batches(config, rows, source, train=False, batch_size=config.eval_batch_size * devices)


def _batches(config: Config, rows: Rows, source: Any, *, train: bool, batch_size: int) -> data.Batches:
    return data.batches(
        source,
        rows,
        batch_size=batch_size,
        shapes=config.image_size,
        seed=config.seed,
        shuffle=train,
        repeat=train,
        transforms=transforms(config, rows, train=train),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=config.workers,
        worker_processes=config.worker_processes,
    )


def normalized(config: Config, batch: dict[str, Any], *, dtype: str = "float32") -> Float[Array, "b h w 3"]:
    """The images of a batch as networks take them; inside the compiled function."""
    images = batch["images"][..., ::-1] if config.channels == "BGR" else batch["images"]
    return ops.normalize(images, batch.get("image_sizes"), mean=config.mean, std=config.std, dtype=dtype)


def transforms(config: Config, rows: Rows, *, train: bool) -> tuple[Callable, ...]:
    """What happens to an example before it becomes a row, as key-first functions, in order: the configured resize; in
    training also colour, a random window or an enlargement and a crop to the network's size, bending, flip; in
    validation the configured middle.

    The enlargement starts from what validation sees: the image in the size in which the network takes it.
    """
    steps, wanted, shapes = [], config.augmentation, config.image_size
    if config.resize is not None:
        shorter, longest = config.resize
        steps.append(partial(_without_key, partial(data.resize, shorter_side=shorter, longest_side=longest)))
    if not train:
        if config.eval_crop != 1:
            larger = tuple(tuple(round(side / config.eval_crop) for side in shape) for shape in shapes)
            steps.append(partial(_to_shape, rows.frame, larger))
            steps.append(partial(_to_shape, _middle, shapes))
        return tuple(steps)
    if wanted.colour:
        strength = wanted.colour
        steps.append(partial(data.colour_jitter, brightness=strength, contrast=strength, saturation=strength))
    if wanted.crop_area != (1.0, 1.0):
        steps.append(partial(_random_window, shapes, wanted.crop_area))
    elif wanted.scale != (1.0, 1.0):
        steps.append(partial(_to_shape, rows.frame, shapes))
        steps.append(partial(data.scale_jitter, range=wanted.scale))
        steps.append(partial(_random_crop, shapes))
    if wanted.elastic:
        steps.append(partial(data.elastic, sigma=wanted.elastic))
    if wanted.flip:
        steps.append(partial(data.flip_horizontal, probability=wanted.flip))
    return tuple(steps)


def decode_at_least(config: Config) -> tuple[int, int]:
    """The (height, width) below which photographs need not be decoded for training: a JPEG comes at a half, a quarter
    or an eighth of its size as long as no transform would have to enlarge it. Validation decodes whole images."""
    wanted = config.augmentation
    if config.resize is not None:
        sides = (config.resize[0],) * 2
    elif len(config.image_size) == 1 and wanted.crop_area != (1.0, 1.0):
        sides = config.image_size[0]
    else:
        sides = (max(max(shape) for shape in config.image_size),) * 2
    margin = max(1.0, wanted.scale[1]) / math.sqrt(min(wanted.crop_area[0], 1.0))
    return tuple(math.ceil(side * margin) for side in sides)


@dataclass(frozen=True)
class Preprocessing:
    """What a run's validation images go through, for ``jv.predict``: bytes here, normalised on the device."""

    config: Config
    rows: Rows
    scale: float = 1 / 255

    @property
    def mean(self) -> tuple[float, ...]:
        return self.config.mean

    @property
    def std(self) -> tuple[float, ...]:
        return self.config.std

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """uint8 [h, w, 3] of the size, and with the order of channels, in which the network takes the image."""
        example: data.Example = {"image": image}
        for step in transforms(self.config, self.rows, train=False):
            example = step(None, example)
        image = _to_shape(self.rows.frame, self.config.image_size, None, example)["image"]
        return image[..., ::-1] if self.config.channels == "BGR" else image


# Functions of the module and not of the above, so that they can go to the processes that read.


def _without_key(transform: Callable, key: Any, example: data.Example) -> data.Example:
    return transform(example)


def _shape(example: data.Example, shapes: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    return data.nearest_shape(example["image"].shape[:2], shapes)


def _to_shape(frame: Callable, shapes: tuple, key: Any, example: data.Example) -> data.Example:
    return frame(example, _shape(example, shapes))


def _middle(example: data.Example, shape: tuple[int, int]) -> data.Example:
    return data.central_crop(example, size=shape)


def _random_window(shapes: tuple, area: tuple[float, float], key: Any, example: data.Example) -> data.Example:
    return data.random_resized_crop(key, example, size=_shape(example, shapes), area=area)


def _random_crop(shapes: tuple, key: Any, example: data.Example) -> data.Example:
    return data.random_crop(key, example, size=_shape(example, shapes))
