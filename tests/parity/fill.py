"""Weights and images that are the same everywhere, so that goldens need not store them: each array depends on its
torch key and shape alone. Needs numpy only; used by ``make_goldens.py`` (torch) and the tests (jax)."""

import hashlib
import re
import zlib

import numpy as np

# (key, factor): keeps residual sums, logits and box offsets of random networks in a sensible range.
CLASSIFIER_GAINS = ((r"layer\d\.\d+\.bn[23]\.weight", 0.5), (r"fc\.weight", 0.3))
DETECTOR_GAINS = (
    (r"layer\d\.\d+\.bn[23]\.weight", 0.5),
    (r"inner_blocks.*weight", 0.1),
    (r"rpn\.head\.bbox_pred\.weight", 0.1),
    (r"box_predictor\.bbox_pred\.weight", 0.6),
    (r"mask_fcn_logits\.weight", 2.0),
)


def fill(key: str, shape: tuple[int, ...], gains=CLASSIFIER_GAINS) -> np.ndarray:
    """The array for a key: uniform, scaled after He for kernels."""
    noise = np.random.default_rng(zlib.crc32(key.encode())).random(shape)
    centred = 2 * noise - 1
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("running_var") or (key.endswith("weight") and len(shape) == 1):
        values = 0.5 + noise
    elif key.endswith("weight"):
        values = centred * np.sqrt(6 / np.prod(shape[1:]))
    else:
        values = 0.1 * centred
    for pattern, factor in gains:
        values = values * (factor if re.search(pattern, key) else 1)
    return values.astype(np.float32)


def images(batch: int, height: int, width: int) -> np.ndarray:
    """Smooth blobs with a little noise, in 0 ... 1, [b, h, w, 3]."""
    rng = np.random.default_rng(zlib.crc32(b"images"))
    coarse = rng.random((batch, height // 16, width // 16, 3)).repeat(16, axis=1).repeat(16, axis=2)
    fine = rng.random((batch, height // 4, width // 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    return (0.6 * coarse + 0.3 * fine + 0.1 * rng.random((batch, height, width, 3))).astype(np.float32)


def normalise(pixels: np.ndarray) -> np.ndarray:
    """ImageNet's mean and standard deviation, as torchvision's detectors apply them."""
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    return (pixels - mean) / std


def digest(shapes: dict[str, tuple[int, ...]]) -> str:
    """Of the names and shapes of a state dict; torch's counts of batches are left out."""
    lines = [f"{key} {shapes[key]}" for key in sorted(shapes) if not key.endswith("num_batches_tracked")]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
