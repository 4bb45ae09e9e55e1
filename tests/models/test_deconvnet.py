"""DeconvNet: the layer table, what switches restore, and the encoder that VGG's weights fit."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learning import random_variables

import jaxvision as jv
from jaxvision import ops
from jaxvision.layers.norm import BatchNorm
from jaxvision.models.counting import count
from jaxvision.models.deconvnet import DeconvNet, deconvnet

TINY = DeconvNet(((3, 1), (4, 2)), hidden=6, bottom=2, num_classes=3)

# The way up, from the layer table of the paper: what each layer gives, side and channels.
TABLE = {
    "fc6": (1, 4096), "fc7": (1, 4096), "fc6_deconv": (7, 512),
    "deconv5_1": (14, 512), "deconv5_2": (14, 512), "deconv5_3": (14, 512),
    "deconv4_1": (28, 512), "deconv4_2": (28, 512), "deconv4_3": (28, 256),
    "deconv3_1": (56, 256), "deconv3_2": (56, 256), "deconv3_3": (56, 128),
    "deconv2_1": (112, 128), "deconv2_2": (112, 64),
    "deconv1_1": (224, 64), "deconv1_2": (224, 64), "seg_score": (224, 21),
}  # fmt: skip


def outputs(model, images):
    """(logits, features) and what each layer gives, as shapes."""
    shapes = {}

    def watch(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if context.method_name == "__call__" and context.module.name:
            shapes[context.module.name] = output
        return output

    def run(images):
        with nn.intercept_methods(watch):
            return model.init_with_output(jax.random.key(0), images)

    return *jax.eval_shape(run, images), shapes


def test_layer_table():
    model = deconvnet()
    (logits, features), variables, shapes = outputs(model, jnp.zeros((1, 224, 224, 3)))
    assert logits.shape == (1, 224, 224, 21)
    assert {name: shapes[name].shape for name in TABLE} == {
        name: (1, side, side, channels) for name, (side, channels) in TABLE.items()
    }
    assert [features[f"c{stage}"].shape[1] for stage in range(5)] == [224, 112, 56, 28, 14]
    params = variables["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 251_805_653
    norms = [
        layer
        for layer in jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, dict) and "scale" in node)
        if isinstance(layer, dict)
    ]
    assert sum(layer["scale"].size + layer["bias"].size for layer in norms) == 33_408


def test_published_weights_of_vgg_fit_the_encoder():
    images = jnp.zeros((1, 224, 224, 3))
    own = jax.eval_shape(deconvnet().init, jax.random.key(0), images)
    vgg = jax.eval_shape(jv.get_model("vgg16_bn", num_classes=0).init, jax.random.key(0), images)
    for kind in ("params", "batch_stats"):
        assert own[kind]["backbone"] == vgg[kind]


def test_encoder_is_vgg():
    images = jax.random.normal(jax.random.key(1), (1, 64, 96, 3))
    vgg = jv.get_model("vgg16_bn", num_classes=0)
    variables = random_variables(vgg, images)
    model = DeconvNet(deconvnet().stages, hidden=2, bottom=2, num_classes=2)
    rest = random_variables(model, images)
    joined = {kind: {**rest[kind], "backbone": variables[kind]} for kind in rest}
    features = jax.jit(model.apply)(joined, images)[1]
    wanted = jax.jit(vgg.apply)(variables, images)[1]
    for stage in range(5):
        np.testing.assert_allclose(features[f"c{stage}"], wanted[f"c{stage}"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [(2, 2, 0, True), (3, 2, 1, False), (3, 2, 0, True)], ids=str)
def test_switches_undo_the_pool(options, x64):
    """Exactly where a maximum stood, it stands again, also where windows overlap, and all other cells are 0; to pool
    what was restored gives the same maxima at the same places, if they are positive."""
    keywords = dict(zip(("window", "strides", "padding", "ceil_mode"), options, strict=True))
    x = jax.random.uniform(jax.random.key(1), (2, 9, 12, 3), jnp.float64, 0.1, 1)
    pooled, indices = ops.max_pool_with_indices(x, **keywords)
    restored = ops.max_unpool(pooled, indices, output_size=(9, 12))
    flat, cells = np.asarray(restored).reshape(2, -1, 3), np.asarray(indices).reshape(2, -1, 3)
    np.testing.assert_array_equal(np.take_along_axis(flat, cells, 1), np.asarray(pooled).reshape(cells.shape))
    kept = np.zeros(flat.shape, bool)
    np.put_along_axis(kept, cells, True, 1)
    np.testing.assert_array_equal(restored, np.where(kept.reshape(x.shape), x, 0))
    again, places = ops.max_pool_with_indices(restored, **keywords)
    np.testing.assert_array_equal(again, pooled)
    np.testing.assert_array_equal(places, indices)


def plain(variables, images):
    """``TINY`` on 8 x 12 pixels, step by step: transposed convolutions as convolutions with turned kernels."""
    params, stats = (variables[kind] for kind in ("params", "batch_stats"))

    def layer(x, params, stats, names, padding, turned=False):
        conv, norm = names
        kernel = params[conv]["transposed_kernel"][::-1, ::-1] if turned else params[conv]["kernel"]
        x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        x = ops.conv(x, kernel) + params[conv]["bias"][None, None, None, :]
        x = BatchNorm().apply({"params": params[norm], "batch_stats": stats[norm]}, x)
        return jnp.maximum(x, 0)

    def down(x, first):
        return layer(x, params["backbone"], stats["backbone"], (f"features_{first}", f"features_{first + 1}"), 1)

    def rest(x, name, padding, turned):
        return layer(x, params, stats, (name, f"{name}_bn"), padding, turned)

    def pool(x):
        b, h, w, c = x.shape
        blocks = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4).reshape(b, h // 2, w // 2, c, 4)
        where = jax.nn.one_hot(blocks.argmax(-1), 4).reshape(b, h // 2, w // 2, c, 2, 2)  # the first of equals
        return blocks.max(-1), where.transpose(0, 1, 4, 2, 5, 3).reshape(x.shape)

    def unpool(x, where):
        return jnp.repeat(jnp.repeat(x, 2, 1), 2, 2) * where

    x, first = pool(down(images, 0))
    x, second = pool(down(down(x, 4), 7))
    x = rest(rest(x, "fc6", 0, False), "fc7", 0, False)
    x = unpool(rest(x, "fc6_deconv", 1, True), second)
    x = unpool(rest(rest(x, "deconv2_1", 1, True), "deconv2_2", 1, True), first)
    x = rest(x, "deconv1_1", 1, True)
    return ops.conv(x, params["seg_score"]["kernel"]) + params["seg_score"]["bias"][None, None, None, :]


def test_equals_the_steps_of_the_paper(x64):
    images = jax.random.normal(jax.random.key(1), (2, 8, 12, 3), jnp.float64)
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), random_variables(TINY, images))
    logits, _ = jax.jit(TINY.apply)(variables, images)
    np.testing.assert_allclose(logits, jax.jit(plain)(variables, images), rtol=1e-10, atol=1e-10)
    assert np.ptp(logits) > 0.05


def test_images_of_any_size():
    """Odd sides are pooled up and restored; images smaller than the bottom's window are padded at the bottom right."""
    for shape in ((1, 13, 22, 3), (2, 8, 8, 3), (1, 5, 30, 3)):
        (logits, features), _, _ = outputs(TINY, jnp.zeros(shape))
        assert logits.shape == (*shape[:3], 3)
        assert features["d1"].shape[1:3] == (max(shape[1], 8), max(shape[2], 8))
    images = jax.random.normal(jax.random.key(1), (1, 5, 9, 3))
    variables, apply = random_variables(TINY, images), jax.jit(TINY.apply)
    padded = jnp.pad(images, ((0, 0), (0, 3), (0, 0), (0, 0)))
    np.testing.assert_allclose(apply(variables, images)[0], apply(variables, padded)[0][:, :5], rtol=1e-5, atol=1e-5)
    assert deconvnet().init_size == 224


def test_the_small_one_is_small_and_trains():
    model = jv.get_model("deconvnet_small", num_classes=5)
    assert 3 * 2 * count(model, (8, 128, 128, 3)).multiply_adds < 8e9  # forward, and backward at twice that
    images = jax.random.normal(jax.random.key(1), (4, 48, 50, 3))
    variables = random_variables(model, images)

    def loss(params):
        (logits, _), updates = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        assert logits.shape == (4, 48, 50, 5)
        return jnp.sin(logits + jnp.arange(5.0)[None, None, None, :]).sum(), updates

    gradients, updates = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(gradients))
    moved = jax.tree.map(lambda old, new: (old != new).any(), variables["batch_stats"], updates["batch_stats"])
    assert all(jax.tree.leaves(moved))
