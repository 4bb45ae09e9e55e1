"""AlexNet: what tells the paper's net from torchvision's, and its two towers on two devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learning import assert_learns, random_variables

import jaxvision as jv
from experiments.alexnet_two_towers import differences
from jaxvision import ops
from jaxvision.ops.convolution import conv

MODEL = jv.get_model("alexnet_2012", num_classes=5, hidden=16)
IMAGES = 30 * jax.random.normal(jax.random.key(1), (2, 64, 64, 3))  # large enough for normalisation to matter


@pytest.mark.parametrize("name", ["alexnet", "alexnet_2012"])
def test_learns(name):
    assert_learns(jv.get_model(name, num_classes=3, hidden=64), jax.random.normal(jax.random.key(1), (2, 64, 64, 3)))


@pytest.mark.parametrize("name", ["alexnet", "alexnet_2012"])
def test_maps_of_the_paper(name):
    model = jv.get_model(name)
    (_, features), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert [features[f"c{k}"].shape[1] for k in (2, 3, 4, 5)] == [55, 27, 13, 6]


def test_response_normalisation_of_the_paper_between_relu_and_pool():
    """The sum of section 3.3, and the second layer as two towers that do not see each other."""
    variables = random_variables(MODEL, IMAGES)
    _, features = jax.jit(lambda variables: MODEL.apply(variables, IMAGES))(variables)
    a = np.asarray(features["c2"], np.float64)
    b = np.empty_like(a)
    for i in range(96):
        b[..., i] = a[..., i] / (2 + 1e-4 * (a[..., max(0, i - 2) : min(95, i + 2) + 1] ** 2).sum(-1)) ** 0.75
    assert (b < 0.9 * a / 2**0.75).any()  # the neighbours count
    pooled = ops.max_pool(jnp.asarray(b, jnp.float32), window=3, strides=2)
    layer = variables["params"]["conv2"]
    halves = [
        conv(pooled[..., tower * 48 :][..., :48], layer["kernel"][..., tower * 128 :][..., :128], padding=2)
        for tower in range(2)
    ]
    second = nn.relu(jnp.concatenate(halves, axis=-1) + layer["bias"][None, None, None, :])
    np.testing.assert_allclose(features["c3"], second, rtol=1e-4, atol=1e-4)


def test_ones_feed_the_first_relus():
    params = jax.jit(MODEL.init)(jax.random.key(0), IMAGES)["params"]
    for name, layer in params.items():
        assert bool((layer["bias"] == (name in ("conv2", "conv4", "conv5", "fc6", "fc7"))).all()), name
        assert abs(layer["kernel"].std() - 0.01) < 1e-3


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("alexnet", ["Dropout", "classifier_1", "Dropout", "classifier_4", "classifier_6"]),
        ("alexnet_2012", ["fc6", "Dropout", "fc7", "Dropout", "fc8"]),
    ],
)
def test_place_of_dropout(name, order):
    seen = []

    def watch(call, args, kwargs, context):
        seen.append("Dropout" if isinstance(context.module, nn.Dropout) else context.module.name)
        return call(*args, **kwargs)

    model = jv.get_model(name, hidden=4)
    with nn.intercept_methods(watch):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert seen[-len(order) :] == order


def test_two_towers_on_two_devices():
    params = random_variables(MODEL, IMAGES)["params"]
    found = differences(MODEL, params, IMAGES, jax.devices()[:2])
    assert len(found) == 2 + 2 * 8  # logits, images, kernel and bias of eight layers
    assert max(found.values()) < 1e-4, found
