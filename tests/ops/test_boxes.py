import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxvision.ops import boxes as B

MEASURES = [B.iou, B.giou, B.diou, B.ciou]
DEGENERATE = np.array(
    [
        [0, 0, 0, 0],  # a point
        [3, 3, 3, 9],  # no width
        [3, 3, 9, 3],  # no height
        [8, 8, 2, 2],  # inverted
        [-50, -50, -40, -40],  # outside any image
        [1, 2, 7, 9],
        [1, 2, 7, 9],
    ],
    np.float32,
)


def random_boxes(seed, n, dtype=np.float32):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 50, (n, 2))
    return np.concatenate([corner, corner + rng.uniform(1, 40, (n, 2))], 1).astype(dtype)


def reference(name, a, b):
    """The four measures for two proper boxes, in Python numbers, from the papers' formulas."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    union = area_a + area_b - width * height
    iou = width * height / union
    enclosing_width, enclosing_height = max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])
    if name == "iou":
        return iou
    if name == "giou":
        enclosing = enclosing_width * enclosing_height
        return iou - (enclosing - union) / enclosing
    distance = ((a[0] + a[2] - b[0] - b[2]) / 2) ** 2 + ((a[1] + a[3] - b[1] - b[3]) / 2) ** 2
    diou = iou - distance / (enclosing_width**2 + enclosing_height**2)
    if name == "diou":
        return diou
    angle_a, angle_b = math.atan((a[2] - a[0]) / (a[3] - a[1])), math.atan((b[2] - b[0]) / (b[3] - b[1]))
    v = 4 / math.pi**2 * (angle_a - angle_b) ** 2
    return diou - v / (1 - iou + v) * v if v > 0 else diou


@pytest.mark.parametrize("measure", MEASURES, ids=lambda f: f.__name__)
def test_measures_match_their_formulas(measure):
    a, b = random_boxes(0, 12), random_boxes(1, 9)
    expected = [[reference(measure.__name__, x.tolist(), y.tolist()) for y in b] for x in a]
    np.testing.assert_allclose(B.pairwise(measure, a, b), expected, atol=2e-6)
    np.testing.assert_allclose(measure(a[:9], b), np.diagonal(np.array(expected)[:9]), atol=2e-6)


def test_hand_drawn():
    a = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 4, 4]], np.float32)
    b = np.array([[5, 0, 15, 10], [0, 0, 10, 10], [6, 6, 10, 10]], np.float32)
    np.testing.assert_allclose(B.iou(a, b), [1 / 3, 1, 0], rtol=1e-6)
    np.testing.assert_allclose(B.giou(a, b), [1 / 3, 1, -0.68], rtol=1e-6)
    np.testing.assert_allclose(B.diou(a, b), [1 / 3 - 25 / 325, 1, -72 / 200], rtol=1e-6)
    np.testing.assert_allclose(B.area(DEGENERATE), [0, 0, 0, 0, 100, 42, 42])


@pytest.mark.parametrize("measure", MEASURES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("mode", ["fwd", "rev"])
def test_measure_gradients(x64, measure, mode):
    a, b = random_boxes(2, 20, np.float64), random_boxes(3, 20, np.float64)
    if measure is B.ciou:  # alpha is held constant, which finite differences cannot know: hold it by hand
        v = 4 / math.pi**2 * (jnp.arctan2(*_size(a)) - jnp.arctan2(*_size(b))) ** 2
        alpha = v / (1 - B.iou(a, b) + v + B.DISTANCE_EPS)

        def held(a, b):
            return B.diou(a, b) - alpha * 4 / math.pi**2 * (jnp.arctan2(*_size(a)) - jnp.arctan2(*_size(b))) ** 2

        check_grads(held, (a, b), order=1, modes=[mode])
        for argument in (0, 1):
            ours, theirs = (jax.jacrev(f, argument)(a, b) for f in (B.ciou, held))
            np.testing.assert_allclose(ours, theirs, atol=1e-10)
    else:
        check_grads(jax.jit(measure), (a, b), order=2, modes=[mode])


def _size(boxes):
    return boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]


@pytest.mark.parametrize("measure", [*MEASURES, B.area], ids=lambda f: f.__name__)
def test_degenerate_boxes_stay_finite(measure):
    if measure is B.area:
        value, arguments = B.area, (DEGENERATE,)
    else:
        value, arguments = (lambda a, b: B.pairwise(measure, a, b)), (DEGENERATE, DEGENERATE)
    gradient = jax.grad(lambda *a: value(*a).sum(), tuple(range(len(arguments))))
    gradient_and_curvature = jax.jit(lambda *a: jax.jvp(gradient, a, jax.tree.map(jnp.ones_like, a)))
    results = jax.tree.leaves([value(*arguments), gradient_and_curvature(*arguments)])
    assert all(np.isfinite(r).all() for r in results)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda f: f.__name__)
def test_transforms_dtypes_and_no_boxes(measure):
    a, b = random_boxes(4, 6), random_boxes(5, 6)
    eager = measure(a, b)
    np.testing.assert_allclose(jax.jit(measure)(a, b), eager, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(measure)(a, b), eager, atol=1e-6)
    measure = jax.jit(measure)
    np.testing.assert_allclose(
        B.pairwise(measure, a, b), measure(a[:, None].repeat(6, 1), b[None].repeat(6, 0)), atol=1e-6
    )
    assert measure(a, b).dtype == jnp.float32
    assert measure(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    none = np.zeros((0, 4), np.float32)
    assert measure(none, none).shape == (0,)
    assert B.pairwise(measure, none, b).shape == (0, 6)
    assert B.pairwise(measure, a, none).shape == (6, 0)
    with jax.enable_x64(True):
        assert measure(a.astype(np.float64), b.astype(np.float64)).dtype == jnp.float64
        assert measure(a, b).dtype == jnp.float32


# Coordinates on a quarter-pixel grid are exact in float32, also as sums.
coordinate = st.integers(-400, 400).map(lambda i: i / 4)
side = st.integers(0, 400).map(lambda i: i / 4)
any_box = st.tuples(coordinate, coordinate, side, side).map(
    lambda b: np.array([b[0], b[1], b[0] + b[2], b[1] + b[3]], np.float32)
)
full_box = any_box.map(lambda b: b + np.array([0, 0, 1, 1], np.float32))


all_measures = jax.jit(lambda a, b: [f(a, b) for f in MEASURES])


@settings(max_examples=60, deadline=None)
@given(any_box, any_box)
def test_laws_of_overlap(a, b):
    overlap, generalised, distance, complete = (float(x) for x in all_measures(a, b))
    assert overlap == float(B.iou(b, a))
    assert 0 <= overlap <= 1
    assert -1 - 1e-6 <= generalised <= overlap + 1e-6
    assert -1 - 1e-6 <= distance <= overlap + 1e-6
    assert complete <= distance + 1e-6
    assert float(B.iou(a, a)) == (1 if float(B.area(a)) > 0 else 0)


@settings(max_examples=60, deadline=None)
@given(any_box)
def test_formats_there_and_back(box):
    np.testing.assert_array_equal(B.xywh_to_xyxy(B.xyxy_to_xywh(box)), box)
    np.testing.assert_array_equal(B.cxcywh_to_xyxy(B.xyxy_to_cxcywh(box)), box)


@settings(max_examples=60, deadline=None)
@given(full_box, full_box, st.sampled_from([(1, 1, 1, 1), (10, 10, 5, 5)]))
def test_decode_inverts_encode(box, anchor, weights):
    deltas = B.encode(box, anchor, weights=weights)
    back = B.decode(deltas, anchor, weights=weights, max_log_scale=math.inf)
    np.testing.assert_allclose(back, box, atol=1e-3)


def test_code_by_hand():
    anchor, box = np.array([0, 0, 10, 20], np.float32), np.array([5, 0, 25, 20], np.float32)
    deltas = B.encode(box, anchor, weights=(10, 10, 5, 5))
    np.testing.assert_allclose(deltas, [10, 0, 5 * math.log(2), 0], atol=1e-6)
    huge = B.decode(np.array([0, 0, 100, 0], np.float32), anchor)
    np.testing.assert_allclose(huge, [5 - 312.5, 0, 5 + 312.5, 20], rtol=1e-6)


@pytest.mark.parametrize("mode", ["fwd", "rev"])
def test_code_gradients(x64, mode):
    a, b = random_boxes(6, 5, np.float64), random_boxes(7, 5, np.float64)
    check_grads(jax.jit(lambda a, b: B.encode(a, b, weights=(10, 10, 5, 5))), (a, b), order=2, modes=[mode])
    deltas = np.random.default_rng(8).normal(size=(5, 4))
    check_grads(jax.jit(lambda d, b: B.decode(d, b, weights=(10, 10, 5, 5))), (deltas, b), order=2, modes=[mode])


def test_code_of_degenerate_boxes_is_finite():
    anchors = DEGENERATE[::-1].copy()
    for function in (B.encode, B.decode):
        function = jax.jit(function)
        assert np.isfinite(function(DEGENERATE, anchors)).all()
        assert all(np.isfinite(g).all() for g in jax.jacrev(function, (0, 1))(DEGENERATE, anchors))
    assert B.encode(DEGENERATE[:0], anchors[:0]).shape == B.decode(DEGENERATE[:0], anchors[:0]).shape == (0, 4)


def test_clip():
    box = np.array([[-5, 3, 30, 50], [40, 40, 60, 60], [1, 2, 3, 4]], np.float32)
    expected = [[0, 3, 20, 10], [20, 10, 20, 10], [1, 2, 3, 4]]
    np.testing.assert_array_equal(B.clip(box, (10, 20)), expected)
    np.testing.assert_array_equal(jax.jit(B.clip)(box, jnp.array([10, 20])), expected)
    np.testing.assert_array_equal(jax.vmap(B.clip, (0, None))(box, jnp.array([10.0, 20.0])), expected)
    assert B.clip(box.astype(jnp.bfloat16), jnp.array([10.0, 20.0])).dtype == jnp.bfloat16
    gradient = jax.grad(lambda b: B.clip(b, (10, 20)).sum())(box)
    np.testing.assert_array_equal(gradient, [[0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
