import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxvision.ops import batched_nms, nms, relaxed_nms, soft_nms


def random_boxes(seed, n, dtype=np.float32, extent=100):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, extent, (n, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 40, (n, 2))], 1).astype(dtype)
    return boxes, rng.permutation(np.linspace(0.05, 0.95, n)).astype(dtype)


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return float(width * height / union)  # rounded as the boxes are, like torchvision's


def reference_nms(boxes, scores, threshold, labels=None):
    """Greedy suppression, box by box."""
    labels = np.zeros(len(boxes)) if labels is None else labels
    kept = []
    for i in sorted(np.flatnonzero(scores > -np.inf), key=lambda i: (-scores[i], i)):
        if all(labels[i] != labels[k] or overlap(boxes[i], boxes[k]) <= threshold for k in kept):
            kept.append(i)
    return kept


def padded(kept, max_output):
    return np.pad(kept[:max_output], (0, max(max_output - len(kept), 0)), constant_values=-1)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("n, max_output", [(60, 60), (300, 40), (300, 300), (7, 20)])
def test_nms_against_the_loop(n, max_output, threshold):
    """300 boxes make three tiles; integer corners and few score values make ties of order and of the threshold."""
    for seed in range(4):
        boxes, scores = random_boxes(seed, n)
        if seed % 2:
            boxes, scores = np.round(boxes / 8) * 8, np.round(scores * 6) / 6
        indices, valid = nms(boxes, scores, iou_threshold=threshold, max_output=max_output)
        expected = padded(reference_nms(boxes, scores, threshold), max_output)
        np.testing.assert_array_equal(indices, expected)
        np.testing.assert_array_equal(valid, expected >= 0)
        assert indices.dtype == np.int32


def test_batched_nms_against_the_loop():
    for seed in range(4):
        boxes, scores = random_boxes(seed, 200, extent=50)
        labels = np.random.default_rng(seed).integers(0, 5, 200).astype(np.int32)
        expected = padded(reference_nms(boxes, scores, 0.4, labels), 150)
        for shift in (0, 2**22):  # float32 still holds these corners to half a pixel
            moved = np.round(boxes * 2) / 2 + np.float32(shift)
            moved_back = padded(reference_nms(moved - np.float32(shift), scores, 0.4, labels), 150)
            indices, _ = batched_nms(moved, scores, labels, iou_threshold=0.4, max_output=150)
            np.testing.assert_array_equal(indices, moved_back)
        indices, _ = batched_nms(boxes, scores, labels, iou_threshold=0.4, max_output=150)
        np.testing.assert_array_equal(indices, expected)


def test_an_overlap_equal_to_the_threshold_is_judged_in_double_precision():
    """IoU 3/10 rounds up in float32, to a number above 0.3; 6/10 likewise; 7/10 rounds down, to one below 0.7."""
    scores = np.array([1, 0.5], np.float32)
    for tenths, kept in ((3, 1), (5, 2), (6, 1), (7, 2)):
        boxes = np.array([[0, 0, 10, 1], [0, 0, tenths, 1]], np.float32)
        _, valid = nms(boxes, scores, iou_threshold=tenths / 10, max_output=2)
        assert valid.sum() == kept


def test_long_chain_of_suppressions():
    """Each box overlaps only its neighbours, in falling score: every other one stays."""
    left = np.arange(300, dtype=np.float32)[:, None]
    boxes = np.concatenate([left, 0 * left, left + 2, 0 * left + 1], 1)
    indices, _ = nms(boxes, -left[:, 0], iou_threshold=0.3, max_output=300)
    np.testing.assert_array_equal(indices, padded(np.arange(0, 300, 2), 300))


# Corners on a coarse grid: overlaps above, at and below the threshold, equal boxes, and empty ones.
boxes_and_scores = st.lists(st.tuples(*[st.integers(0, 8)] * 4, st.integers(0, 4)), min_size=20, max_size=20).map(
    lambda rows: np.array(rows, np.float32)
)


@settings(max_examples=60, deadline=None)
@given(boxes_and_scores, st.sampled_from([0.0, 0.25, 0.5, 0.8]))
def test_laws_of_suppression(rows, threshold):
    corner, side, scores = rows[:, :2], rows[:, 2:4], rows[:, 4]
    boxes = np.concatenate([corner, corner + side], 1)
    indices, valid = nms(boxes, scores, iou_threshold=threshold, max_output=20)
    kept = np.asarray(indices)[np.asarray(valid)].tolist()
    assert kept == sorted(kept, key=lambda i: (-scores[i], i))
    for i in range(20):
        better = [k for k in kept if (-scores[k], k) < (-scores[i], i)]
        suppressed = any(overlap(boxes[i], boxes[k]) > threshold for k in better)
        assert suppressed != (i in kept)


