"""Classifiers against torchvision, by goldens that ``make_goldens.py`` wrote: logits, features, gradient with
respect to the input, and batch statistics after a pass in training."""

from pathlib import Path

import fill  # pytest puts this folder on the path
import jax
import numpy as np
import pytest

import jaxvision as jv

GOLDENS = Path(__file__).parent / "goldens"
IMAGES = fill.normalise(fill.images(2, 64, 64))


def filled(name):
    """The model, and variables that hold what the golden's torch model held."""
    model = jv.get_model(name)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    state = {key: fill.fill(key, value.shape) for key, value in jv.to_torch(model, zeros).items()}
    return model, jv.from_torch(model, state)


def assert_near(ours, golden, tolerance):
    """Within ``tolerance`` of the golden's largest magnitude."""
    np.testing.assert_allclose(ours, golden, rtol=0, atol=tolerance * np.abs(golden).max())


@pytest.mark.parametrize("name", ["squeezenet1_0", "squeezenet1_1", "resnet18", "resnet50"])
def test_logits_features_and_gradient(name):
    golden = np.load(GOLDENS / f"{name}.npz")
    model, variables = filled(name)

    def score(images):
        logits, features = model.apply(variables, images)
        return jax.nn.logsumexp(logits, axis=1).sum(), (logits, features)

    gradient, (logits, features) = jax.jit(jax.grad(score, has_aux=True))(IMAGES)
    pairs = ("logits", logits), ("gradient", gradient[:, 1::2, 1::2])
    errors = [f"{part} {np.abs(ours - golden[part]).max() / np.abs(golden[part]).max():.1e}" for part, ours in pairs]
    print(f"{name}, relative to the largest value: {', '.join(errors)}")  # for the README's table: pytest -s
    assert_near(logits, golden["logits"], 1e-4)
    assert_near(gradient[:, 1::2, 1::2], golden["gradient"], 1e-3)
    levels = [level for level in golden if level in features]
    assert len(levels) == len(features) - 1
    for level in levels:
        assert_near(features[level][..., :8], golden[level], 1e-4)


def test_running_statistics_after_a_training_pass():
    golden = np.load(GOLDENS / "resnet18.npz")
    model, variables = filled("resnet18")
    _, moved = jax.jit(lambda v: model.apply(v, IMAGES, train=True, mutable=["batch_stats"]))(variables)
    state = jv.to_torch(model, {**variables, **moved})
    keys = [key for key in golden if key.startswith("after_")]
    assert len(keys) == 40
    for key in keys:
        assert_near(state[key.removeprefix("after_")], golden[key], 1e-4)
        assert not np.allclose(golden[key], fill.fill(key.removeprefix("after_"), golden[key].shape), rtol=1e-2)
