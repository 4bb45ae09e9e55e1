"""Dilated convolutions: sizes, fields, and the initialisation that changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learning import random_variables

import jaxvision as jv
from jaxvision import ops
from jaxvision.models.counting import count
from jaxvision.models.dilation import MARGIN, ContextModule, DilatedVGG, dilated_vgg16, from_vgg16

FIELDS = [3, 5, 9, 17, 33, 65, 67, 67]  # table 1
LARGE = (2, 2, 4, 8, 16, 32, 32)
CLASSES = 21


def shapes(model, images, method=None):
    """(logits, features) without computing anything."""
    return jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, method=method)[0], images)


def parameters(module, *shape):
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape))
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_parameter_counts():
    front, basic, large = (
        parameters(dilated_vgg16(context=context), 1, 8, 8, 3) for context in (None, "basic", "large")
    )
    assert (front, basic - front, large - front) == (134_346_581, 28_392, 6_803_139)
    with pytest.raises(ValueError, match="context='huge'"):
        jv.get_model("dilated_vgg16", context="huge")


def test_sizes():
    """The front end takes 900 pixels to 66 cells, 380 to one, and the whole gives every image its own size."""
    model = dilated_vgg16(context="large")
    logits, features = shapes(model, jnp.zeros((1, 900, 900, 3)), "inner")
    assert logits.shape == features["front"].shape == (1, 66, 66, CLASSES)
    assert [features[f"c{k}"].shape[1] for k in range(5)] == [896, 444, 216, 102, 90]
    assert shapes(model, jnp.zeros((1, 380, 387, 3)), "inner")[0].shape == (1, 1, 1, CLASSES)
    for height, width in ((120, 97), (8, 1)):
        logits, features = shapes(model, jnp.zeros((1, height, width, 3)))
        assert logits.shape == (1, height, width, CLASSES)
        assert features["front"].shape[1:3] == (-(-height // 8), -(-width // 8))


def test_a_unit_stands_in_the_middle_of_its_field():
    model = dilated_vgg16()
    field = ops.receptive_field(
        lambda x: {"front": model.init_with_output(jax.random.key(0), x, method="inner")[0][0]}, (1, 600, 600, 3)
    )["front"]
    assert field.size == (380, 380) and field.stride == (8, 8)
    assert field.centre == (MARGIN + 4, MARGIN + 4)


def test_border_and_enlarging():
    """A narrow network on an image whose sides are no multiples of 8, against the published steps."""
    model = DilatedVGG(context=ContextModule(), widths=(4, 4, 4, 4, 4), hidden=4, num_classes=3)
    images = jax.random.normal(jax.random.key(1), (1, 21, 16, 3))
    variables = random_variables(model, images)
    logits, _ = jax.jit(model.apply)(variables, images)
    mirrored = np.pad(images, ((0, 0), (186, 189), (186, 186), (0, 0)), mode="reflect")
    inner, _ = jax.jit(lambda v, x: model.apply(v, x, method="inner"))(variables, mirrored)
    assert inner.shape == (1, 3, 2, 3)
    np.testing.assert_allclose(logits, ops.resize(inner, size=(24, 16))[:, :21], rtol=1e-5, atol=1e-6)
    assert np.ptp(logits) > 0


@pytest.mark.parametrize("multiples", [(1,) * 7, LARGE], ids=["basic", "large"])
def test_identity_initialisation(multiples):
    """Every layer holds the input's channels, each as often as the layer has multiples and divided by as many; the last
    sums them up: the input itself, to the bit where its numbers are short."""
    module = ContextModule(multiples=multiples)
    x = jax.random.randint(jax.random.key(1), (1, 5, 6, 3), 0, 9) / 8
    ((same, maps), _) = jax.jit(module.init_with_output)(jax.random.key(0), x)
    np.testing.assert_array_equal(same, x)
    margin, taken = 33, 0
    for index, (multiple, dilation) in enumerate(zip(multiples, module.dilations), start=1):
        taken += dilation
        inner = maps[f"l{index}"][:, margin - taken :, margin - taken :][:, :5, :6]
        np.testing.assert_array_equal(inner, np.repeat(x, multiple, axis=-1) / multiple)
    negative, _ = jax.jit(module.init_with_output)(jax.random.key(0), x - 0.5)
    np.testing.assert_array_equal(negative[0], np.maximum(x - 0.5, 0))


def test_noise_breaks_the_symmetry_and_little_else():
    x = jax.random.uniform(jax.random.key(1), (1, 6, 6, 3))
    (nearly, _), variables = jax.jit(ContextModule(multiples=LARGE, noise=0.01).init_with_output)(jax.random.key(0), x)
    assert 0 < jnp.abs(nearly - x).mean() < 0.3
    kernel = np.array(variables["params"]["conv4"]["kernel"])  # from 12 to 24 channels
    middle = kernel[1, 1].copy()
    same = (np.arange(12) // 4)[:, None] == (np.arange(24) // 8)[None]
    np.testing.assert_array_equal(middle[same], 1 / 8)
    kernel[1, 1][same] = np.nan
    assert np.nanstd(kernel) == pytest.approx(0.01 / 8, rel=0.1)


def test_receptive_fields_of_the_context_module():
    module = ContextModule()

    def maps(x):
        return module.init_with_output(jax.random.key(0), x)[0][1]

    fields = ops.receptive_field(maps, (1, 200, 200, 2))
    assert [fields[f"l{k}"].size for k in range(1, 9)] == [(size, size) for size in FIELDS]
    assert {field.stride for field in fields.values()} == {(1, 1)}
    # By gradient: a line of pixels, and all weights positive.
    line = jnp.ones((1, 1, 150, 1))
    variables = jax.tree.map(jnp.ones_like, jax.eval_shape(module.init, jax.random.key(0), line))
    for index, size in enumerate(FIELDS, start=1):
        effective = ops.effective_receptive_field(lambda x, name=f"l{index}": module.apply(variables, x)[1][name], line)
        assert (np.asarray(effective)[0] > 0).sum() == size


def test_dense_layers_of_vgg_become_convolutions():
    """On 7 x 7 cells the two are one; the convolutions keep their names and shapes."""
    vgg = jv.get_model("vgg16", hidden=6, num_classes=5)
    params = random_variables(vgg, jnp.zeros((1, 32, 32, 3)))["params"]
    taken = from_vgg16(params)
    model = DilatedVGG(hidden=6, num_classes=5)
    own = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    own = {name: layer for name, layer in own.items() if name != "final"}
    assert jax.tree.map(np.shape, taken) == jax.tree.map(np.shape, own)
    cells = np.random.default_rng(1).normal(size=(2, 7, 7, 512)).astype(np.float32)
    flat = cells.transpose(0, 3, 1, 2).reshape(2, -1)
    layer = params["classifier_0"]
    np.testing.assert_allclose(
        ops.conv(cells, taken["fc6"]["kernel"])[:, 0, 0], flat @ layer["kernel"], rtol=1e-3, atol=1e-3
    )


def test_the_small_one_is_small_and_trains():
    model = jv.get_model("dilated_small", num_classes=5)
    assert 3 * 2 * count(model, (8, 128, 128, 3)).multiply_adds < 9e9  # forward, and backward at twice that
    images = jax.random.normal(jax.random.key(1), (2, 33, 42, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)

    def loss(params):
        (logits, features), updates = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        assert logits.shape == (2, 33, 42, 5) and features["context"].shape == features["c2"].shape == (2, 9, 11, 32)
        return jnp.sin(logits + jnp.arange(5.0)[None, None, None, :]).sum(), updates

    gradients, updates = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(gradients))
    moved = jax.tree.map(lambda old, new: (old != new).any(), variables["batch_stats"], updates["batch_stats"])
    assert all(jax.tree.leaves(moved))


def test_dropout_draws_in_training_only():
    model = DilatedVGG(widths=(2, 2, 2, 2, 2), hidden=8, num_classes=3)
    images = jax.random.normal(jax.random.key(1), (1, 8, 8, 3))
    variables = random_variables(model, images)
    apply = jax.jit(
        lambda key, train: model.apply(variables, images, train=train, rngs={"sample": key})[0], static_argnums=1
    )
    first, second = (apply(jax.random.key(seed), True) for seed in (0, 1))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(apply(jax.random.key(0), False), apply(jax.random.key(1), False))
