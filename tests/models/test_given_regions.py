"""Fast R-CNN and R-CNN: detectors that are given their regions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvision as jv
from jaxvision.models.rcnn import region_codes
from jaxvision.typing import Regions, Targets

REGIONS = Regions(
    jnp.array([[[8.0, 10, 40, 50], [0, 0, 64, 64], [20, 20, 60, 60], [0, 0, 0, 0]], [[30, 4, 62, 40]] + [[0] * 4] * 3]),
    jnp.array([[True, True, True, False], [True, False, False, False]]),
)
TARGETS = Targets(
    jnp.array([[[8.0, 10, 42, 50], [0, 0, 0, 0]], [[0, 0, 0, 0]] * 2]),
    jnp.array([[2, 0], [0, 0]]),
    jnp.array([[True, False], [False, False]]),
)


@pytest.fixture(scope="module", params=["fastrcnn_small", "rcnn_small"])
def detector(request):
    """(model, variables, images, jitted (detections, loss, terms, gradients to images and regions))."""
    model = jv.get_model(request.param, num_classes=3, score_threshold=0.0)
    images = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)

    def everything(images, boxes, valid, targets):
        regions = Regions(boxes, valid)

        def score(images, boxes):
            found = model.apply(variables, images, None, Regions(boxes, valid), method="detect")
            return jnp.sum(found.scores * found.valid) + 1e-2 * jnp.sum(found.boxes), found

        gradients, found = jax.grad(score, argnums=(0, 1), has_aux=True)(images, boxes)
        loss, terms = model.apply(
            variables, images, targets, None, regions, method="loss", rngs={"sample": jax.random.key(2)}
        )
        return found, gradients, loss, terms

    return model, variables, images, jax.jit(everything)


def test_detections_come_from_the_valid_regions(detector):
    _, _, images, everything = detector
    found, gradients, loss, terms = everything(images, *REGIONS, TARGETS)
    # Each region gives at most one detection a class.
    assert found.valid.sum(1).tolist() <= [9, 3] and int(found.valid[1].sum()) == 3
    assert set(terms) == {"loss", "loss_class", "loss_box"} and bool(jnp.isfinite(loss))
    to_images, to_boxes = gradients
    assert all(bool(jnp.any(part != 0)) for part in (*to_images, *to_boxes))
    np.testing.assert_array_equal(to_boxes[~REGIONS.valid], 0)


def test_what_stands_in_invalid_rows_does_not_matter(detector):
    _, _, images, everything = detector
    found, _, loss, _ = everything(images, *REGIONS, TARGETS)
    other = jnp.where(REGIONS.valid[..., None], REGIONS.boxes, 33.0)
    again, _, loss_again, _ = everything(images, other, REGIONS.valid, TARGETS)
    np.testing.assert_allclose(found.boxes, again.boxes, atol=1e-4)
    np.testing.assert_allclose(loss, loss_again, rtol=1e-5)


def test_no_regions_and_no_objects(detector):
    _, _, images, everything = detector
    nothing = jnp.zeros_like(REGIONS.valid)
    found, gradients, loss, terms = everything(
        images, REGIONS.boxes, nothing, TARGETS._replace(valid=jnp.zeros_like(TARGETS.valid))
    )
    assert not found.valid.any() and float(loss) == 0  # nothing trains where there is nothing to look at
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((gradients, terms)))


def test_regions_are_asked_for(detector):
    model, variables, images, _ = detector
    with pytest.raises(ValueError, match="give it regions"):
        jax.eval_shape(lambda: model.apply(variables, images, method="detect"))
    proposing = jv.get_model("fasterrcnn_small")
    with pytest.raises(ValueError, match="proposes its own regions"):
        jax.eval_shape(lambda: proposing.init(jax.random.key(0), images, None, REGIONS))
        shapes = jax.eval_shape(proposing.init, jax.random.key(0), images)
        jax.eval_shape(lambda v: proposing.apply(v, images, None, REGIONS, method="detect"), shapes)


def test_warp_shows_the_region_and_what_lies_around_it():
    """A region of the size of the warp's inside is copied pixel by pixel, with its surroundings; outside are zeros."""
    model = jv.get_model("rcnn_small")  # 32 pixels, 3 of context
    image = jax.random.uniform(jax.random.key(0), (1, 64, 64, 3), minval=1, maxval=2)
    regions = jnp.array([[[10.0, 12, 36, 38], [0, 0, 26, 26]]])
    crops = model.pool({"c0": image}, (64, 64), regions, 32)
    np.testing.assert_allclose(crops[0], image[0, 9:41, 7:39], atol=1e-5)
    np.testing.assert_allclose(crops[1, 3:, 3:], image[0, :29, :29], atol=1e-5)
    np.testing.assert_array_equal(crops[1, :2], 0)
    np.testing.assert_array_equal(crops[1, :, :2], 0)


