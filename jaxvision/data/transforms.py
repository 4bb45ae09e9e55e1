"""Pure transforms of examples on the host: ``key`` first, options by keyword, the input is never changed.

A key is whatever ``numpy.random.default_rng`` takes (an int, a tuple of ints, the data of a jax key).  All fields of
an example move together, each by its kind in ``source.FIELDS``, in continuous coordinates: the pixel in column i
covers [i, i + 1] and has its centre at i + 0.5.  Images are resampled bilinearly with antialias (pillow), planes take
the pixel below each output pixel's centre.  A mask on its own box is moved exactly: its frame changes, and its grid
is mirrored or stays.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from jaxvision.data.source import FIELDS, Example
from jaxvision.typing import Float

__all__ = [
    "central_crop",
    "colour_jitter",
    "crop",
    "elastic",
    "flip_horizontal",
    "random_crop",
    "random_resized_crop",
    "resize",
    "scale_jitter",
]


def fields(example: Example, *kinds: str) -> Iterator[str]:
    """The names of the example's fields of these kinds; masks are grids if they have frames, and planes if not."""
    grids = "grid" if "mask_boxes" in example else "plane"
    for name, field in FIELDS.items():
        if name in example and (grids if field.kind == "mask" else field.kind) in kinds:
            yield name


def moved(example: Example, image: np.ndarray, functions: dict[str, Callable[[np.ndarray], np.ndarray]]) -> Example:
    """The example with another image and the function of its kind applied to each field."""
    return {
        **example,
        "image": image,
        **{name: function(example[name]) for kind, function in functions.items() for name in fields(example, kind)},
    }


def flip_horizontal(
    key: Any, example: Example, *, probability: float = 0.5, keypoint_pairs: Sequence[tuple[int, int]] = ()
) -> Example:
    """The example mirrored left to right, with ``probability``.

    keypoint_pairs: numbers of the keypoints that change places, such as the left and the right eye.
    """
    if np.random.default_rng(key).random() >= probability:
        return dict(example)
    width = example["image"].shape[1]

    def mirror_boxes(boxes: np.ndarray) -> np.ndarray:
        left, top, right, bottom = boxes.T
        return np.stack([width - right, top, width - left, bottom], axis=-1)

    def mirror_points(points: np.ndarray) -> np.ndarray:
        points = points.copy()
        points[..., 0] = np.where(points[..., 2] > 0, width - points[..., 0], points[..., 0])
        for one, other in keypoint_pairs:
            points[:, [one, other]] = points[:, [other, one]]
        return points

    def mirror(plane: np.ndarray) -> np.ndarray:
        return plane[..., ::-1]

    functions = dict(plane=mirror, grid=mirror, box=mirror_boxes, frame=mirror_boxes, points=mirror_points)
    return moved(example, example["image"][:, ::-1], functions)


def resize(
    example: Example,
    *,
    size: tuple[int, int] | None = None,
    shorter_side: int | None = None,
    longest_side: int | None = None,
) -> Example:
    """The example at another size.

    Either ``size`` = (height, width), or ``shorter_side`` and/or ``longest_side`` in pixels with the aspect kept:
    both together give the largest scale that exceeds neither.  Sides are rounded to the nearest pixel.
    """
    height, width = example["image"].shape[:2]
    if (size is None) == (shorter_side is None and longest_side is None):
        raise ValueError("resize takes either size, or shorter_side and/or longest_side")
    if size is None:
        factors = []
        if shorter_side is not None:
            factors.append(shorter_side / min(height, width))
        if longest_side is not None:
            factors.append(longest_side / max(height, width))
        size = (max(1, round(height * min(factors))), max(1, round(width * min(factors))))
    if size == (height, width):
        return dict(example)
    picture = Image.fromarray(example["image"]).resize(size[::-1], Image.Resampling.BILINEAR)
    rows, columns = (nearest(old, new) for old, new in zip((height, width), size))
    factor = np.array([size[1] / width, size[0] / height], np.float32)
    functions = dict(
        plane=lambda plane: plane[..., rows[:, None], columns],
        box=partial(scale_boxes, factor=factor),
        frame=partial(scale_boxes, factor=factor),
        points=partial(scale_points, factor=factor),
    )
    return moved(example, np.asarray(picture), functions)


