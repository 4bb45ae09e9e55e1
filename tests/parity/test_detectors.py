"""Mask R-CNN against torchvision, by a golden that ``make_goldens.py`` wrote: 100 detections of one image."""

from pathlib import Path

import fill  # pytest puts this folder on the path
import jax
import numpy as np
import pytest

import jaxvision as jv
from jaxvision.ops import masks
from jaxvision.weights.convert import torch_shapes

GOLDENS = Path(__file__).parent / "goldens"
SIZE = (256, 320)


@pytest.fixture(scope="module")
def detect():
    """Our detections, with the golden's weights, in the top left part of its image; the rest is padding."""
    model = jv.get_model("maskrcnn_resnet50_fpn", num_classes=90)
    images = fill.normalise(fill.images(1, *SIZE))
    state = {key: fill.fill(key, shape, fill.DETECTOR_GAINS) for key, shape in torch_shapes(model).items()}
    variables = jv.from_torch(model, state)
    compiled = jax.jit(lambda v, x, sizes: model.apply(v, x, sizes, method="detect"))

    def run(height, width):
        padded = np.zeros_like(images)
        padded[:, :height, :width] = images[:, :height, :width]
        found = compiled(variables, padded, np.array([[height, width]], np.float32))
        return jax.tree.map(lambda x: np.asarray(x)[0], found)

    return run


@pytest.fixture(scope="module")
def pair(detect):
    """The golden of the whole image, and our detections."""
    return dict(np.load(GOLDENS / "maskrcnn_resnet50_fpn.npz")), detect(*SIZE)


def iou(a, b):
    """Of each row of a with each row of b, written out."""
    corners = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.prod(np.clip(corners[1] - corners[0], 0, None), axis=-1)
    area = [np.prod(x[:, 2:] - x[:, :2], axis=-1) for x in (a, b)]
    return inter / (area[0][:, None] + area[1][None, :] - inter)


def partners(golden, found):
    """For each golden detection the row of ours with its label that overlaps most, and their IoU."""
    overlap = iou(golden["boxes"], found.boxes)
    same = found.valid[None, :] & (golden["labels"][:, None] - 1 == found.labels[None, :])
    overlap = np.where(same, overlap, 0)
    return overlap.argmax(1), overlap.max(1)


def test_the_same_detections(pair):
    golden, found = pair
    assert found.valid.sum() == 100
    row, overlap = partners(golden, found)
    near = (overlap > 0.99) & (np.abs(found.scores[row] - golden["scores"]) < 1e-3)
    difference = np.abs(found.masks[row] - golden["masks"]).max((1, 2))
    near &= difference < 1 / 255
    print(
        f"maskrcnn_resnet50_fpn: {len(set(row[near]))} of 100, IoU {overlap.min():.6f}, "
        f"scores {np.abs(found.scores[row] - golden['scores']).max():.1e}, masks {255 * difference.max():.4f}/255"
    )
    assert len(set(row[near])) >= 98


def test_the_same_detections_in_a_padded_image(detect):
    golden, found = dict(np.load(GOLDENS / "maskrcnn_resnet50_fpn_padded.npz")), detect(240, 300)
    row, overlap = partners(golden, found)
    near = (overlap > 0.99) & (np.abs(found.scores[row] - golden["scores"]) < 1e-3)
    assert found.valid.sum() == 100 and len(set(row[near])) >= 98


def test_pasted_masks(pair):
    golden, found = pair
    row, _ = partners(golden, found)
    rows = row[golden["pasted_index"]]
    pasted = masks.paste(found.masks[rows], found.boxes[rows], image_size=SIZE)
    assert np.abs(pasted - golden["pasted"]).max() < 1 / 255
