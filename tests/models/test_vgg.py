"""VGG: the columns of table 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learning import assert_learns, random_variables

import jaxvision as jv
from jaxvision.models.vgg import VGG

# Rows of table 1 for each configuration; a number is a 3x3 convolution's channels.
TABLE = {
    "vgg_a": "64 M 128 M 256 256 M 512 512 M 512 512 M",
    "vgg_a_lrn": "64 M 128 M 256 256 M 512 512 M 512 512 M",
    "vgg_b": "64 64 M 128 128 M 256 256 M 512 512 M 512 512 M",
    "vgg_c": "64 64 M 128 128 M 256 256 1x256 M 512 512 1x512 M 512 512 1x512 M",
    "vgg_d": "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M",
    "vgg_e": "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512 M",
}


@pytest.mark.parametrize("name", sorted(TABLE))
def test_layers_of_the_table(name):
    model = jv.get_model(name, hidden=8)
    (_, features), variables = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    layers = {
        int(key.removeprefix("features_")): layer for key, layer in variables["params"].items() if "features" in key
    }
    wanted, layer = {}, 0
    for entry in TABLE[name].split():
        if entry != "M":
            window, channels = (1, entry[2:]) if "x" in entry else (3, entry)
            wanted[layer] = (window, window, int(channels))
        layer += 1 if entry == "M" else 2
    assert {index: layer["kernel"].shape[:2] + layer["kernel"].shape[3:] for index, layer in layers.items()} == wanted
    assert [features[f"c{k}"].shape[1] for k in range(6)] == [224, 112, 56, 28, 14, 7]


@pytest.mark.parametrize(("stages", "sides"), [((), [75, 37, 18, 9]), ((2,), [75, 38, 19, 9])])
def test_pools_that_round_up(stages, sides):
    """SSD's third does, and its maps of a 300-pixel image have 38 and 19 cells a side."""
    model = jv.get_model("vgg_a", num_classes=0, ceil_pools=stages)
    (_, features), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 300, 300, 3)))
    assert [features[f"c{k}"].shape[1] for k in range(2, 6)] == sides


@pytest.mark.parametrize(("paper", "torchvision"), [("a", "11"), ("b", "13"), ("d", "16"), ("e", "19")])
def test_two_names_of_one_net(paper, torchvision):
    assert jv.get_model(f"vgg_{paper}") == jv.get_model(f"vgg{torchvision}")


def test_response_normalisation_of_a_lrn():
    """After the first ReLU, with the constants of AlexNet's paper; A and A-LRN take the same variables."""
    images = 30 * jax.random.normal(jax.random.key(1), (1, 32, 32, 3))
    plain, normed = (jv.get_model(name, num_classes=0) for name in ("vgg_a", "vgg_a_lrn"))
    variables = random_variables(plain, images)
    before, after = (
        jax.jit(lambda v, model=model: model.apply(v, images)[1]["c0"])(variables) for model in (plain, normed)
    )
    a = np.asarray(before, np.float64)
    neighbours = sum(np.pad(a**2, [(0, 0)] * 3 + [(2, 2)])[..., k : k + 64] for k in range(5))
    b = a / (2 + 1e-4 * neighbours) ** 0.75
    assert (b < 0.9 * a / 2**0.75).any()  # the neighbours count
    np.testing.assert_allclose(after, b, rtol=1e-4, atol=1e-4)


def test_learns_with_batch_norm():
    model = VGG(((3,),) * 5, batch_norm=True, hidden=16, num_classes=3)
    assert_learns(model, jax.random.normal(jax.random.key(1), (4, 32, 32, 3)))


def test_maps_of_other_sizes_are_pooled_to_7x7():
    model = jv.get_model("vgg_a", hidden=8)
    variables = [
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3))) for size in (32, 224, 320)
    ]
    assert variables[0] == variables[1] == variables[2]