def scale_boxes(boxes: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """factor: of x and of y."""
    return boxes * np.tile(factor, 2)


def scale_points(points: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """factor: of x and of y."""
    return np.concatenate([points[..., :2] * factor, points[..., 2:]], axis=-1)


def nearest(old: int, new: int) -> np.ndarray:
    """The input pixel under the centre of each of ``new`` output pixels (the later one on a border)."""
    return (2 * np.arange(new) + 1) * old // (2 * new)


def scale_jitter(key: Any, example: Example, *, range: tuple[float, float] = (0.5, 2.0)) -> Example:
    """The example scaled by a random factor, uniform in the logarithm over ``range``."""
    low, high = range
    if not 0 < low <= high:
        raise ValueError(f"range must be two positive factors in rising order, not {range}")
    factor = np.exp(np.random.default_rng(key).uniform(np.log(low), np.log(high)))
    height, width = example["image"].shape[:2]
    return resize(example, size=(max(1, round(height * factor)), max(1, round(width * factor))))


def random_crop(key: Any, example: Example, *, size: tuple[int, int]) -> Example:
    """A window of ``size`` = (height, width) at a random place; a side shorter than the window stays whole."""
    height, width = example["image"].shape[:2]
    size = (min(size[0], height), min(size[1], width))
    rng = np.random.default_rng(key)
    return crop(
        example, top=int(rng.integers(height - size[0] + 1)), left=int(rng.integers(width - size[1] + 1)), size=size
    )


def random_resized_crop(
    key: Any,
    example: Example,
    *,
    size: tuple[int, int],
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Example:
    """A window of random place, area and aspect, resized to ``size`` = (height, width): the augmentation of ImageNet
    classifiers (Szegedy et al., arXiv:1409.4842, section 6).

    area: range of the window's share of the image, uniform; aspect: range of width over height, uniform in the
    logarithm. Of ten tries the first that lies inside the image is taken, else the largest central window of an allowed
    aspect, as torchvision does it. Objects move along as in ``crop`` and ``resize``.
    """
    for name, (low, high) in (("area", area), ("aspect", aspect)):
        if not 0 < low <= high:
            raise ValueError(f"{name} must be two positive numbers in rising order, not {(low, high)}")
    if area[1] > 1:
        raise ValueError(f"a window cannot have more than the image's area, but area is {area}")
    rng = np.random.default_rng(key)
    height, width = example["image"].shape[:2]
    for _ in range(10):
        pixels = height * width * rng.uniform(*area)
        ratio = np.exp(rng.uniform(*np.log(aspect)))
        h, w = round(np.sqrt(pixels / ratio)), round(np.sqrt(pixels * ratio))
        if 0 < h <= height and 0 < w <= width:
            top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return resize(crop(example, top=top, left=left, size=(h, w)), size=size)
    low, high = aspect
    window = min(height, max(1, round(width / low))), min(width, max(1, round(height * high)))
    return resize(central_crop(example, size=window), size=size)


def central_crop(example: Example, *, size: tuple[int, int]) -> Example:
    """The middle window of ``size`` = (height, width); a side shorter than the window stays whole."""
    height, width = example["image"].shape[:2]
    size = (min(size[0], height), min(size[1], width))
    return crop(example, top=(height - size[0]) // 2, left=(width - size[1]) // 2, size=size)


def crop(example: Example, *, top: int, left: int, size: tuple[int, int]) -> Example:
    """The window of ``size`` at (top, left), which must lie inside the image.

    Boxes are clipped to the window, not tightened to what is left of the mask.  Objects of which nothing is left
    (of the mask where there are masks, else of the box) are dropped, and regions; keypoints outside become 0, 0, 0.
    """
    height, width = example["image"].shape[:2]
    if not (0 <= top <= height - size[0] and 0 <= left <= width - size[1]):
        raise ValueError(f"the window {size} at {top, left} leaves the image of {height, width}")
    rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
    origin = np.array([left, top], np.float32)
    limit = np.array(size[::-1], np.float32)

    def shift(boxes: np.ndarray) -> np.ndarray:
        return boxes - np.tile(origin, 2)

    def shift_points(points: np.ndarray) -> np.ndarray:
        places, flags = points[..., :2] - origin, points[..., 2:]
        seen = (flags > 0) & ((places >= 0) & (places <= limit)).all(-1, keepdims=True)
        return np.where(seen, np.concatenate([places, flags], axis=-1), np.float32(0))

    functions = dict(
        plane=lambda plane: plane[..., rows, columns],
        box=lambda boxes: np.clip(shift(boxes), 0, np.tile(limit, 2)),
        frame=shift,
        points=shift_points,
    )
    cropped = moved(example, example["image"][rows, columns], functions)
    if "regions" in cropped:
        cropped["regions"] = cropped["regions"][has_area(cropped["regions"])]
    if "boxes" not in cropped:
        return cropped
    left_over = has_area(cropped["boxes"])
    if "mask_boxes" in cropped:
        left_over &= any_inside(cropped["masks"], cropped["mask_boxes"], size)
    elif "masks" in cropped:
        left_over &= cropped["masks"].any((1, 2))
    for name, field in FIELDS.items():
        if field.of_object and name in cropped:
            cropped[name] = cropped[name][left_over]
    return cropped


def has_area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] > boxes[:, :2]).all(1)


def any_inside(grids: np.ndarray, frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Which masks cover a part of a cell that reaches into the image of ``size``."""
    lines = np.linspace(0, 1, grids.shape[-1] + 1, dtype=np.float32)
    reach = []
    for axis, limit in ((0, size[1]), (1, size[0])):
        low, high = frames[:, axis, None], frames[:, axis + 2, None]
        at = low + (high - low) * lines
        reach.append((at[:, 1:] > 0) & (at[:, :-1] < limit))
    columns, rows = reach
    return ((grids > 0) & rows[:, :, None] & columns[:, None, :]).any((1, 2))


def elastic(key: Any, example: Example, *, sigma: float = 10.0, grid: int = 3) -> Example:
    """The image and its planes bent smoothly, as in U-Net's training (arXiv:1505.04597, section 3.1): displacements in
    pixels, normal with ``sigma``, at ``grid`` x ``grid`` points spread over the image, and cubic splines between them.

    The image is sampled bilinearly, planes at the nearest pixel; beyond the border they are mirrored.
    Raises: ValueError for an example with boxes or points, which do not bend.
    """
    if rigid := list(fields(example, "box", "frame", "points", "grid")):
        raise ValueError(f"elastic bends images and planes, but this example has {', '.join(rigid)}")
    height, width = example["image"].shape[:2]
    coarse = np.random.default_rng(key).normal(0, sigma, (2, grid, grid))
    moves = _spline(grid, height) @ coarse @ _spline(grid, width).T
    rows, columns = np.mgrid[:height, :width] + moves

    def sampled(plane: np.ndarray, order: int) -> np.ndarray:
        return ndimage.map_coordinates(plane, (rows, columns), order=order, mode="reflect")

    channels = np.moveaxis(example["image"].astype(np.float32), -1, 0)
    image = np.stack([np.round(sampled(channel, 1)) for channel in channels], axis=-1)

    def bend(plane: np.ndarray) -> np.ndarray:
        flat = plane.reshape(-1, height, width)
        return np.array([sampled(one, 0) for one in flat], plane.dtype).reshape(plane.shape)

    return moved(example, image.astype(np.uint8), dict(plane=bend))


@functools.lru_cache
def _spline(points: int, size: int) -> Float[np.ndarray, "size points"]:
    """What each of ``points`` spread evenly over ``size`` places adds to the cubic spline there."""
    places = np.linspace(0, points - 1, size)[None]
    return np.stack(
        [ndimage.map_coordinates(unit, places, order=3, mode="nearest") for unit in np.eye(points)], axis=-1
    )


def colour_jitter(
    key: Any, example: Example, *, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0
) -> Example:
    """The image with its brightness, contrast and saturation scaled, in this order, by factors around 1.

    Each factor is uniform in [max(0, 1 - x), 1 + x] for its option x; 0 turns it off.  Contrast scales the distance
    from the image's mean grey, saturation that from each pixel's own grey (ITU-R 601 luma).
    """
    rng = np.random.default_rng(key)
    bright, steep, vivid = (rng.uniform(max(0.0, 1 - x), 1 + x) for x in (brightness, contrast, saturation))
    luma = np.array([0.299, 0.587, 0.114], np.float32)
    image = np.clip(example["image"] * np.float32(bright), 0, 255)
    image = np.clip(mix(image, (image @ luma).mean(), steep), 0, 255)
    image = np.clip(mix(image, (image @ luma)[..., None], vivid), 0, 255)
    return {**example, "image": np.round(image).astype(np.uint8)}


def mix(image: np.ndarray, grey: Any, factor: float) -> np.ndarray:
    return grey + np.float32(factor) * (image - grey)
