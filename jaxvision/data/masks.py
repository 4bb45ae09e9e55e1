"""Masks on their own boxes: how much of each cell of a grid the object covers, from run lengths, without its plane."""

import numpy as np
from scipy import ndimage

from jaxvision.data.source import Example
from jaxvision.typing import Bool, Float, Int, Integer, UInt8

__all__ = ["border_weights", "coverage", "frames_of", "on_boxes", "run_lengths", "runs_of"]


def coverage(
    runs: Int[np.ndarray, " r"], size: tuple[int, int], box: Float[np.ndarray, "4"], *, side: int
) -> UInt8[np.ndarray, "side side"]:
    """The share of each cell of a ``side`` x ``side`` grid over ``box`` that the mask covers, 0 ... 255.

    runs: lengths of the runs of zeros and ones in turn, zeros first, down the columns of a mask of ``size`` = (height,
    width). box: xyxy in pixels; beyond the mask there is nothing. Exact up to the rounding: a pixel that lies in two
    cells counts in each by its part. A box without area gives zeros.
    """
    left, top, right, bottom = np.asarray(box, np.float64).tolist()
    if right <= left or bottom <= top or right <= 0 or left >= size[1]:
        return np.zeros((side, side), np.uint8)
    # The number of ones before each place is linear between the ends of the runs, inside pixels too.
    ends = np.concatenate([[0], np.cumsum(runs)])
    ones = np.concatenate([[0], np.cumsum(np.where(np.arange(len(runs)) % 2, runs, 0))])
    height, width = size
    first, last = (int(x) for x in np.clip((np.floor(left), np.ceil(right)), 0, width))
    rows = np.linspace(top, bottom, side + 1).clip(0, height)
    columns = np.arange(first, last)
    before = np.interp((columns[:, None] * height + rows).ravel(), ends, ones).reshape(-1, side + 1)
    in_columns = np.diff(before, axis=1)  # ones of each column between two rows of the grid's lines
    before = np.concatenate([np.zeros((1, side)), np.cumsum(in_columns, axis=0)])
    places = (np.linspace(left, right, side + 1) - first).clip(0, last - first)
    whole = np.minimum(places.astype(int), last - first - 1)
    before = before[whole] + (places - whole)[:, None] * in_columns[whole]
    cells = np.diff(before, axis=0).T * (side * side / ((right - left) * (bottom - top)))
    return np.round(255 * np.clip(cells, 0, 1)).astype(np.uint8)


def frames_of(boxes: Float[np.ndarray, "n 4"], side: int) -> Float[np.ndarray, "n 4"]:
    """The frames of the grids of objects with these boxes, xyxy in pixels.

    A frame begins where the box's first pixel does and reaches to where its last one ends, or beyond: of an object of
    at most ``side`` pixels so far that each pixel has a whole number of cells, and its grid loses nothing.
    """
    low = np.floor(boxes[:, :2])
    extent = np.maximum(np.ceil(boxes[:, 2:]) - low, 1)
    length = np.where(extent <= side, side / np.maximum(side // extent, 1), extent)
    return np.concatenate([low, low + length], axis=1).astype(boxes.dtype)


def runs_of(mask: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, " r"]:
    """The run lengths that ``coverage`` takes, of a mask in a plane."""
    flat = np.concatenate([[False], mask.T.ravel()])  # the first run is one of zeros
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], changes, [flat.size - 1]]))


def run_lengths(code: bytes) -> Int[np.ndarray, " r"] | None:
    """The run lengths of a compressed RLE of COCO, or None if it is none.

    Each count is written as characters of five bits, lowest first, a sixth bit on all but the last, and from the
    fourth count on as the difference to the count before the last.  pycocotools decodes a code that is too short to
    uninitialised memory, so codes are checked here first.
    """
    digits = np.frombuffer(code, np.uint8).astype(np.int64) - 48
    if not digits.size or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        return None
    ends = np.flatnonzero(digits < 32)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(digits.size) - np.repeat(starts, ends - starts + 1)
    if place.max() > 6:  # more than the 32 bits of a count
        return None
    counts = np.add.reduceat((digits & 31) << (5 * place), starts)
    counts -= np.where(digits[ends] & 16, 1 << (5 * (place[ends] + 1)), 0)  # the sign bit
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts


def on_boxes(example: Example, side: int) -> Example:
    """The example with its planes of masks moved to grids on the objects' boxes; one that has grids stays as it is.

    Raises: ValueError if it has grids of another side.
    """
    masks = example["masks"]
    if "mask_boxes" in example:
        if masks.shape[1] != side:
            raise ValueError(f"the source's masks have {masks.shape[1]} cells a side, but {side} were asked for")
        return example
    frames = frames_of(example["boxes"], side)
    grids = [coverage(runs_of(mask), mask.shape, frame, side=side) for mask, frame in zip(masks, frames)]
    return {**example, "masks": np.array(grids, np.uint8).reshape(-1, side, side), "mask_boxes": frames}


def border_weights(
    instances: Integer[np.ndarray, "h w"], *, peak: float = 10.0, sigma: float = 5.0
) -> Float[np.ndarray, "h w"]:
    """U-Net's weights of pixels, for a loss that keeps neighbours apart (arXiv:1505.04597, equation 2, without its
    balance of the classes): 1, and in the background (0) ``peak * exp(-(d1 + d2)^2 / (2 sigma^2))`` more, where d1 and
    d2 are the distances in pixels to the nearest and the second nearest instance, each a number of its own."""
    weights = np.ones(instances.shape, np.float32)
    numbers = np.setdiff1d(instances, [0])
    if len(numbers) < 2:
        return weights
    nearest = np.full((2, *instances.shape), np.inf)
    for number in numbers:
        distance = ndimage.distance_transform_edt(instances != number)
        nearest = np.sort([*nearest, distance], axis=0)[:2]
    more = peak * np.exp(-(nearest.sum(0) ** 2) / (2 * sigma**2))
    return (weights + np.where(instances == 0, more, 0)).astype(np.float32)
