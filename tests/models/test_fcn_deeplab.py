"""FCN and DeepLabV3: sizes, compositions, what their heads are made of, and weights that come and go. Numbers against
torchvision are in tests/parity."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from learning import random_variables
from safetensors.numpy import save_file

import jaxvision as jv
import jaxvision.models.deeplab
import jaxvision.models.fcn
from jaxvision import losses
from jaxvision.models.deeplab import ASPP
from jaxvision.weights.convert import head_paths

SMALL = ("fcn_small", "deeplabv3_small")


def abstract(model, size=(64, 64), batch=1):
    """Shapes of what the model gives, and of its variables."""
    images = jax.ShapeDtypeStruct((batch, *size, model.in_channels), jnp.float32)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), images)


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


# torchvision 0.29, weights_backbone=None; with the auxiliary head meta["num_params"].
@pytest.mark.parametrize(
    ("name", "parameters", "with_auxiliary"),
    [
        ("fcn_resnet50", 32_957_013, 35_322_218),
        ("fcn_resnet101", 51_949_141, 54_314_346),
        ("deeplabv3_resnet50", 39_638_869, 42_004_074),
        ("deeplabv3_resnet101", 58_630_997, 60_996_202),
    ],
)
def test_parameters(name, parameters, with_auxiliary):
    (logits, features), variables = abstract(jv.get_model(name, auxiliary=True), (65, 97))
    params = variables["params"]
    assert count(params) == with_auxiliary
    assert count({layer: leaves for layer, leaves in params.items() if not layer.startswith("aux")}) == parameters
    assert logits.shape == features["aux"].shape == (1, 65, 97, 21)
    assert [features[level].shape[1:3] for level in ("c2", "c3", "c4", "c5")] == [(17, 25)] + [(9, 13)] * 3


def test_without_an_auxiliary_head():
    (_, features), variables = abstract(jv.get_model("fcn_small"))
    assert "aux" not in features and not any(layer.startswith("aux") for layer in variables["params"])


def test_skips():
    """Without their scores the logits are those of the network without skips, enlarged in two steps."""
    model = jv.get_model("fcn_small", num_classes=3)
    images = jax.random.normal(jax.random.key(1), (1, 40, 56, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    scores = variables["params"].pop("score_c2")
    assert scores["kernel"].shape == (1, 1, 16, 3)
    silent = {**variables["params"], "score_c2": jax.tree.map(jnp.zeros_like, scores)}
    (logits, features), kept = model.apply(
        {**variables, "params": silent}, images, capture_intermediates=lambda module, _: module.name == "classifier_4"
    )
    (coarse,) = kept["intermediates"]["classifier_4"]["__call__"]
    plain = model.clone(skips=()).apply(variables, images)[0]
    np.testing.assert_allclose(plain, jv.ops.resize(coarse, size=(40, 56)), rtol=1e-5, atol=1e-6)
    want = jv.ops.resize(jv.ops.resize(coarse, size=(10, 14)), size=(40, 56))
    np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-6)
    ones = {**variables["params"], "score_c2": jax.tree.map(jnp.ones_like, scores)}
    added = model.apply({**variables, "params": ones}, images)[0] - logits
    want = jv.ops.resize(1 + jnp.sum(features["c2"], axis=-1, keepdims=True), size=(40, 56))
    np.testing.assert_allclose(added, jnp.broadcast_to(want, added.shape), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_small_ones_are_cheap(name):
    model = jv.get_model(name, auxiliary=True)
    _, variables = abstract(model)

    def loss(variables, images):
        logits, features = model.apply(variables, images)
        return jnp.square(logits).sum() + jnp.square(features["aux"]).sum()

    images = jax.ShapeDtypeStruct((8, 128, 128, 3), jnp.float32)
    step = jax.jit(jax.grad(loss)).lower(variables, images)
    assert step.cost_analysis()["flops"] < 8e9


@pytest.mark.parametrize(
    ("kind", "backbone", "size", "last", "middle"),
    [
        ("fcn", "resnet18", (8, 10), "c5", "c4"),  # dilated
        ("deeplabv3", "mobilenet_v2", (2, 3), "c5", "c4"),
        ("deeplabv3", "squeezenet1_1", (4, 5), "c4", "c3"),
        ("fcn", "vgg11", (2, 2), "c5", "c4"),
        ("fcn", "shufflenet_v2_x0_5", (2, 3), "c5", "c4"),
    ],
)
def test_over_any_classifier(kind, backbone, size, last, middle):
    model = jv.get_model(kind, backbone=backbone, auxiliary=True, num_classes=5, in_channels=4)
    assert model == jv.get_model(kind, backbone=backbone, auxiliary=True, num_classes=5, in_channels=4)
    assert hash(model) == hash(model.clone())
    (logits, features), variables = abstract(model, (64, 80), batch=2)
    assert logits.shape == features["aux"].shape == (2, 64, 80, 5)
    assert set(features) == {*model.backbone.feature_names, "aux"}
    assert abs(features[last].shape[1] - size[0]) <= 1 and abs(features[last].shape[2] - size[1]) <= 1
    params = variables["params"]
    assert {name.partition("_")[0] for name in params} == {"backbone", "classifier", "aux"}
    assert params["aux_classifier_0"]["kernel"].shape[2] == features[middle].shape[-1]
    assert not any(name.startswith("fc") for name in params["backbone"])


def test_a_detector_is_no_backbone():
    with pytest.raises(ValueError, match="classifier"):
        jv.get_model("fcn", backbone="fasterrcnn_small")


def test_the_pyramid_by_hand():
    """Each branch from its kernel by shifting the map: beyond the border are zeros, and the mean is of all cells."""
    rng = np.random.default_rng(0)
    model, x = ASPP(3, (1, 4)), rng.normal(size=(2, 5, 6, 4))
    variables = random_variables(model, x)
    params, statistics = variables["params"], variables["batch_stats"]

    def norm_relu(x, name):
        scale, bias = params[name]["scale"], params[name]["bias"]
        mean, var = statistics[name]["mean"], statistics[name]["var"]
        return np.maximum((x - mean) / np.sqrt(var + 1e-5) * scale + bias, 0)

    def branch(index, rate):
        kernel, out = params[f"convs_{index}_0"]["kernel"], np.zeros((2, 5, 6, 3))
        padded = np.pad(x, [(0, 0), (rate, rate), (rate, rate), (0, 0)])
        for row in range(3):
            for column in range(3):
                shifted = padded[:, row * rate : row * rate + 5, column * rate : column * rate + 6]
                out += shifted @ kernel[row, column]
        return norm_relu(out, f"convs_{index}_1")

    point = norm_relu(x @ params["convs_0_0"]["kernel"][0, 0], "convs_0_1")
    mean = norm_relu(x.mean((1, 2)) @ params["convs_3_1"]["kernel"][0, 0], "convs_3_2")
    whole = np.broadcast_to(mean[:, None, None], point.shape)
    maps = np.concatenate([point, branch(1, 1), branch(2, 4), whole], axis=-1)
    expected = norm_relu(maps @ params["project_0"]["kernel"][0, 0], "project_1")
    np.testing.assert_allclose(model.apply(variables, x.astype(np.float32)), expected, rtol=1e-4, atol=1e-5)


def scene(batch=2, size=48):
    """Images of two coloured rectangles on grey, their classes, and a frame that is not known."""
    rng = np.random.default_rng(0)
    images = np.full((batch, size, size, 3), 0.2) + rng.normal(0, 0.05, (batch, size, size, 3))
    labels = np.zeros((batch, size, size), np.int32)
    for image, truth in zip(images, labels):
        for label in (1, 2):
            top, left = rng.integers(2, size // 2, 2)
            image[top : top + 18, left : left + 18, label] += 1
            truth[top : top + 18, left : left + 18] = label
    return images.astype(np.float32), labels


@pytest.mark.parametrize("name", [pytest.param("fcn_small", marks=pytest.mark.slow), "deeplabv3_small"])
def test_it_learns(name):
    """Every parameter has a gradient, every running statistic moves, and a few steps halve the loss. (FCN's head is the
    other one's auxiliary head.)"""
    model = jv.get_model(name, num_classes=3, auxiliary=True)
    images, labels = scene()
    variables = random_variables(model, images)
    params, statistics = variables["params"], variables["batch_stats"]

    @jax.jit
    def step(params, statistics, key):
        def loss(params):
            (logits, features), updates = model.apply(
                {"params": params, "batch_stats": statistics},
                images,
                train=True,
                rngs={"sample": key},
                mutable=["batch_stats"],
            )
            first, second = (losses.cross_entropy(x, jnp.asarray(labels)).mean() for x in (logits, features["aux"]))
            return first + 0.5 * second, updates["batch_stats"]

        (value, moved), grads = jax.value_and_grad(loss, has_aux=True)(params)
        norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(grads)))
        return value, jax.tree.map(lambda p, g: p - 0.3 * g / norm, params, grads), moved, grads

    values = []
    for key in jax.random.split(jax.random.key(0), 15):
        value, params, moved, grads = step(params, statistics, key)
        if not values:
            silent = [path for path, leaf in flatten_dict(grads).items() if not jnp.any(leaf != 0)]
            still = [
                path for path, leaf in flatten_dict(moved).items() if jnp.all(leaf == flatten_dict(statistics)[path])
            ]
            assert not silent and not still
        statistics = moved
        values.append(float(value))
    print(name, [f"{value:.3f}" for value in values])
    assert values[-1] < values[0] / 2