def test_codes_are_what_the_last_layers_see(detector):
    model, variables, images, _ = detector
    if not hasattr(model.box_head, "codes"):
        with pytest.raises(AttributeError):
            region_codes(model, variables, images, REGIONS)
        return
    codes, maps = jax.jit(functools.partial(region_codes, model))(variables, images, REGIONS)
    assert codes.shape == (2, 4, 256) and maps.shape[:2] == (2, 4)
    pooled = model.pool({"c0": images}, (64, 64), REGIONS.boxes, 32)
    head = {name: tree["box_head"] for name, tree in variables.items()}
    logits, offsets = model.box_head.apply(head, pooled)
    layers = head["params"]
    np.testing.assert_allclose(
        codes.reshape(8, -1) @ layers["cls_score"]["kernel"] + layers["cls_score"]["bias"][None], logits, atol=1e-5
    )
    np.testing.assert_allclose(
        maps.reshape(8, -1) @ layers["bbox_pred"]["kernel"] + layers["bbox_pred"]["bias"][None],
        offsets.reshape(8, -1),
        atol=1e-5,
    )


def test_fast_rcnn_takes_background_that_is_near_an_object():
    """Regions below ``background_iou`` do not train: with it at 0.1, moving such a region changes no loss."""
    model = jv.get_model("fastrcnn_small", num_classes=3, background_iou=0.1)
    images = jax.random.normal(jax.random.key(1), (1, 64, 64, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    truth = Targets(jnp.array([[[8.0, 10, 42, 50]]]), jnp.array([[2]]), jnp.array([[True]]))

    @jax.jit
    def loss(least, far):
        regions = jnp.array([[[8.0, 10, 40, 50], [20, 20, 60, 60], [0, 0, 0, 0]]]).at[0, 2].set(far)
        return [
            model.clone(background_iou=number).apply(
                variables, images, truth, None, Regions(regions, jnp.ones((1, 3), bool)), method="loss",
                rngs={"sample": jax.random.key(2)},
            )[0]
            for number in (0.0, 0.1)
        ]  # fmt: skip

    (all_here, near_here), (all_there, near_there) = (
        loss(0.1, jnp.array(box)) for box in ([50.0, 2, 62, 9], [44.0, 52, 63, 63])
    )
    assert float(near_here) == float(near_there)
    assert float(all_here) != float(all_there)


def test_one_vs_rest_scores_are_sigmoids_of_margins():
    model = jv.get_model("rcnn_small", num_classes=3, score_threshold=0.0, nms_threshold=1.0)
    images = jax.random.normal(jax.random.key(1), (1, 64, 64, 3))
    regions = Regions(jnp.array([[[8.0, 10, 40, 50]]]), jnp.ones((1, 1), bool))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    bias = jnp.array([0.5, 2.0, -1.0, 0.0])
    head = variables["params"]["box_head"] | {"cls_score": {"kernel": jnp.zeros((256, 4)), "bias": bias}}
    variables = {**variables, "params": {**variables["params"], "box_head": head}}

    @jax.jit
    def scores(variables):
        return [
            model.clone(scores=kind).apply(variables, images, None, regions, method="detect").scores[0, :3]
            for kind in ("softmax", "one_vs_rest")
        ]

    softmax, margins = scores(variables)
    np.testing.assert_allclose(softmax, np.sort(jax.nn.softmax(bias)[1:])[::-1], rtol=1e-5)
    np.testing.assert_allclose(margins, np.sort(jax.nn.sigmoid(bias[1:] - 0.5))[::-1], rtol=1e-5)
