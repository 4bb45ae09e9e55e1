"""The detectors against torchvision, by goldens that ``make_detector_goldens.py`` wrote: what the network says before
anything is chosen, the detections of one image, and the losses of two with their gradient."""

import functools
from pathlib import Path

import fill  # pytest puts this folder on the path
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_detectors import partners

import jaxvision as jv
from jaxvision.weights.convert import torch_shapes

GOLDENS = Path(__file__).parent / "goldens"
EVERY = 197  # of this many anchors one is kept
PROPOSALS, OBJECTS = 60, 3
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
SLOW = pytest.mark.slow
NAMES = [
    pytest.param("fasterrcnn_resnet50_fpn", marks=SLOW),
    "fasterrcnn_resnet50_fpn_v2",
    "retinanet_resnet50_fpn",
    pytest.param("retinanet_resnet50_fpn_v2", marks=SLOW),
    "ssd300_vgg16",
]


class Case:
    """A golden, and our model with its weights."""

    def __init__(self, name):
        self.name, self.golden = name, dict(np.load(GOLDENS / f"{name}.npz"))
        self.size = tuple(int(side) for side in self.golden["size"])
        self.model = jv.get_model(name)
        self.variables = jv.from_torch(self.model, fill.detector(torch_shapes(self.model), self.golden["scales"]))

    def images(self, batch, dtype=np.float32):
        """Normalised in float64, as torchvision did for the golden."""
        mean, std = ([0.48235, 0.45882, 0.40784], 1 / 255) if "ssd" in self.name else IMAGENET
        pixels = fill.images(batch, *self.size).astype(np.float64)
        return ((pixels - np.array(mean)) / np.array(std)).astype(dtype)

    def check(self, found, bounds):
        """The largest difference of each part, relative to its largest value, is within its bound."""
        differences = {
            part: float(np.abs(np.asarray(found[part]) - self.golden[part]).max() / np.abs(self.golden[part]).max())
            for part in found
        }
        print(self.name, {part: f"{value:.1e}" for part, value in differences.items()})
        assert {part: value for part, value in differences.items() if not value < bounds.get(part, 1e-4)} == {}


@functools.cache
def case(name):
    return Case(name)


@pytest.fixture(params=NAMES)
def detector(request):
    return case(request.param)


def evaluated(model, images, regions):
    """Detections, and the raw outputs that the golden keeps a part of."""
    if regions is None:
        logits, offsets, _ = model.raw(images)
        return model.detect(images), {"logits": logits[0, ::EVERY], "offsets": offsets[0, ::EVERY]}
    size, features = images.shape[1:3], model.features(images)
    logits, offsets, _ = model._rpn(features, size)
    class_logits, class_offsets = model.box_head(model.pool(features, size, regions[None], model.box_head.pool_size))
    return model.detect(images), {
        "rpn_logits": jnp.concatenate(logits, axis=1)[0, ::EVERY],
        "rpn_offsets": jnp.concatenate(offsets, axis=1)[0, ::EVERY],
        "logits": class_logits,
        "offsets": class_offsets,
    }


def test_the_same_outputs_and_detections(detector):
    golden = detector.golden

    @jax.jit
    def run(variables, images):
        return detector.model.apply(variables, images, golden.get("regions"), method=evaluated)

    found, raw = run(detector.variables, detector.images(1))
    detector.check(raw, {})
    found = jax.tree.map(lambda leaf: np.asarray(leaf)[0], found)
    row, overlap = partners(golden, found)
    near = (overlap > 0.99) & (np.abs(found.scores[row] - golden["scores"]) < 1e-3)
    matched = len(set(row[near])) / len(near)
    print(
        f"{detector.name}: {matched:.1%} of {len(near)}, IoU {overlap[near].min():.6f}, "
        f"scores {np.abs(found.scores[row] - golden['scores'])[near].max():.1e}"
    )
    assert found.valid.sum() == len(near) and matched >= 0.98


def everything_sampled(model):
    """In training: so that nothing is drawn at random."""
    if not hasattr(model, "proposals"):
        return model
    proposals = model.proposals.clone(samples=100_000, post_nms=(PROPOSALS, PROPOSALS))
    return model.clone(proposals=proposals, samples=PROPOSALS + OBJECTS, positive_fraction=1.0)


def targets(height, width, *, empty):
    """Three objects in each of two images, or in the first alone."""
    boxes, labels = fill.objects(height, width, 2 * OBJECTS)
    valid = np.array([[True] * OBJECTS, [not empty] * OBJECTS])
    return jv.Targets(boxes.reshape(2, OBJECTS, 4), labels.reshape(2, OBJECTS).astype(np.int32) - 1, valid)


def losses(detector, dtype):
    """``f(stem, variables) -> (loss, metrics)``, apart from the kernel of the first convolution, and its arguments."""
    model = everything_sampled(detector.model)
    truth = targets(*detector.size, empty=not hasattr(model, "proposals"))
    images = detector.images(2, dtype)
    variables, truth = jax.tree.map(
        lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
        (detector.variables, truth),
    )
    first = "features_0" if "ssd" in detector.name else "conv1"

    def run(stem, variables):
        backbone = variables["params"]["backbone"]
        backbone = {**backbone, first: {**backbone[first], "kernel": stem}}
        variables = {**variables, "params": {**variables["params"], "backbone": backbone}}
        (total, metrics), _ = model.apply(
            variables, images, truth, train=True, method="loss",
            rngs={"sample": jax.random.key(0)}, mutable=["batch_stats"],
        )  # fmt: skip
        return total, {name: value for name, value in metrics.items() if name != "loss"}

    return run, variables["params"]["backbone"][first]["kernel"], variables


def test_the_same_losses(detector):
    run, *arguments = losses(detector, np.float32)
    _, terms = jax.jit(run)(*arguments)
    detector.check(terms, {})


@pytest.mark.slow
def test_the_same_gradient(detector, x64):
    """In float64: where a value lies within rounding of a kink, a float32 gradient jumps, here by up to 1.5 %."""
    run, *arguments = losses(detector, np.float64)
    gradient, terms = jax.jit(jax.grad(run, has_aux=True))(*arguments)
    exact = dict.fromkeys(terms, 1e-6)
    detector.check(terms | {"gradient": gradient.transpose(3, 2, 0, 1)[:8]}, exact | {"gradient": 1e-5})
