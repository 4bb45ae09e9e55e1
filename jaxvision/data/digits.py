"""Two small classification sets made of scikit-learn's handwritten digits, without a download.

In both the first 1,437 digits are for training and the last 360 for testing, as in ``digit_scenes``.
"""

import colorsys
from typing import SupportsIndex

import numpy as np

from jaxvision.data.digit_scenes import background, enlarge, handwriting, photographs
from jaxvision.data.source import Example

__all__ = ["DigitCrops", "Digits"]

SPLITS = ("train", "test")
CATEGORIES = tuple(str(digit) for digit in range(10))


class Digits:
    """The 8x8 pictures of ``load_digits`` as they are, grey in RGB.

    Raises: ValueError for a split other than "train" and "test"; ImportError without scikit-learn (extra ``demo``).
    """

    categories = CATEGORIES

    def __init__(self, split: str):
        _check(split)
        self.images, self.labels = handwriting(split)

    def __len__(self) -> int:
        return len(self.labels)

    def size(self, index: SupportsIndex) -> tuple[int, int]:
        return self.images.shape[1:]

    def __getitem__(self, index: SupportsIndex) -> Example:
        grey = np.round(self.images[index] * (255 / 16)).astype(np.uint8)
        return {"image": np.repeat(grey[..., None], 3, axis=-1), "size": grey.shape, "label": int(self.labels[index])}


class DigitCrops:
    """Each digit alone, painted as in ``digit_scenes``: enlarged to 34-50 pixels, in a random saturated colour, at a
    random place of a 64x64 crop of a photograph.

    In training each digit is painted 16 times (22,992 pictures), in the test once (360). A picture depends on its
    split and index alone.
    Raises: as ``Digits``; the photographs need scikit-image as well.
    """

    categories = CATEGORIES
    side = 64
    sides = (34, 50)

    def __init__(self, split: str):
        _check(split)
        self.split, self.photos = SPLITS.index(split), photographs()
        self.digits, self.labels = handwriting(split)
        self.paintings = 16 if split == "train" else 1

    def __len__(self) -> int:
        return self.paintings * len(self.labels)

    def size(self, index: SupportsIndex) -> tuple[int, int]:
        return self.side, self.side

    def __getitem__(self, index: SupportsIndex) -> Example:
        index = range(len(self))[index]
        rng = np.random.default_rng((self.split, index))
        image = background(rng, self.photos, size=self.side).astype(np.float32)
        digit = index % len(self.labels)
        strength = enlarge(self.digits[digit], int(rng.integers(self.sides[0], self.sides[1] + 1)))
        top, left = rng.integers(self.side - len(strength) + 1, size=2).tolist()
        window = image[top : top + len(strength), left : left + len(strength)]
        colour = np.float32(colorsys.hsv_to_rgb(*rng.uniform((0.0, 0.6, 0.5), 1.0))) * 255
        window += np.minimum(2 * strength, 1.0)[..., None] * (colour - window)
        return {"image": np.round(image).astype(np.uint8), "size": image.shape[:2], "label": int(self.labels[digit])}


def _check(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"the digits have the splits {', '.join(SPLITS)}, not {split!r}")
