"""Faster R-CNN C4 against Detectron2 0.6, by a golden that ``make_detectron2_goldens.py`` took from its outputs: the
maps of the backbone, what the RPN says and proposes, what the head makes of 16 boxes, and the detections."""

import json
from pathlib import Path

import detectron2_fill  # pytest puts this folder on the path
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_detectors import partners

import jaxvision as jv
from jaxvision.typing import Regions
from jaxvision.weights.convert import torch_shapes

GOLDEN = dict(np.load(Path(__file__).parent / "goldens" / "fasterrcnn_resnet50_c4.npz"))
MODEL = jv.get_model("fasterrcnn_resnet50_c4")
SIZES, RATIOS = 5, 3  # of anchors in a cell
SHAPES = torch_shapes(MODEL)
# Relative to the largest value. Float32 alone makes the original differ from float64 by 2.3e-6.
BOUND = 1e-5


def theirs(name, values):
    """Our array in Detectron2's layout: channels first, anchors by size before ratio, the background last or absent."""
    values = np.asarray(values)
    if name == "logits":
        return np.roll(values, -1, axis=1)
    if name == "offsets":
        return values[:, 1:]
    if name.startswith(("anchors", "rpn")):
        cells = values.reshape(16, 20, RATIOS, SIZES, -1).swapaxes(2, 3)
        return cells if name == "anchors" else cells.transpose(2, 3, 4, 0, 1)
    return values.transpose(0, 3, 1, 2)


def evaluated(model, images):
    """Everything but the detections, by the golden's names; and the proposals."""
    size, features = images.shape[1:3], model.features(images)
    logits, offsets, anchors = model._rpn(features, size)
    proposals = model.proposals.propose(logits, offsets, anchors, jnp.float32([size]))
    pooled = model.pool(features, size, jnp.asarray(detectron2_fill.BOXES)[None], model.box_head.pool_size)
    class_logits, class_offsets = model.box_head(pooled)
    raw = {"anchors": anchors[0], "rpn_logits": logits[0], "rpn_offsets": offsets[0]}
    raw |= {"pooled": pooled, "logits": class_logits, "offsets": class_offsets}
    return raw | {name: features[name] for name in ("c2", "c3", "c4")}, Regions(*proposals)


@pytest.fixture(scope="module")
def inputs():
    """Variables with Detectron2's weights, and the image."""
    variables = jv.from_torch(MODEL, detectron2_fill.state_dict(SHAPES))
    return variables, detectron2_fill.image() - np.float32(detectron2_fill.MEAN)


@pytest.fixture(scope="module")
def found(inputs):
    """(raw outputs, proposals, detections in the 16 boxes)."""

    @jax.jit
    def run(variables, images):
        regions = Regions(jnp.asarray(detectron2_fill.BOXES)[None], jnp.ones((1, 16), bool))
        given = MODEL.clone(proposals=None).apply(variables, images, None, regions, method="detect")
        return *MODEL.apply(variables, images, method=evaluated), given

    return jax.tree.map(np.asarray, run(*inputs))


def test_every_weight_has_its_place():
    """The names and shapes are those of Detectron2's state dict, but for the offsets of the background."""
    keys = {detectron2_fill.detectron2_key(key): shape for key, shape in SHAPES.items()}
    boxes = "roi_heads.box_predictor.bbox_pred"
    keys |= {f"{boxes}.weight": (320, 2048), f"{boxes}.bias": (320,)}
    wanted = dict(json.loads(str(GOLDEN["keys"])))
    assert {key: list(shape) for key, shape in keys.items()} == wanted


@pytest.mark.parametrize(
    "name", ["c2", "c3", "c4", "anchors", "rpn_logits", "rpn_offsets", "pooled", "logits", "offsets"]
)
def test_the_same_outputs(name, found):
    ours, golden = theirs(name, found[0][name]).reshape(-1)[GOLDEN[f"{name}_at"]], GOLDEN[name]
    difference = np.abs(ours - golden).max() / np.abs(golden).max()
    print(f"fasterrcnn_resnet50_c4 {name}: {difference:.1e} of the largest value")
    assert difference < BOUND


def test_the_same_proposals(found):
    """As sets: scores are near ties."""
    boxes, valid = (part[0] for part in found[1])
    assert valid.sum() == len(GOLDEN["proposals"])
    distance = np.abs(GOLDEN["proposals"][:, None] - boxes[valid][None]).max(-1)
    same = distance.min(1) < 1e-2
    print(f"fasterrcnn_resnet50_c4 proposals: {len(set(distance.argmin(1)[same]))} of {len(same)}")
    assert len(set(distance.argmin(1)[same])) >= 0.98 * len(same)


def compare_detections(ours, prefix):
    """At least 98 % of the golden's detections have a partner here: IoU > 0.99, scores within 1e-3."""
    golden = {part: GOLDEN[prefix + part] for part in ("boxes", "scores")}
    golden["labels"] = GOLDEN[f"{prefix}labels"] + 1  # as ``partners`` counts
    ours = jax.tree.map(lambda part: np.asarray(part)[0], ours)
    row, overlap = partners(golden, ours)
    near = (overlap > 0.99) & (np.abs(ours.scores[row] - golden["scores"]) < 1e-3)
    print(
        f"fasterrcnn_resnet50_c4 {prefix}detections: {len(set(row[near]))} of {len(near)}, IoU {overlap.min():.6f}, "
        f"scores {np.abs(ours.scores[row] - golden['scores']).max():.1e}"
    )
    assert ours.valid.sum() == len(near) and len(set(row[near])) >= 0.98 * len(near)


def test_the_same_detections_in_given_boxes(found):
    compare_detections(found[2], "fixed_")


@pytest.mark.slow
def test_the_same_detections(inputs):
    """The last stage of a ResNet-50 on a thousand regions: 1.5e12 operations."""
    detect = jax.jit(lambda variables, images: MODEL.apply(variables, images, method="detect"))
    compare_detections(detect(*inputs), "")
