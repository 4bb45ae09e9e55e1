"""The configured augmentation, as key-first functions of an example."""

from collections.abc import Callable
from functools import partial

from experiments.config import Augmentation
from jaxvision import data


def augmentations(wanted: Augmentation, image_size: tuple[int, int]) -> tuple[Callable, ...]:
    """In order: colour, enlargement, crop to the network's size, flip."""
    steps = []
    if wanted.colour:
        strength = wanted.colour
        steps.append(partial(data.colour_jitter, brightness=strength, contrast=strength, saturation=strength))
    if wanted.scale != (1.0, 1.0):
        steps.append(partial(data.scale_jitter, range=wanted.scale))
        steps.append(partial(data.random_crop, size=image_size))
    if wanted.flip:
        steps.append(partial(data.flip_horizontal, probability=wanted.flip))
    return tuple(steps)
