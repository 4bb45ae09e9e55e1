"""Inputs of the benchmark, the same for both libraries: numpy alone, so that either interpreter can make them."""

import numpy as np

IMAGE = (480, 640)  # height, width
STRIDES = (4, 8, 16, 32)


def boxes(count: int, *, largest: float = 400.0) -> np.ndarray:
    """Boxes [n, 4] of all sizes inside the image."""
    rng = np.random.default_rng(0)
    height, width = IMAGE
    centre = rng.uniform(size=(count, 2)) * (width, height)
    half = np.exp(rng.uniform(np.log(8), np.log(largest), size=(count, 2))) / 2
    corners = np.concatenate([centre - half, centre + half], axis=1)
    return corners.clip(0, (width, height) * 2).astype(np.float32)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def uniform(*shape: int) -> np.ndarray:
    return np.random.default_rng(2).uniform(size=shape).astype(np.float32)


def pyramid(channels: int = 256) -> list[np.ndarray]:
    """Feature maps [h, w, c] of one image."""
    return [normal(IMAGE[0] // stride, IMAGE[1] // stride, channels) for stride in STRIDES]
