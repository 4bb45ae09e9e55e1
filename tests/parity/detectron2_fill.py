"""The deterministic weights and the image behind the goldens of Detectron2, under its own names. Needs numpy only.

A weight depends on its key and shape alone. The rules are those of the program that made the goldens, and
``make_detectron2_goldens.py`` sees to it that they give the same arrays."""

import re
import zlib
from collections.abc import Callable

import numpy as np

# (key, factor): keeps residual sums, scores and offsets of random networks in a sensible range.
GAINS = (
    (r"stem\.conv1\.weight", 2.0**-5),  # the image reaches 255
    (r"conv3\.norm\.weight", 2.0**-3),
    (r"rpn_head\.conv\.weight", 2.0**-1),
    (r"rpn_head\.anchor_deltas\.weight", 2.0**-3),
    (r"box_predictor\.cls_score\.weight", 2.0**-1),
    (r"box_predictor\.bbox_pred\.weight", 2.0**-2),
)
# (our torch key, Detectron2's), one after the other.
NAMES = (
    (r"^backbone\.body\.(conv1|bn1)\.", r"backbone.stem.\1."),
    (r"^backbone\.body\.layer(\d)", lambda found: f"backbone.res{int(found[1]) + 1}"),
    (r"^roi_heads\.box_head\.layer4", "roi_heads.res5"),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"^rpn\.head\.conv\.0\.0\.", "proposal_generator.rpn_head.conv."),
    (r"^rpn\.head\.cls_logits\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"^rpn\.head\.bbox_pred\.", "proposal_generator.rpn_head.anchor_deltas."),
)
MEAN = (103.53, 116.28, 123.675)  # of the channels blue, green, red
# 16 boxes, some of them beyond the border of the image.
BOXES = np.float32(
    [
        [10, 20, 60, 90],
        [100.5, 50.25, 180.75, 140.5],
        [0, 0, 319, 255],
        [0, 0, 320, 256],
        [200, 10, 310, 250],
        [5.3, 5.7, 17.9, 21.2],
        [150, 120, 152.5, 123.5],
        [40, 180, 300, 220],
        [250, 30, 270, 240],
        [33.3, 66.6, 145.2, 178.5],
        [90, 90, 202, 202],
        [48, 16, 272, 240],
        [-20, -15, 70, 80],
        [280, 200, 360, 300],
        [-60, -100, 400, 380],
        [120.7, 3.1, 199.9, 61.4],
    ]
)


def fill(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array for a key of Detectron2's: normal, scaled after He for kernels; uniform for the scales of norms."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("running_var") or (key.endswith("weight") and len(shape) == 1):
        values = rng.uniform(0.5, 1.5, shape)
    else:
        scale = np.sqrt(2 / np.prod(shape[1:])) if key.endswith("weight") else 0.1
        values = rng.standard_normal(shape) * scale
    for pattern, factor in GAINS:
        if re.search(pattern, key):
            values = values * factor
    return values.astype(np.float32)


def image(height: int = 256, width: int = 320) -> np.ndarray:
    """Noise made smooth at four scales, whole numbers in 0 ... 255, [1, h, w, 3]; the channels are blue, green, red."""
    noise = np.random.default_rng(0).integers(0, 256, (1, 3, height, width)) - 127.5
    total = 0
    for amplitude, window in ((0.25, 1), (0.6, 5), (1.0, 17), (1.0, 49)):
        part = noise
        for axis in (2, 3, 2, 3):
            part = sum(np.roll(part, shift, axis) for shift in range(-(window // 2), window // 2 + 1)) / window
        total = total + amplitude * part / part.std()
    pixels = np.clip(np.round(total / total.std() * 50 + 120), 0, 255)
    return pixels.transpose(0, 2, 3, 1).astype(np.float32)


def detectron2_key(key: str) -> str:
    """Detectron2's key for a key of our C4 model's state dict."""
    for pattern, replacement in NAMES:
        key = re.sub(pattern, replacement, key)
    return key


def state_dict(
    shapes: dict[str, tuple[int, ...]],
    *,
    sizes: int = 5,
    fill: Callable[[str, tuple[int, ...]], np.ndarray] = fill,
) -> dict[str, np.ndarray]:
    """What our model of these shapes loads, made of Detectron2's arrays. There the size of an anchor changes slowest in
    a cell and here its ratio, and the background is the last class there and has no box; here it is the first and gets
    offsets of zero."""

    def ours(key, shape):
        theirs = detectron2_key(key)
        if "box_predictor.bbox_pred" in key:
            boxes = fill(theirs, (shape[0] - 4, *shape[1:]))
            return np.concatenate([np.zeros_like(boxes[:4]), boxes])
        values = fill(theirs, shape)
        if "cls_score" in key:
            return np.roll(values, 1, axis=0)
        if "rpn_head" in theirs and ".conv." not in theirs:
            by_size = values.reshape(sizes, 3, -1, *shape[1:])
            return by_size.swapaxes(0, 1).reshape(shape)
        return values

    return {key: ours(key, shape) for key, shape in shapes.items()}