def test_jit_vmap_and_gather_gradients():
    batch = [random_boxes(seed, 150) for seed in range(3)]
    boxes, scores = (np.stack(x) for x in zip(*batch))

    def suppress(boxes, scores):
        return nms(boxes, scores, iou_threshold=0.5, max_output=50)

    indices, valid = jax.jit(jax.vmap(suppress))(boxes, scores)
    for i in range(3):
        for one, other in zip(suppress(boxes[i], scores[i]), (indices[i], valid[i])):
            np.testing.assert_array_equal(one, other)

    def best_five(boxes, scores):
        kept, _ = nms(boxes, scores, iou_threshold=0.5, max_output=5)
        return jnp.sum(scores[kept] * boxes[kept, 0])

    by_box, by_score = jax.jit(jax.grad(best_five, (0, 1)))(boxes[0], scores[0])
    kept = np.asarray(indices[0][:5])
    expected = np.zeros((150, 4), np.float32)
    expected[kept, 0] = scores[0][kept]
    np.testing.assert_array_equal(by_box, expected)
    assert set(np.flatnonzero(by_score)) == set(kept)


def test_float64(x64):
    boxes, scores = random_boxes(6, 200, np.float64)
    expected = padded(reference_nms(boxes, scores, 0.3), 200)
    np.testing.assert_array_equal(nms(boxes, scores, iou_threshold=0.3, max_output=200)[0], expected)


def test_absent_boxes_and_degenerate_input():
    boxes, scores = random_boxes(0, 6)
    scores[1], scores[4] = -np.inf, np.nan
    indices, valid = nms(boxes, scores, iou_threshold=1.0, max_output=8)
    assert set(np.asarray(indices)[np.asarray(valid)]) == {0, 2, 3, 5}
    np.testing.assert_array_equal(indices[4:], [-1] * 4)
    points = np.zeros((3, 4), np.float32)
    np.testing.assert_array_equal(nms(points, np.ones(3, np.float32), iou_threshold=0.0, max_output=3)[0], [0, 1, 2])
    np.testing.assert_array_equal(nms(points[:0], np.ones(0, np.float32), iou_threshold=0.5, max_output=2)[0], [-1, -1])
    assert nms(points, np.ones(3, np.float32), iou_threshold=0.5, max_output=0)[0].shape == (0,)
    half = nms(boxes.astype(jnp.bfloat16), scores.astype(jnp.bfloat16), iou_threshold=1.0, max_output=8)[1]
    assert half.sum() == 4


def test_bad_options():
    boxes, scores = random_boxes(0, 3)
    with pytest.raises(ValueError, match=r"\[0, 1\], got 1.5"):
        nms(boxes, scores, iou_threshold=1.5, max_output=3)
    with pytest.raises(ValueError, match="got -1"):
        nms(boxes, scores, iou_threshold=0.5, max_output=-1)
    with pytest.raises((ValueError, TypeError), match="hard"):  # TypeError: these tests check types first
        soft_nms(boxes, scores, method="hard", max_output=3)
    with pytest.raises(ValueError, match="sigma must be positive"):
        soft_nms(boxes, scores, method="gaussian", sigma=0.0, max_output=3)
    with pytest.raises(ValueError, match="temperature must be positive"):
        relaxed_nms(boxes, scores, iou_threshold=0.5, temperature=0.0)


def reference_soft_nms(boxes, scores, method, max_output, threshold=0.3, sigma=0.5, min_score=0.001):
    scores, left, out = scores.astype(np.float64), list(np.flatnonzero(scores > -np.inf)), []
    while left and len(out) < max_output:
        best = max(left, key=lambda i: (scores[i], -i))
        if scores[best] < min_score:
            break
        out.append((best, scores[best]))
        left.remove(best)
        for i in left:
            shared = overlap(boxes[best], boxes[i])
            if method == "gaussian":
                scores[i] *= np.exp(-(shared**2) / sigma)
            elif shared > threshold:
                scores[i] *= 1 - shared
    return [i for i, _ in out], [s for _, s in out]


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("max_output", [10, 80])
def test_soft_nms_against_the_loop(method, max_output):
    boxes, scores = random_boxes(1, 50, extent=30)
    scores[7] = -np.inf
    expected, lowered = reference_soft_nms(boxes, scores, method, max_output, min_score=0.05)
    result = jax.jit(lambda b, s: soft_nms(b, s, method=method, max_output=max_output, min_score=0.05))(boxes, scores)
    np.testing.assert_array_equal(result[0], padded(expected, max_output))
    np.testing.assert_allclose(result[1][: len(lowered)], lowered, rtol=2e-5)
    np.testing.assert_array_equal(result[2], np.arange(max_output) < len(expected))
    assert (np.asarray(result[1])[len(lowered) :] == 0).all()
    batch = jax.vmap(lambda b, s: soft_nms(b, s, method=method, max_output=max_output, min_score=0.05))
    np.testing.assert_array_equal(batch(boxes[None], scores[None])[0][0], result[0])


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize("mode", ["fwd", "rev"])
def test_soft_nms_gradients(x64, method, mode):
    boxes, scores = random_boxes(2, 8, np.float64, extent=30)
    check_grads(lambda b, s: soft_nms(b, s, method=method, max_output=6)[1], (boxes, scores), order=1, modes=[mode])


