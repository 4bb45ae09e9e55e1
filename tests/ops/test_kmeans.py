"""anchors.kmeans against Lloyd's algorithm written out, and its laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxvision.ops import anchors

KEY = jax.random.key(0)


def lloyd(points, centres, iterations):
    for _ in range(iterations):
        distance = np.array([[((point - centre) ** 2).sum() for centre in centres] for point in points])
        nearest = distance.argmin(1)
        order = iter(np.argsort(-distance.min(1), kind="stable"))
        centres = np.array(
            [points[nearest == i].mean(0) if (nearest == i).any() else points[next(order)] for i in range(len(centres))]
        )
    return centres


def blobs(seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(place, 0.1, (20, 2)) for place in ((0, 0), (5, 5), (0, 5))]).astype(np.float32)


@pytest.mark.parametrize("iterations", [0, 1, 7])
def test_against_lloyd(iterations):
    points = np.random.default_rng(1).random((60, 3)).astype(np.float32)
    start = anchors.kmeans(KEY, points, k=5, iterations=0)
    assert {tuple(point) for point in np.asarray(start)} <= {tuple(point) for point in points}
    found = anchors.kmeans(KEY, points, k=5, iterations=iterations)
    np.testing.assert_allclose(found, lloyd(points, np.asarray(start), iterations), rtol=1e-5)


def test_finds_the_clusters_and_follows_its_key():
    points = blobs()
    for seed in range(5):
        found = anchors.kmeans(jax.random.key(seed), points, k=3)
        np.testing.assert_allclose(sorted(np.asarray(found).tolist()), [[0, 0], [0, 5], [5, 5]], atol=0.1)
    np.testing.assert_array_equal(anchors.kmeans(KEY, points, k=7), anchors.kmeans(KEY, points, k=7))
    assert (np.asarray(anchors.kmeans(KEY, points, k=7)) != anchors.kmeans(jax.random.key(1), points, k=7)).any()


def test_distance_falls():
    points = blobs()

    def spread(centres):
        return ((points[:, None] - np.asarray(centres)[None]) ** 2).sum(-1).min(1).sum()

    history = [spread(anchors.kmeans(KEY, points, k=8, iterations=n)) for n in range(6)]
    assert history[-1] < history[0] and (np.diff(history) <= 1e-4).all()


def test_an_empty_cluster_moves_to_the_farthest_point(monkeypatch):
    """Two centres start on one place, of which the second then has no points."""
    points = np.array([[0.0], [0.0], [1.0], [9.0]], np.float32)
    monkeypatch.setattr(jax.random, "categorical", lambda key, logits: jnp.int32(0))
    with jax.disable_jit():
        found = anchors.kmeans(KEY, points, k=2, iterations=1)
        np.testing.assert_allclose(found, [[2.5], [9.0]])
        np.testing.assert_allclose(anchors.kmeans(KEY, points, k=3, iterations=1), [[2.5], [9.0], [1.0]])


def test_equal_points_and_one_centre_a_point():
    np.testing.assert_array_equal(anchors.kmeans(KEY, np.ones((4, 2), np.float32), k=3), np.ones((3, 2)))
    points = blobs()[:5]
    np.testing.assert_allclose(
        sorted(np.asarray(anchors.kmeans(KEY, points, k=5)).tolist()), sorted(points.tolist()), rtol=1e-6
    )


def test_gradients_and_batches(x64):
    points = blobs().astype(np.float64)
    check_grads(lambda x: anchors.kmeans(KEY, x, k=4, iterations=5), (points,), order=1, modes=("fwd", "rev"))
    keys = jax.random.split(KEY, 2)
    batch = jax.vmap(lambda key: anchors.kmeans(key, points, k=4))(keys)
    for one, key in zip(batch, keys):
        np.testing.assert_allclose(one, anchors.kmeans(key, points, k=4), rtol=1e-12)


@pytest.mark.parametrize("k", [0, 5])
def test_bad_number(k):
    with pytest.raises(ValueError, match=f"between 1 and the number of points, 4; got {k}"):
        anchors.kmeans(KEY, np.ones((4, 2), np.float32), k=k)