def test_dropout_only_in_training():
    model = jv.get_model("deeplabv3_small", num_classes=3)
    images, _ = scene()
    variables = random_variables(model, images)

    @jax.jit
    def train(key):
        return model.apply(variables, images, train=True, rngs={"sample": key}, mutable=["batch_stats"])[0][0]

    first, second = train(jax.random.key(0)), train(jax.random.key(1))
    assert jnp.any(first != second)
    np.testing.assert_array_equal(first, train(jax.random.key(0)))
    found = jax.jit(lambda: model.apply(variables, images, method="segment"))()  # without a key
    assert found.labels.shape == (2, 48, 48) and found.probabilities.shape == (2, 48, 48, 3)


@pytest.mark.parametrize("name", SMALL)
def test_only_the_scoring_layers_depend_on_the_classes(name):
    model = jv.get_model(name, auxiliary=True)
    layers = {path[1] for path in head_paths(model)}
    assert layers == {"classifier_4", "aux_classifier_4", "score_c2"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A DeepLabV3 with an auxiliary head, as torch would save it."""
    model = jv.get_model("deeplabv3_small", auxiliary=True)
    variables = random_variables(model, jnp.zeros((1, 64, 64, 3)))
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file({key: np.ascontiguousarray(value) for key, value in jv.to_torch(model, variables).items()}, path)
    return path, variables


def test_weights_go_both_ways(checkpoint):
    path, variables = checkpoint
    model = jv.get_model("deeplabv3_small", auxiliary=True)
    again = jv.load_weights(model, path)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, variables))
    state = jv.to_torch(model, again)
    assert jax.tree.all(jax.tree.map(np.array_equal, jv.from_torch(model, state), variables))


def test_an_auxiliary_head_that_the_model_does_not_have_is_left_out(checkpoint, caplog):
    path, variables = checkpoint
    caplog.set_level(logging.INFO, logger="jaxvision")
    params = jv.load_weights("deeplabv3_small", path)["params"]
    assert "not loaded: aux_classifier.0.weight" in caplog.text
    wanted = {name: leaf for name, leaf in variables["params"].items() if not name.startswith("aux")}
    assert jax.tree.all(jax.tree.map(np.array_equal, params, wanted))


def test_other_classes_start_the_scoring_layers_anew(checkpoint, caplog):
    path, variables = checkpoint
    model = jv.get_model("deeplabv3_small", auxiliary=True, num_classes=7)
    params = jv.load_weights(model, path, num_classes=7)["params"]
    heads = [
        f"{head}.{part}" for head in ("aux_classifier.4", "classifier.4", "score_c2") for part in ("bias", "weight")
    ]
    assert f"not loaded: {', '.join(heads)} start anew" in caplog.text
    assert params["classifier_4"]["kernel"].shape == (1, 1, 32, 7)
    np.testing.assert_array_equal(params["classifier_1"]["kernel"], variables["params"]["classifier_1"]["kernel"])
