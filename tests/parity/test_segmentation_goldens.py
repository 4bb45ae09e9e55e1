"""The segmenters against torchvision, by goldens that ``make_segmentation_goldens.py`` wrote, and by those it writes
now where torch is installed: logits of both heads, gradient with respect to the input, and loss in training."""

import functools

import fill  # pytest puts this folder on the path
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import HERE, run_torch, torch_python

import jaxvision as jv
import jaxvision.models.deeplab
import jaxvision.models.fcn
from jaxvision import losses
from jaxvision.layers.dropout import Dropout
from jaxvision.typing import IGNORE
from jaxvision.weights.convert import torch_shapes

GOLDENS = ("fcn_resnet50", "deeplabv3_resnet50")
NAMES = (*GOLDENS, "fcn_resnet101", "deeplabv3_resnet101")
SIZE = (65, 97)
EVERY = {"logits": 8, "aux": 16, "gradient": 5}  # of the pixels, one in so many rows and columns is kept


class Case:
    """A golden, and our model with its weights."""

    def __init__(self, name, path):
        self.name, self.golden = name, dict(np.load(path))
        self.model = jv.get_model(name, auxiliary=True)
        self.variables = jv.from_torch(self.model, fill.calibrated(torch_shapes(self.model), self.golden["scales"]))

    def inputs(self, dtype):
        """Variables and two images."""
        images = fill.normalise(fill.images(2, *SIZE))
        return jax.tree.map(lambda leaf: leaf.astype(dtype), (self.variables, images))

    def check_inference(self):
        """In float64: a float32 gradient jumps where a value lies within rounding of a kink."""
        variables, images = self.inputs(np.float64)
        found = inference(self.model, variables, images[:1])
        self.check({part: found[part][:, ::every, ::every] for part, every in EVERY.items()}, 1e-10)

    def check_training(self, dtype, bound):
        self.check({"loss": training_loss(self.model, *self.inputs(dtype), self.golden["labels"])}, bound)

    def check(self, found, bound):
        """The largest difference of each part, relative to its largest value, is within the bound."""
        assert [value.shape for value in found.values()] == [self.golden[part].shape for part in found]
        differences = {
            part: float(np.abs(np.asarray(found[part]) - self.golden[part]).max() / np.abs(self.golden[part]).max())
            for part in found
        }
        print(self.name, {part: f"{value:.1e}" for part, value in differences.items()})
        assert {part: value for part, value in differences.items() if not value < bound} == {}


def inference(model, variables, images):
    """As in ``make_segmentation_goldens.py``."""

    @jax.jit
    def run(variables, images):
        def score(images):
            logits, features = model.apply(variables, images)
            found = {"logits": logits, "aux": features["aux"]}
            return sum(jax.nn.logsumexp(x, axis=-1).sum() for x in found.values()), found

        gradient, found = jax.grad(score, has_aux=True)(images)
        return {**found, "gradient": gradient}

    return run(variables, images)


def training_loss(model, variables, images, labels):
    """As in ``make_segmentation_goldens.py``."""

    def without_dropout(call, args, kwargs, context):
        return args[0] if isinstance(context.module, Dropout) else call(*args, **kwargs)

    def mean_error(logits):
        known = jnp.asarray(labels != IGNORE)
        error = losses.cross_entropy(logits, jnp.where(known, labels, 0).astype(jnp.int32))
        return losses.weighted_mean(error, known)

    @jax.jit
    def run(variables, images):
        with nn.intercept_methods(without_dropout):
            (logits, features), _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return mean_error(logits) + 0.5 * mean_error(features["aux"])

    return run(variables, images)


@functools.cache
def stored(name):
    return Case(name, HERE / "goldens" / f"segmenter_{name}.npz")


@pytest.mark.parametrize("name", GOLDENS)
def test_the_same_loss(name):
    stored(name).check_training(np.float32, 1e-4)


@pytest.mark.parametrize("name", GOLDENS)
def test_the_same_outputs_and_gradient(name, x64):
    stored(name).check_inference()


@pytest.mark.skipif(
    torch_python() is None,
    reason="torch and torchvision are not installed, and JAXVISION_TORCH_PYTHON names no interpreter that has them",
)
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_live(name, tmp_path, x64):
    run_torch("make_segmentation_goldens.py", name, tmp_path / "golden.npz")
    case = Case(name, tmp_path / "golden.npz")
    case.check_inference()
    case.check_training(np.float64, 1e-10)


def test_published_names():
    """Of the heads in torchvision's state dict; the backbone's are the classifier's."""
    ours = {
        name: {key for key in torch_shapes(jv.get_model(f"{name}_resnet50", auxiliary=True)) if "classifier" in key}
        for name in ("fcn", "deeplabv3")
    }
    norm = ("weight", "bias", "running_mean", "running_var")

    def head(name, *norms):
        return {f"{name}.{place}.{leaf}" for place in norms for leaf in norm}

    aux = {"aux_classifier.0.weight", *head("aux_classifier", "1"), "aux_classifier.4.weight", "aux_classifier.4.bias"}
    assert ours["fcn"] == aux | {key.removeprefix("aux_") for key in aux}
    norms = [f"0.convs.{index}.1" for index in range(4)] + ["0.convs.4.2", "0.project.1", "2"]
    kernels = [f"0.convs.{index}.0" for index in range(4)] + ["0.convs.4.1", "0.project.0", "1", "4"]
    assert ours["deeplabv3"] == aux | {"classifier.4.bias"} | head("classifier", *norms) | {
        f"classifier.{place}.weight" for place in kernels
    }
