"""From scores to detections, against loops written from the rules."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from jaxvision.ops import best_scores, select
from jaxvision.ops.boxes import iou


def table(seed=0, n=30, k=4):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 60, (n, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 40, (n, 2))], axis=1).astype(np.float32)
    return boxes, rng.uniform(0, 1, (n, k)).astype(np.float32)


def slowly(boxes, scores, labels, iou_threshold, max_detections):
    """Best first; dropped if it overlaps a kept one of its label."""
    kept = []
    for index in np.argsort(-scores, kind="stable"):
        rivals = [other for other in kept if labels[other] == labels[index]]
        if scores[index] > -np.inf and all(iou(boxes[index], boxes[other]) <= iou_threshold for other in rivals):
            kept.append(index)
    return kept[:max_detections]


def chosen(boxes, scores, max_detections=20):
    score, row, column = best_scores(scores, threshold=0.3, count=60)
    return select(boxes[row], score, column, iou_threshold=0.5, max_detections=max_detections)


def test_best_scores_by_a_sort():
    _, scores = table()
    score, row, column = best_scores(scores, threshold=0.5, count=100)
    wanted = sorted(scores[scores > 0.5], reverse=True)
    np.testing.assert_array_equal(score[: len(wanted)], wanted)
    np.testing.assert_array_equal(scores[row, column][: len(wanted)], wanted)
    assert len(score) == 100 and bool((score[len(wanted) :] == -jnp.inf).all())


def test_a_score_at_the_threshold_does_not_count():
    score, _, _ = best_scores(jnp.array([[0.5, 0.6]]), threshold=0.5, count=2)
    np.testing.assert_array_equal(score, np.array([0.6, -np.inf], np.float32))


def test_select_by_a_loop():
    boxes, scores = table()
    found = chosen(boxes, scores)
    score, row, column = (np.asarray(x) for x in best_scores(scores, threshold=0.3, count=60))
    kept = slowly(boxes[row], score, column, 0.5, 20)
    assert int(found.valid.sum()) == len(kept) > 5
    np.testing.assert_array_equal(found.boxes[: len(kept)], boxes[row][kept])
    np.testing.assert_array_equal(found.scores[: len(kept)], score[kept])
    np.testing.assert_array_equal(found.labels[: len(kept)], column[kept])


def test_small_and_padded_candidates_take_no_part():
    boxes = jnp.array([[0.0, 0, 9, 0.5], [0, 0, 9, 9], [20, 20, 30, 30]])
    found = select(
        boxes, jnp.array([0.9, 0.8, -jnp.inf]), jnp.zeros(3, int), iou_threshold=0.5, max_detections=2, min_size=1.0
    )
    np.testing.assert_array_equal(found.valid, [True, False])
    np.testing.assert_array_equal(found.boxes, [[0, 0, 9, 9], [0, 0, 0, 0]])
    np.testing.assert_array_equal(found.labels, [0, -1])


def test_no_boxes():
    found = chosen(np.zeros((0, 4), np.float32), np.zeros((0, 3), np.float32), max_detections=5)
    assert found.boxes.shape == (5, 4) and not found.valid.any()


def test_jit_and_vmap_agree():
    boxes, scores = zip(*(table(seed) for seed in range(3)))
    together = jax.vmap(chosen)(jnp.stack(boxes), jnp.stack(scores))
    for index in range(3):
        one = jax.tree.map(lambda leaf, index=index: leaf[index], together)
        jax.tree.map(np.testing.assert_array_equal, one, jax.jit(chosen)(boxes[index], scores[index]))


def test_gradients(x64):
    boxes, scores = (x.astype(np.float64) for x in table(n=8))
    check_grads(lambda b, s: chosen(b, s)[:2], (boxes, scores), order=1, eps=1e-5)
