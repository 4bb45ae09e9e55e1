"""Weights and images that are the same everywhere, so that goldens need not store them: each array depends on its
torch key and shape, and on one number a batch norm. Needs numpy only; used by ``make_goldens.py`` (torch) and the tests
(jax)."""

import hashlib
import re
import zlib

import numpy as np

# (key, factor): keeps residual sums and box offsets of random networks in a sensible range.
DETECTOR_GAINS = (
    (r"layer\d\.\d+\.bn[23]\.weight", 0.5),
    (r"inner_blocks.*weight", 0.1),
    (r"rpn\.head\.bbox_pred\.weight", 0.1),
    (r"box_predictor\.bbox_pred\.weight", 0.6),
    (r"mask_fcn_logits\.weight", 2.0),
)
# The same for detectors whose batch norms are calibrated: maps of about unit size, scores spread out, boxes that move.
CALIBRATED_GAINS = (
    (r"inner_blocks\.\d\.0\.weight", 0.15),
    (r"backbone\.features\.0\.weight", 0.01),  # SSD's images reach 128
    (r"scale_weight", 20.0),
    (r"(cls_score|cls_logits|classification_head\.module_list\.\d)\.weight", 2.0),
    (r"rpn\.head\.cls_logits\.weight", 0.5),
    (r"(bbox_reg|rpn\.head\.bbox_pred)\.weight", 0.2),
)
# How a classifier is built, here and there: its weights come with this option.
OPTIONS = {"googlenet": {"transform_input": True}, "inception_v3": {"transform_input": True}}
VAR = "running_var"


def fill(key: str, shape: tuple[int, ...], gains=()) -> np.ndarray:
    """The array for a key: uniform, scaled after He for kernels."""
    noise = np.random.default_rng(zlib.crc32(key.encode())).random(shape)
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith(VAR) or (key.endswith("weight") and len(shape) == 1):
        noise += 0.5
    else:
        noise *= 2  # in place: the largest kernel takes a gigabyte
        noise -= 1
        noise *= np.sqrt(6 / np.prod(shape[1:])) if key.endswith("weight") else 0.1
    for pattern, factor in gains:
        if re.search(pattern, key):
            noise *= factor
    return noise.astype(np.float32)


def norms(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """The batch norms of a state dict, in the order of the goldens."""
    return sorted(key.removesuffix(f".{VAR}") for key in shapes if key.endswith(VAR))


def calibrated(shapes: dict[str, tuple[int, ...]], scales: np.ndarray, gains=()) -> dict[str, np.ndarray]:
    """A network's state dict; ``scales``, one a batch norm, are the mean squares of what reaches it, and its
    running statistics are random around them, so that signals neither grow nor vanish with depth."""
    state = {key: fill(key, shape, gains) for key, shape in shapes.items()}
    for norm, scale in zip(norms(shapes), scales, strict=True):
        state[f"{norm}.running_mean"] *= np.sqrt(scale)
        state[f"{norm}.{VAR}"] *= scale
    return state


def detector(shapes: dict[str, tuple[int, ...]], scales: np.ndarray) -> dict[str, np.ndarray]:
    """A detector's state dict, calibrated. RetinaNet's class 0, which is no object and never a detection here, is made
    improbable."""
    state = calibrated(shapes, scales, CALIBRATED_GAINS)
    retinanet = "head.classification_head.cls_logits.bias"
    if retinanet in state:
        by_anchor = state[retinanet].reshape(9, -1)
        by_anchor -= 3
        by_anchor[:, 0] = -20
    return state


def objects(height: int, width: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of various sizes, [count, 4] inside the image, and labels from 1 to 90."""
    rng = np.random.default_rng(zlib.crc32(b"objects"))
    size, limits = rng.uniform(0.1, 0.6, (count, 2)), np.array([width, height])
    corner = rng.random((count, 2)) * (1 - size)
    boxes = np.concatenate([corner * limits, (corner + size) * limits], axis=1)
    return boxes.astype(np.float32), rng.integers(1, 91, count)


def images(batch: int, height: int, width: int) -> np.ndarray:
    """Smooth blobs with a little noise, in 0 ... 1, [b, h, w, 3]."""
    rng = np.random.default_rng(zlib.crc32(b"images"))
    rows, columns = -(-height // 16), -(-width // 16)
    coarse = rng.random((batch, rows, columns, 3)).repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width]
    fine = rng.random((batch, 4 * rows, 4 * columns, 3)).repeat(4, axis=1).repeat(4, axis=2)[:, :height, :width]
    return (0.6 * coarse + 0.3 * fine + 0.1 * rng.random((batch, height, width, 3))).astype(np.float32)


def normalise(pixels: np.ndarray) -> np.ndarray:
    """ImageNet's mean and standard deviation, as torchvision's detectors apply them."""
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    return (pixels - mean) / std


def digest(shapes: dict[str, tuple[int, ...]]) -> str:
    """Of the names and shapes of a state dict; torch's counts of batches are left out."""
    lines = [f"{key} {shapes[key]}" for key in sorted(shapes) if not key.endswith("num_batches_tracked")]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
