"""Patchwise segmentation: the convolutional form is the classification of each pixel's window."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learning import random_variables

import jaxvision as jv
from jaxvision import ops
from jaxvision.models.counting import count
from jaxvision.models.patchwise import PatchNet, Stage, patchwise_small

# Windows of 13 and of 27 pixels.
NETS = [
    PatchNet((Stage(3, 2), Stage(4, 3)), last=2, hidden=5, num_classes=3),
    PatchNet((Stage(3, 2), Stage(4, 3), Stage(4, 4)), last=1, hidden=5, num_classes=2, in_channels=2),
]


def images_for(model, *shape):
    return jax.random.normal(jax.random.key(1), (*shape, model.in_channels))


def doubles(model, images):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), random_variables(model, images))


def classify(params, patch, stages):
    """One window, by plain sums: convolutions over all places that fit, pools, and matrices."""
    x = np.asarray(patch, np.float64)
    for index, stage in enumerate(stages, start=1):
        kernel, bias = (np.asarray(params[f"conv{index}"][leaf]) for leaf in ("kernel", "bias"))
        windows = np.lib.stride_tricks.sliding_window_view(x, (stage.window, stage.window), axis=(0, 1))
        x = np.maximum(np.einsum("hwiyx,yxio->hwo", windows, kernel) + bias, 0)
        rows, columns = (side // 2 for side in x.shape[:2])
        x = x[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2, -1).max((1, 3))
    dense = np.asarray(params["fc1"]["kernel"])
    x = np.maximum(x.ravel() @ dense.reshape(-1, dense.shape[-1]) + np.asarray(params["fc1"]["bias"]), 0)
    return x @ np.asarray(params["fc2"]["kernel"])[0, 0] + np.asarray(params["fc2"]["bias"])


@pytest.mark.parametrize("model", NETS, ids=["13", "27"])
def test_both_forms_classify_each_pixels_window(model, x64):
    images = jnp.asarray(images_for(model, 2, 9, 12), jnp.float64)
    variables = doubles(model, images)
    logits, features = jax.jit(model.apply)(variables, images)
    literal = jax.jit(lambda v, x: model.apply(v, x, method="pixel_by_pixel"))(variables, images)
    assert logits.shape == literal.shape == (2, 9, 12, model.num_classes)
    assert features["hidden"].shape == (2, 9, 12, 5)
    np.testing.assert_allclose(logits, literal, rtol=1e-10, atol=1e-10)
    half = model.window // 2
    mirrored = np.pad(images, ((0, 0), (half, half), (half, half), (0, 0)), mode="reflect")
    for image, row, column in [(0, 0, 0), (1, 8, 11), (0, 0, 5), (1, 4, 6), (0, 7, 2)]:
        patch = mirrored[image, row : row + model.window, column : column + model.window]
        wanted = classify(variables["params"], patch, model.stages)
        np.testing.assert_allclose(logits[image, row, column], wanted, rtol=1e-10, atol=1e-10)


def test_both_forms_have_the_same_gradients(x64):
    model = NETS[0]
    images = jnp.asarray(images_for(model, 1, 6, 7), jnp.float64)
    variables = doubles(model, images)

    def loss(variables, images, method):
        return jnp.sin(model.apply(variables, images, method=method)).sum()

    def first(module, images):
        return module(images)[0]

    both = [jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)(variables, images, f) for f in (first, "pixel_by_pixel")]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), *both)
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(both[0]))


def test_the_network_of_the_paper():
    """N4: windows of 95 pixels, maps of 46, 21, 9 and 3 cells, 219,290 parameters."""
    stages = (Stage(48, 4), Stage(48, 5), Stage(48, 4), Stage(48, 4))
    model = PatchNet(stages, last=3, hidden=200, num_classes=2, in_channels=1)
    assert model.window == 95
    assert count(model, (1, 32, 32, 1)).parameters == 219_290
    window = jnp.zeros((1, 95, 95, 1))
    variables = jax.eval_shape(model.init, jax.random.key(0), window)
    maps = jax.eval_shape(lambda v: model.apply(v, window, overlapping=False, method="network"), variables)
    assert [maps[f"s{k}"].shape[1] for k in range(1, 5)] == [46, 21, 9, 3]
    assert maps["logits"].shape == (1, 1, 1, 2)


def test_a_pixel_sees_its_window():
    model = patchwise_small()

    def network(images):
        return model.init_with_output(jax.random.key(0), images, overlapping=True, method="network")[0]

    fields = ops.receptive_field(network, (1, 300, 300, 3))
    assert model.window == 63
    assert fields["logits"] == ((63, 63), (1.0, 1.0), (31.5, 31.5))
    assert [fields[f"s{k}"].size[0] for k in range(1, 5)] == [5, 11, 23, 47]


def test_windows_of_one_row_are_in_memory():
    model = NETS[0]

    def memory(rows):
        images = jnp.zeros((1, rows, 32, 3))
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        literal = jax.jit(lambda v, x: model.apply(v, x, method="pixel_by_pixel"))
        return literal.lower(variables, images).compile().memory_analysis().temp_size_in_bytes

    # 112 rows more of 32 windows of 13 x 13 x 3 floats would take 7 MB; their pixels and logits take 0.1 MB.
    assert memory(128) - memory(16) < 5e5


def test_images_smaller_than_half_a_window():
    """The mirrored image is mirrored again."""
    model = NETS[1]
    images = images_for(model, 1, 4, 3)
    variables = random_variables(model, images)
    half = model.window // 2
    mirrored = jnp.asarray(np.pad(images, ((0, 0), (half, half), (half, half), (0, 0)), mode="reflect"))
    wanted = model.apply(variables, mirrored, overlapping=True, method="network")["logits"]
    np.testing.assert_allclose(model.apply(variables, images)[0], wanted, rtol=1e-5, atol=1e-5)


def test_a_window_needs_a_middle():
    model = NETS[0].clone(last=3, stages=(Stage(3, 3),))
    with pytest.raises(ValueError, match="window of 8 pixels"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))


def test_the_small_one_is_small():
    model = jv.get_model("patchwise_small", num_classes=11)
    parameters, multiply_adds = count(model, (8, 128, 128, 3))
    assert parameters == 6_155
    assert 3 * 2 * multiply_adds < 8e9  # forward, and backward at twice that
    segmentation = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, method="segment")[0], jnp.zeros((2, 20, 24, 3))
    )
    assert segmentation.labels.shape == (2, 20, 24) and segmentation.probabilities.shape == (2, 20, 24, 11)
