"""U-Net: the sizes of figure 1, tiles that agree with the whole, and any classifier as the left half."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from learning import random_variables

import jaxvision as jv
from jaxvision.models.unet import EncoderUNet, UNet

SMALL = UNet(widths=(2, 3, 3, 4, 4), num_classes=3, in_channels=1)


def shapes(model, height, width, method=None):
    """Logits, features and variables, as shapes."""
    images = jnp.zeros((1, height, width, model.in_channels))
    return jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images, method=method))


def in_float64(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)


@pytest.mark.parametrize(("channels", "parameters"), [(1, 31_030_658), (3, 31_031_810)])
def test_figure_1(channels, parameters):
    model = jv.get_model("unet", in_channels=channels)
    (logits, features), variables = shapes(model, 572, 572, "inner")
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters
    assert logits.shape == (1, 388, 388, 2)
    assert {name: x.shape[1::2] for name, x in features.items()} == {
        "c0": (568, 64),
        "c1": (280, 128),
        "c2": (136, 256),
        "c3": (64, 512),
        "c4": (28, 1024),
        "u3": (52, 512),
        "u2": (100, 256),
        "u1": (196, 128),
        "u0": (388, 64),
    }
    kernels = [name for name, layer in variables["params"].items() if "transposed_kernel" in layer or "kernel" in layer]
    assert len(kernels) == 23
    assert jax.tree.structure(variables) == jax.tree.structure(shapes(jv.get_model("unet_padded"), 64, 64)[1])


def test_legal_sides():
    assert SMALL.margin == 92

    def outputs(model, sides):
        for side in sides:
            try:
                yield side, shapes(model, side, side, "inner")[0][0].shape[1]
            except ValueError as error:
                assert "must be" in str(error)

    assert dict(outputs(SMALL, (172, 184, 187, 188, 196, 203, 204, 206, 220))) == {188: 4, 204: 20, 220: 36}
    assert dict(outputs(SMALL.clone(padding="same"), (4, 8, 15, 16, 17, 24, 32))) == {16: 16, 32: 32}
    assert dict(outputs(SMALL.clone(widths=(2, 3)), (16, 17, 18, 19, 20))) == {18: 2, 20: 4}


def reference(params, x, padding):
    """The figure, level by level and without a loop over them."""

    def conv(x, name, pad=padding):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        edges = [(pad, pad)] * 2
        y = lax.conv_general_dilated(x, kernel, (1, 1), edges, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y + bias[None, None, None]

    def up(x, name):
        kernel, bias = params[name]["transposed_kernel"], params[name]["bias"]
        b, h, w, _ = x.shape
        y = jnp.zeros((b, 2 * h, 2 * w, kernel.shape[-1]), x.dtype)
        for i in range(2):
            for j in range(2):
                y = y.at[:, i::2, j::2].set(x @ kernel[i, j])
        return y + bias[None, None, None]

    def pool(x):
        return jnp.maximum(jnp.maximum(x[:, ::2, ::2], x[:, 1::2, ::2]), jnp.maximum(x[:, ::2, 1::2], x[:, 1::2, 1::2]))

    def join(above, skip):
        cut = (skip.shape[1] - above.shape[1]) // 2
        return jnp.concatenate([above, skip[:, cut : cut + above.shape[1], cut : cut + above.shape[2]]], -1)

    relu = jax.nn.relu
    d0 = relu(conv(relu(conv(x, "conv_d0a_b")), "conv_d0b_c"))
    d1 = relu(conv(relu(conv(pool(d0), "conv_d1a_b")), "conv_d1b_c"))
    d2 = relu(conv(relu(conv(pool(d1), "conv_d2a_b")), "conv_d2b_c"))
    u1 = join(relu(up(d2, "upconv_d2c_u1a")), d1)
    u1 = relu(conv(relu(conv(u1, "conv_u1b_c")), "conv_u1c_d"))
    u0 = join(relu(up(u1, "upconv_u1d_u0a")), d0)
    u0 = relu(conv(relu(conv(u0, "conv_u0b_c")), "conv_u0c_d"))
    return conv(u0, "conv_u0d_score", 0)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_whole_images_are_mirrored_at_their_borders(padding, x64):
    """Logits [i, j] of an image of any size are those that the network, written out, has for pixel [i, j] of it."""
    model = UNet(widths=(2, 3, 4), padding=padding, num_classes=3)
    images = jax.random.normal(jax.random.key(1), (2, 13, 26, 3))
    variables = in_float64(random_variables(model, images))
    if padding == "valid":  # outputs have 4 n sides, each 40 pixels less than the input
        edges = ((20, 20 + 3), (20, 20 + 2))
    else:
        edges = ((0, 3), (0, 2))
    mirrored = np.pad(images, ((0, 0), *edges, (0, 0)), mode="reflect")
    write_out = jax.jit(functools.partial(reference, padding=int(padding == "same")))
    wanted = write_out(variables["params"], mirrored)[:, :13, :26]
    logits, _ = jax.jit(model.apply)(variables, images)
    assert float(jnp.abs(wanted).max()) > 0.1
    np.testing.assert_allclose(logits, wanted, rtol=1e-10, atol=1e-10)


def test_two_tiles_make_the_whole(x64):
    """Figure 2: tiles that overlap by what the network loses at their borders; their logits overlap by 4 rows more."""
    image = jax.random.normal(jax.random.key(1), (1, 36, 20, 1))
    variables = in_float64(random_variables(SMALL, image))
    whole, _ = jax.jit(SMALL.apply)(variables, image)
    inner = jax.jit(lambda tile: SMALL.apply(variables, tile, method="inner")[0])

    def mirror(image):
        return np.pad(image, ((0, 0), (92, 92), (92, 92), (0, 0)), mode="reflect")

    mirrored = mirror(image)
    assert mirrored.shape == (1, 220, 204, 1)
    upper, lower = (inner(mirrored[:, top : top + 204]) for top in (0, 16))
    assert upper.shape == lower.shape == (1, 20, 20, 3)
    assert float(whole.std()) > 1e-3
    np.testing.assert_allclose(upper[:, 16:], lower[:, :4], rtol=0, atol=1e-10)
    np.testing.assert_allclose(jnp.concatenate([upper, lower[:, 4:]], 1), whole, rtol=0, atol=1e-10)
    # Without the neighbours' pixels it fails: a tile mirrored at its own border is another image.
    alone = inner(mirror(image[:, :20]))
    assert float(jnp.abs(alone - whole[:, :20]).max()) > 1e-3


@pytest.mark.parametrize("name", ["unet", "unet_padded", "unet_small", "unet_encoder"])
@pytest.mark.parametrize("size", [(128, 128), (45, 70)])
def test_logits_lie_at_the_images_size(name, size):
    logits, _ = shapes(jv.get_model(name, num_classes=5), *size)[0]
    assert logits.shape == (1, *size, 5)


def test_dropout_ends_the_contracting_path():
    model = SMALL.clone(padding="same")
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 1))
    variables = random_variables(model, images)
    apply = jax.jit(lambda key: model.apply(variables, images, train=True, rngs={"sample": key})[1])
    one, other = (apply(jax.random.key(seed)) for seed in (0, 1))
    differ = {name: bool((one[name] != other[name]).any()) for name in one}
    assert differ == {name: name not in ("c0", "c1", "c2") for name in one}
    kept = one["c3"] != 0
    without = jax.jit(model.apply)(variables, images)[1]["c3"]
    np.testing.assert_allclose(one["c3"][kept], 2 * without[kept], rtol=1e-4, atol=1e-5)
    assert 0.4 < kept.sum() / (without != 0).sum() < 0.6


@pytest.mark.parametrize("backbone", ["squeezenet1_1", "resnet18", "vgg11", "alexnet", "mobilenet_v2"])
def test_any_classifier_is_the_left_half(backbone):
    """Its variables are the backbone's, leaf by leaf; the decoder reaches the images' size over all of its maps."""
    model = jv.get_model("unet_encoder", backbone=backbone, num_classes=4, width=8)
    (logits, features), variables = shapes(model, 75, 98)
    classifier = jv.get_model(backbone, num_classes=0)
    (_, alone), wanted = shapes(classifier, 75, 98)
    assert logits.shape == (1, 75, 98, 4)
    for kind in wanted:
        assert variables[kind]["backbone"] == wanted[kind]
    finer = classifier.feature_names[:-1]
    for step, name in enumerate(finer, start=1):
        assert features[f"u{step}"].shape == (*alone[name].shape[:3], 8 * 2**step)
    assert features["u0"].shape == (1, 75, 98, 8) and f"u{len(finer) + 1}" not in features


def test_encoder_joins_the_classifiers_maps():
    """Given variables of a classifier, the backbone's maps are its maps; and each of them reaches the logits."""
    model = jv.get_model("unet_encoder", num_classes=4, width=4)
    assert isinstance(model, EncoderUNet) and hash(model) == hash(model.clone())
    images = jax.random.normal(jax.random.key(1), (1, 40, 48, 3))
    variables = random_variables(model, images)
    classifier = jv.get_model("squeezenet1_1", num_classes=0)
    loaded = random_variables(classifier, images[:, ::-1])
    loaded = jax.tree.map(lambda leaf: 1.1 * leaf, loaded["params"])
    variables = {**variables, "params": {**variables["params"], "backbone": loaded}}
    _, features = jax.jit(model.apply)(variables, images)
    wanted = jax.jit(classifier.apply)({"params": loaded}, images)[1]
    for name in classifier.feature_names:
        np.testing.assert_allclose(features[name], wanted[name], rtol=1e-4, atol=1e-4)
    # The first convolution of a step reads the enlarged map and then the classifier's own, so many channels of each.
    for step, (above, own) in {3: (512, 256), 2: (32, 128), 1: (16, 64), 0: (8, 0)}.items():
        assert variables["params"][f"conv_u{step}b_c"]["kernel"].shape == (3, 3, above + own, 4 * 2**step)


def test_small_one():
    model = jv.get_model("unet_small", num_classes=3)
    images, sizes = jnp.zeros((2, 24, 40, 3)), jnp.array([[24.0, 40], [10, 20]])
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    network = variables["params"]["network"]
    assert "norm_d0a_b" in network and "bias" not in network["conv_d0a_b"]
    found = jax.eval_shape(lambda v: model.apply(v, images, sizes, method="segment"), variables)
    assert found.labels.shape == found.valid.shape == (2, 24, 40)
    assert found.probabilities.shape == (2, 24, 40, 3)