def relaxed_reference(boxes, scores, threshold, temperature):
    """The system of the docstring, solved from the best box down, in Python numbers."""

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def soft_step(x, at):
        ground = sigmoid(-at / temperature)
        return (sigmoid((x - at) / temperature) - ground) / (1 - ground)

    keep = {}
    for i in np.argsort(-scores):
        keep[i] = 1.0
        for j in [j for j in keep if scores[j] > scores[i]]:
            shared = overlap(boxes[i], boxes[j])
            keep[i] *= 1 - keep[j] * soft_step(scores[j] - scores[i], 0.0) * soft_step(shared, threshold)
    return [keep[i] for i in range(len(scores))]


@pytest.mark.parametrize("temperature", [0.5, 0.1, 0.02])
def test_relaxed_nms_against_the_loop(x64, temperature):
    boxes, scores = random_boxes(3, 25, np.float64, extent=30)
    keep = relaxed_nms(boxes, scores, iou_threshold=0.4, temperature=temperature)
    np.testing.assert_allclose(keep, relaxed_reference(boxes, scores, 0.4, temperature), atol=1e-12)
    assert ((keep >= 0) & (keep <= 1)).all()


@pytest.mark.parametrize("seed", range(5))
def test_relaxed_nms_tends_to_hard_nms(seed):
    boxes, scores = random_boxes(seed, 60, extent=60)
    hard = np.zeros(60)
    hard[reference_nms(boxes, scores, 0.4)] = 1
    relaxed = jax.jit(lambda t: relaxed_nms(boxes, scores, iou_threshold=0.4, temperature=t))
    errors = [np.abs(relaxed(t) - hard).mean() for t in (0.3, 0.03, 0.003, 1e-5)]
    assert errors == sorted(errors, reverse=True)
    np.testing.assert_allclose(relaxed(1e-5), hard, atol=1e-6)


@pytest.mark.parametrize("mode, order", [("fwd", 2), ("rev", 1)])
def test_relaxed_nms_gradients(x64, mode, order):
    boxes, scores = random_boxes(4, 5, np.float64, extent=20)
    keep = jax.jit(lambda b, s, t: relaxed_nms(b, s, iou_threshold=0.4, temperature=t))
    check_grads(keep, (boxes, scores, jnp.array(0.2)), order=order, modes=[mode])


def test_relaxed_nms_gradients_point_the_right_way():
    """Two overlapping boxes: the second is kept more as its score rises, as it moves away, or as the first's falls."""
    boxes = np.array([[0, 0, 10, 10], [4, 0, 14, 10]], np.float32)
    scores = np.array([0.8, 0.6], np.float32)
    keep = lambda b, s: relaxed_nms(b, s, iou_threshold=0.3, temperature=0.1)[1]  # noqa: E731
    by_box, by_score = jax.grad(keep, (0, 1))(boxes, scores)
    assert by_score[0] < 0 < by_score[1]
    assert by_box[1, 0] > 0 > by_box[0, 2]


@pytest.mark.parametrize("temperature", [1.0, 0.1, 1e-4])
def test_relaxed_nms_is_finite_and_continuous(temperature):
    boxes = np.array([[0, 0, 9, 9]] * 4 + [[0, 0, 0, 0]] * 2 + [[9, 9, 2, 2], [-50, 0, -40, 5]], np.float32)
    for scores in (np.full(8, 0.5, np.float32), np.array([0.5, np.nan, -np.inf, 1, 0, 1, 0, 0], np.float32)):
        keep = lambda b, s: relaxed_nms(b, s, iou_threshold=0.5, temperature=temperature)  # noqa: E731
        results = [keep(boxes, scores), *jax.jacrev(keep, (0, 1))(boxes, scores)]
        assert all(np.isfinite(r).all() for r in results)
        absent = ~(scores > -np.inf)
        assert (np.asarray(results[0])[absent] == 0).all()
    below, above = (
        relaxed_nms(boxes, np.array([0.5, 0.5 + e, 0, 0, 0, 0, 0, 0], np.float32), iou_threshold=0.5, temperature=0.1)
        for e in (-1e-6, 1e-6)
    )
    np.testing.assert_allclose(below, above, atol=1e-4)
    none = relaxed_nms(boxes[:0], np.zeros(0, np.float32), iou_threshold=0.5, temperature=temperature)
    assert none.shape == (0,)


def test_relaxed_nms_jit_and_vmap():
    boxes, scores = (np.stack(x) for x in zip(*[random_boxes(seed, 20) for seed in range(2)]))
    keep = lambda b, s: relaxed_nms(b, s, iou_threshold=0.3, temperature=0.05)  # noqa: E731
    batched = jax.jit(jax.vmap(keep))(boxes, scores)
    np.testing.assert_allclose(batched, np.stack([keep(b, s) for b, s in zip(boxes, scores)]), atol=1e-6)
