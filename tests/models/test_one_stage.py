"""RetinaNet and SSD: their maps and boxes, and losses that hold on to padding, outsiders and devices. What they compute
is compared with torchvision in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learning import random_variables

import jaxvision as jv

SMALL = ("retinanet_small", "ssd_small")


def abstract(model, size, method="__call__"):
    images = jnp.zeros((1, size, size, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.eval_shape(lambda v: model.apply(v, images, method=method), variables), variables["params"]


@pytest.mark.parametrize(
    ("name", "sides", "boxes"),
    [
        ("ssd300_vgg16", [38, 19, 10, 5, 3, 1], 8_732),
        ("ssd512_vgg16", [64, 32, 16, 8, 4, 2, 1], 24_564),
    ],
)
def test_maps_and_default_boxes_of_ssd(name, sides, boxes):
    model = jv.get_model(name, num_classes=20)
    (_, features), _ = abstract(model, model.size)
    assert [features[f"m{index + 1}"].shape[1] for index in range(len(sides))] == sides
    (logits, offsets, anchors), _ = abstract(model, model.size, "raw")
    assert (logits.shape, offsets.shape, anchors.shape) == ((1, boxes, 21), (1, boxes, 4), (boxes, 4))


@pytest.mark.parametrize(("name", "inputs"), [("retinanet_resnet50_fpn", 256), ("retinanet_resnet50_fpn_v2", 2048)])
def test_where_p6_comes_from(name, inputs):
    (_, features), params = abstract(jv.get_model(name), 128)
    assert params["neck"]["p6"]["kernel"].shape == (3, 3, inputs, 256)
    assert [features[f"p{level}"].shape[1] for level in range(3, 8)] == [16, 8, 4, 2, 1]


@pytest.mark.parametrize("backbone", ["squeezenet1_1", "vgg11", "mobilenet_v2"])
def test_any_classifier_can_be_the_backbone(backbone):
    (found, _), _ = abstract(jv.get_model("retinanet_fpn", backbone=backbone, num_classes=3), 96)
    assert found.boxes.shape == (1, 300, 4)


def test_the_axis_reaches_every_part():
    ssd, retinanet = (jv.get_model(name, axis_name="data") for name in SMALL[::-1])
    assert ssd.axis_name == ssd.backbone.axis_name == retinanet.backbone.axis_name == "data"


def test_bfloat16_images_make_a_bfloat16_network():
    model = jv.get_model("retinanet_small", num_classes=2, groups=8)
    images = jax.random.normal(jax.random.key(0), (1, 64, 64, 3))
    variables = random_variables(model, images)
    run = jax.jit(lambda v, x: model.apply(v, x, method="raw")[:2])
    exact, rough = run(variables, images), run(variables, images.astype(jnp.bfloat16))
    for wanted, found in zip(exact, rough):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(jnp.float32), wanted, atol=0.1 * np.abs(wanted).max())
    ssd = jv.get_model("ssd300_vgg16")
    shapes = jax.eval_shape(ssd.init, jax.random.key(0), jnp.zeros((1, 300, 300, 3)))
    found = jax.eval_shape(lambda v: ssd.apply(v, jnp.zeros((1, 300, 300, 3), jnp.bfloat16), method="raw"), shapes)
    assert [leaf.dtype for leaf in found[:2]] == [jnp.bfloat16] * 2


@pytest.fixture(scope="module", params=SMALL)
def losses(request):
    """``f(images, targets) -> metrics`` of a small detector, without and over an axis."""
    model = jv.get_model(request.param, num_classes=3, axis_name="data")
    variables = random_variables(model, jnp.zeros((1, 64, 64, 3)))

    def loss(images, targets):
        return model.apply(variables, images, targets, method="loss")[1]

    over_axis = jax.vmap(loss, axis_name="data")

    def alone(images, targets):
        metrics = over_axis(*jax.tree.map(lambda leaf: leaf[None], (images, targets)))
        return jax.tree.map(lambda leaf: leaf[0], metrics)

    return jax.jit(alone), jax.jit(over_axis)


def batch():
    """Four images with 3, 0, 1 and 2 objects."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 30, (4, 3, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 30, (4, 3, 2))], axis=-1).astype(np.float32)
    valid = np.arange(3)[None, :] < np.array([3, 0, 1, 2])[:, None]
    return (
        rng.normal(size=(4, 64, 64, 3)).astype(np.float32),
        jv.Targets(boxes, rng.integers(0, 3, (4, 3)).astype(np.int32), valid),
    )


def assert_equal(found, wanted):
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_the_loss_of_devices_is_that_of_the_whole(losses):
    whole, parts = losses
    images, targets = batch()
    halves = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), (images, targets))
    assert_equal({name: value.mean() for name, value in parts(*halves).items()}, whole(images, targets))


def test_padding_and_boxes_outside_the_image_count_for_nothing(losses):
    loss, _ = losses
    images, targets = batch()
    wanted = loss(images, targets)
    assert all(np.isfinite(value) and value > 0 for value in wanted.values())
    boxes = np.where(targets.valid[..., None], targets.boxes, 7)
    boxes[1, 0], boxes[2, 1:] = [900, 900, 950, 950], [[-900, 5, -800, 60], [20, 20, 20, 20]]  # far off, and empty
    valid = targets.valid | np.array([[False] * 3, [True, False, False], [True] * 3, [False] * 3])
    assert_equal(loss(images, targets._replace(boxes=boxes, valid=valid)), wanted)


def test_no_objects_at_all(losses):
    loss, _ = losses
    images, targets = batch()
    metrics = loss(images, targets._replace(valid=np.zeros_like(targets.valid)))
    assert metrics["loss_box"] == 0 and np.isfinite(metrics["loss_class"])
