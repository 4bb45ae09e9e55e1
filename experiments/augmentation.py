"""What happens to an image before it is batched, as key-first functions of an example."""

from collections.abc import Callable
from functools import partial

from experiments.config import Config
from jaxvision import data
from jaxvision.registry import model_task


def transforms(config: Config, *, train: bool) -> tuple[Callable, ...]:
    """In order: the configured resize; in training also colour, a random window or an enlargement and a crop to the
    network's size, flip; in validation the configured middle.

    The enlargement starts from what validation sees: the image in the size in which the network takes it.
    """
    steps, wanted = [], config.augmentation
    if config.resize is not None:
        shorter, longest = config.resize
        steps.append(lambda key, example: data.resize(example, shorter_side=shorter, longest_side=longest))
    if not train:
        if config.eval_crop != 1:
            larger = tuple(round(side / config.eval_crop) for side in config.image_size)
            steps.append(lambda key, example: data.cover(example, larger))
            steps.append(lambda key, example: data.central_crop(example, size=config.image_size))
        return tuple(steps)
    if wanted.colour:
        strength = wanted.colour
        steps.append(partial(data.colour_jitter, brightness=strength, contrast=strength, saturation=strength))
    if wanted.crop_area != (1.0, 1.0):
        steps.append(partial(data.random_resized_crop, size=config.image_size, area=wanted.crop_area))
    elif wanted.scale != (1.0, 1.0):
        frame = data.fit if model_task(config.model) == "detection" else data.cover
        steps.append(lambda key, example: frame(example, config.image_size))
        steps.append(partial(data.scale_jitter, range=wanted.scale))
        steps.append(partial(data.random_crop, size=config.image_size))
    if wanted.flip:
        steps.append(partial(data.flip_horizontal, probability=wanted.flip))
    return tuple(steps)
