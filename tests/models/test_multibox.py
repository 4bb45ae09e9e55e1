"""MultiBox: the loss and its assignment against all assignments, priors, and a batch learnt by heart."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from learning import random_variables

import jaxvision as jv
from experiments import multibox_priors
from jaxvision.models.multibox import MultiBox, assign, equation3, overlapping_squares
from jaxvision.models.resnet import ResNet

BACKBONE = ResNet((1, 1, 1, 1), "basic", num_classes=0, width=4)
TINY = MultiBox(BACKBONE, overlapping_squares(2), hidden=(16,), image_size=64, alpha=50.0)
IMAGES = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
TARGETS = jv.Targets(
    jnp.array([[[4.0, 4, 30, 34], [35, 30, 62, 60]], [[30.0, 2, 60, 24], [0, 0, 0, 0]]]),
    jnp.array([[5, 1], [1, 0]]),
    jnp.array([[True, True], [True, False]]),
)


def reference_loss(found, logits, truth, alpha, match):
    """Equation 3 term by term; ``match`` is the box of each object."""
    confidence = 1 / (1 + np.exp(-logits.astype(np.float64)))
    box = sum(((found[i] - truth[j]) ** 2).sum() for j, i in enumerate(match)) / 2
    rest = set(range(len(found))) - set(match)
    return alpha * box - sum(np.log(confidence[i]) for i in match) - sum(np.log(1 - confidence[i]) for i in rest)


def random_boxes(rng, count):
    corners = rng.random((count, 2)) * 0.7
    return np.concatenate([corners, corners + 0.3 * rng.random((count, 2))], axis=1)


@pytest.mark.parametrize("alpha", [0.3, 30.0])
@pytest.mark.parametrize("seed", range(5))
def test_the_assignment_minimises_the_loss(seed, alpha):
    rng = np.random.default_rng(seed)
    found, truth, logits = random_boxes(rng, 6), random_boxes(rng, 4), rng.normal(0, 2, 6)
    valid = np.array([True, True, False, True])
    every = [reference_loss(found, logits, truth[valid], alpha, match) for match in itertools.permutations(range(6), 3)]
    found, truth, logits = (x.astype(np.float32) for x in (found, truth, logits))
    match = jax.jit(lambda *arrays: assign(*arrays, alpha=alpha))(found, logits, truth, valid)
    terms = jax.jit(equation3)(found, logits, truth, match)
    np.testing.assert_allclose(alpha * terms["loss_box"] + terms["loss_object"], min(every), rtol=1e-5)
    chosen = reference_loss(found, logits, truth[valid], alpha, np.asarray(match)[valid])
    np.testing.assert_allclose(chosen, min(every), rtol=1e-5)
    assert match[2] == -1


def test_gradients(x64):
    rng = np.random.default_rng(0)
    found, truth, logits = random_boxes(rng, 6), random_boxes(rng, 4), rng.normal(0, 2, 6)
    valid = np.array([True, True, False, True])

    def loss(found, logits, truth):
        return sum(equation3(found, logits, truth, assign(found, logits, truth, valid, alpha=3.0)).values())

    check_grads(loss, (found, logits, truth), order=1, modes=("fwd", "rev"))
    match = assign(found, logits, truth, valid, alpha=3.0)
    grads = jax.grad(loss, (0, 1, 2))(found, logits, truth)
    matched = np.isin(np.arange(6), match)
    np.testing.assert_array_equal(np.any(grads[0] != 0, axis=1), matched)
    np.testing.assert_array_equal(np.sign(grads[1]), np.where(matched, -1, 1))
    assert not grads[2][2].any()  # the row of padding


@pytest.mark.parametrize("prior_matching", [True, False])
def test_loss_of_a_batch(prior_matching):
    model = TINY.clone(prior_matching=prior_matching)
    variables = random_variables(model, IMAGES)
    variables["params"]["confidences"]["bias"] = np.array([9.0, 0, 0, -9], np.float32)  # the logits decide alone
    loss, metrics = jax.jit(lambda v: model.apply(v, IMAGES, TARGETS, method="loss"))(variables)
    found, logits = (np.asarray(x) for x in jax.jit(lambda v: model.apply(v, IMAGES, method="raw"))(variables))
    truth, priors, expected = np.asarray(TARGETS.boxes) / 64, np.asarray(model.priors), []
    matches = []
    for image, count in enumerate((2, 1)):
        objects = truth[image, :count]

        def cost(match, image=image, objects=objects):
            if prior_matching:
                return ((priors[list(match)] - objects) ** 2).sum()
            return reference_loss(found[image], logits[image], objects, 50.0, match)

        matches.append(min(itertools.permutations(range(4), count), key=cost))
        expected.append(reference_loss(found[image], logits[image], objects, 50.0, matches[-1]))
    assert (matches == [(0, 3), (1,)]) == prior_matching
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-4)
    np.testing.assert_allclose(loss, metrics["loss_box"] + metrics["loss_object"], rtol=1e-6)


def test_boxes_are_priors_plus_residuals():
    variables = random_variables(TINY, IMAGES)
    variables["params"]["residuals"]["kernel"] /= 20
    params, features = variables["params"], jax.jit(lambda v: TINY.apply(v, IMAGES, method="features"))(variables)
    x = np.asarray(features["c5"]).transpose(0, 3, 1, 2).reshape(2, -1)
    x = np.maximum(x @ params["fc1"]["kernel"] + params["fc1"]["bias"], 0)
    residuals = (x @ params["residuals"]["kernel"] + params["residuals"]["bias"]).reshape(2, 4, 4)
    found, logits = jax.jit(lambda v: TINY.apply(v, IMAGES, method="raw"))(variables)
    np.testing.assert_allclose(found, np.asarray(TINY.priors) + residuals, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        logits, x @ params["confidences"]["kernel"] + params["confidences"]["bias"], rtol=1e-3, atol=1e-4
    )
    model = TINY.clone(nms_threshold=1.0)
    detections = jax.jit(lambda v: model.apply(v, IMAGES, method="detect"))(variables)
    for image in (0, 1):
        order = np.argsort(-np.asarray(logits[image]))
        boxes = np.clip(64 * np.asarray(found[image])[order], 0, 64)
        boxes = boxes[np.all(boxes[:, 2:] - boxes[:, :2] >= 0.01, axis=1)]
        count = int(detections.valid[image].sum())
        assert count == len(boxes) > 0
        np.testing.assert_allclose(detections.boxes[image, :count], boxes, rtol=1e-4, atol=1e-4)
        assert (detections.labels[image, :count] == 0).all()


def test_overlapping_squares():
    assert overlapping_squares(1) == ((0.0, 0.0, 1.0, 1.0),)
    assert len(overlapping_squares(1, 3, 4, 5, 7)) == 100
    three = np.array(overlapping_squares(3))
    np.testing.assert_allclose(three[1], [0.25, 0, 0.75, 0.5])
    np.testing.assert_allclose(three.max(), 1)


def test_priors_of_training_boxes():
    rng = np.random.default_rng(0)
    centres = np.array([[0.1, 0.2, 0.4, 0.5], [0.3, 0.1, 0.9, 0.3], [0.6, 0.5, 0.8, 0.9]])
    boxes = np.concatenate([centre + rng.normal(0, 0.01, (50, 4)) for centre in centres])
    np.testing.assert_allclose(multibox_priors.priors(boxes, 3), centres, atol=0.01)
    source = [
        {"image": np.zeros((50, 100, 3)), "boxes": 100 * centres[:2]},
        {"image": np.zeros((8, 8, 3)), "boxes": []},
    ]
    source[1]["boxes"] = np.zeros((0, 4))
    np.testing.assert_allclose(multibox_priors.shares(source, None), centres[:2])
    assert len(multibox_priors.shares(source, 0)) == 0
    model = jv.get_model("multibox_small")
    priors = np.array(model.priors)
    assert priors.shape == (64, 4) and (priors[:, 2:] > priors[:, :2]).all() and 0 <= priors.min() <= priors.max() <= 1
    mine = tuple(map(tuple, centres.tolist()))
    assert jv.get_model("multibox_small", priors=mine).priors == mine


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="images of 64 x 64 pixels only, not 64 x 32"):
        jax.eval_shape(TINY.init, jax.random.key(0), jnp.zeros((1, 64, 32, 3)))


def test_more_objects_than_boxes_and_no_object():
    variables = random_variables(TINY, IMAGES)
    many = jv.Targets(
        jnp.tile(TARGETS.boxes[:, :1], (1, 7, 1)), jnp.zeros((2, 7), int), jnp.array([[True] * 7, [False] * 7])
    )
    loss = jax.jit(lambda v, targets: TINY.apply(v, IMAGES, targets, method="loss"))
    _, logits = jax.jit(lambda v: TINY.apply(v, IMAGES, method="raw"))(variables)
    total, metrics = loss(variables, many)
    wanted = jax.nn.softplus(-logits[0]).sum() + jax.nn.softplus(logits[1]).sum()  # all four boxes; none
    np.testing.assert_allclose(metrics["loss_object"], wanted / 2, rtol=1e-4)
    assert bool(jnp.isfinite(total))
    none = jv.Targets(jnp.zeros((2, 0, 4)), jnp.zeros((2, 0), int), jnp.zeros((2, 0), bool))
    total, metrics = loss(variables, none)
    np.testing.assert_allclose(total, jax.nn.softplus(logits).sum() / 2, rtol=1e-4)
    assert metrics["loss_box"] == 0


def test_one_batch_is_learnt_by_heart():
    model = TINY.clone(dropout=0.0)
    variables, tx = random_variables(model, IMAGES), optax.adam(3e-3)

    @jax.jit
    def learn(params):
        def step(state, _):
            params, opt_state = state

            def loss(params):
                return model.apply({**variables, "params": params}, IMAGES, TARGETS, method="loss")[0]

            value, grads = jax.value_and_grad(loss)(params)
            updates, opt_state = tx.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), value

        (params, _), values = jax.lax.scan(step, (params, tx.init(params)), length=300)
        return model.apply({**variables, "params": params}, IMAGES, method="detect"), values

    found, values = learn(variables["params"])
    assert values[-1] < values[0] / 50
    for image in (0, 1):
        wanted = TARGETS.boxes[image][TARGETS.valid[image]]
        best = jv.ops.boxes.pairwise(jv.ops.boxes.iou, wanted, found.boxes[image])
        assert (best.max(axis=1) > 0.8).all()
        np.testing.assert_array_equal((found.scores[image] > 0.5).sum(), len(wanted))
