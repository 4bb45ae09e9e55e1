import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvision.ops import matching


def reference_threshold_match(similarity, valid, high, low, allow_low_quality):
    """The rule of Faster R-CNN, prediction by prediction."""
    objects, n = [g for g in range(len(valid)) if valid[g]], similarity.shape[1]
    out = np.full(n, -1)
    for i in range(n if objects else 0):
        best = max(objects, key=lambda g: (similarity[g, i], -g))
        if similarity[best, i] >= high:
            out[i] = best
        elif similarity[best, i] >= low:
            out[i] = -2
        if allow_low_quality and any(similarity[g, i] == similarity[g].max() for g in objects):
            out[i] = best
    return out


@pytest.mark.parametrize("allow_low_quality", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_threshold_match(seed, allow_low_quality):
    rng = np.random.default_rng(seed)
    similarity = (rng.integers(0, 11, (5, 40)) / 10).astype(np.float32)  # coarse, so that ties abound
    valid = rng.random(5) < (0.7 if seed else 0)
    options = {"high": 0.7, "low": 0.3, "allow_low_quality": allow_low_quality}
    expected = reference_threshold_match(similarity, valid, np.float32(0.7), np.float32(0.3), allow_low_quality)
    match = matching.threshold_match(similarity, valid, **options)
    np.testing.assert_array_equal(match, expected)
    assert match.dtype == np.int32
    jitted = jax.jit(lambda s, v: matching.threshold_match(s, v, **options))
    np.testing.assert_array_equal(jitted(similarity, valid), expected)
    batch = jax.vmap(jitted)(np.stack([similarity, similarity[::-1]]), np.stack([valid, valid[::-1]]))
    np.testing.assert_array_equal(batch[0], expected)
    np.testing.assert_array_equal(batch[1], jitted(similarity[::-1], valid[::-1]))


def test_low_quality_restores_the_nearest_object():
    """Prediction 1 is the best for object 1, but nearer to object 0, and so goes to object 0."""
    similarity = np.array([[0.9, 0.6, 0.1], [0.0, 0.5, 0.2]], np.float32)
    valid = np.array([True, True])
    match = matching.threshold_match(similarity, valid, high=0.7, low=0.3, allow_low_quality=True)
    np.testing.assert_array_equal(match, [0, 0, -1])
    match = matching.threshold_match(similarity, valid, high=0.7, low=0.3, allow_low_quality=False)
    np.testing.assert_array_equal(match, [0, -2, -1])


def test_nothing_to_match():
    options = {"high": 0.5, "low": 0.5, "allow_low_quality": True}
    none = np.zeros((0, 3), np.float32)
    np.testing.assert_array_equal(matching.threshold_match(none, np.zeros(0, bool), **options), [-1] * 3)
    assert matching.threshold_match(none.T, np.ones(3, bool), **options).shape == (0,)
    np.testing.assert_array_equal(matching.bipartite_match(none.T, np.ones(3, bool)), [-1] * 3)
    assert matching.bipartite_match(none, np.zeros(0, bool)).shape == (0,)
    equal = np.full((2, 3), 0.4, np.float32)
    np.testing.assert_array_equal(matching.threshold_match(equal, np.array([False, True]), **options), [1] * 3)


@pytest.mark.parametrize("allow_low_quality", [True, False])
def test_an_object_that_nothing_touches_matches_nothing(allow_low_quality):
    similarity = np.array([[0.0, 0.0, 0.0], [0.2, 0.0, 0.1]], np.float32)
    options = {"high": 0.7, "low": 0.3, "allow_low_quality": allow_low_quality}
    match = matching.threshold_match(similarity, np.ones(2, bool), **options)
    np.testing.assert_array_equal(match, [1 if allow_low_quality else -1, -1, -1])
    np.testing.assert_array_equal(
        matching.match_best(np.full(3, -1, np.int32), similarity, np.ones(2, bool)), [1, -1, -1]
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_match_best(seed):
    rng = np.random.default_rng(seed)
    similarity = (rng.integers(0, 8, (4, 9)) / 8).astype(np.float32)  # coarse, so that ties abound
    valid, match = rng.random(4) < 0.8, rng.integers(-2, 4, 9).astype(np.int32)
    wanted = match.copy()
    for g in range(4):
        if valid[g] and similarity[g].max() > 0:
            wanted[similarity[g].argmax()] = g
    found = matching.match_best(match, similarity, valid)
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype == np.int32
    batch = jax.vmap(matching.match_best)(*(np.stack([x] * 2) for x in (match, similarity, valid)))
    np.testing.assert_array_equal(batch[1], wanted)
    none = np.zeros((0, 9), np.float32)
    np.testing.assert_array_equal(matching.match_best(match, none, np.zeros(0, bool)), match)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 12))
def test_hardest(seed, count):
    rng = np.random.default_rng(seed)
    loss, eligible = (rng.integers(0, 5, 10) / 4).astype(np.float32), rng.random(10) < 0.7
    order = sorted((i for i in range(10) if eligible[i]), key=lambda i: (-loss[i], i))
    wanted = np.isin(np.arange(10), order[:count])
    np.testing.assert_array_equal(matching.hardest(loss, eligible, jnp.int32(count)), wanted)
    batch = jax.vmap(matching.hardest)(np.stack([loss] * 2), np.stack([eligible, ~eligible]), jnp.array([count, 0]))
    np.testing.assert_array_equal(batch, [wanted, np.zeros(10, bool)])


def reference_bipartite_match(similarity, valid):
    out, taken = np.full(len(valid), -1), set()
    entries = [(-similarity[g, i], g, i) for g in range(len(valid)) if valid[g] for i in range(similarity.shape[1])]
    for value, g, i in sorted(entries):
        if out[g] == -1 and i not in taken and value < np.inf:
            out[g] = i
            taken.add(i)
    return out


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(4, 9), (6, 3), (5, 5)]))
def test_bipartite_match(seed, shape):
    rng = np.random.default_rng(seed)
    similarity = (rng.integers(-2, 8, shape) / 4).astype(np.float32)
    similarity[rng.random(shape) < 0.1] = -np.inf
    valid = rng.random(shape[0]) < 0.8
    match = np.asarray(matching.bipartite_match(similarity, valid))
    np.testing.assert_array_equal(match, reference_bipartite_match(similarity, valid))
    batch = jax.vmap(matching.bipartite_match)(np.stack([similarity] * 2), np.stack([valid, ~valid]))
    np.testing.assert_array_equal(batch[0], match)
    np.testing.assert_array_equal(batch[1], reference_bipartite_match(similarity, ~valid))


def test_nan_similarity_is_never_taken():
    similarity = np.array([[np.nan, 0.2], [0.9, np.nan]], np.float32)
    np.testing.assert_array_equal(matching.bipartite_match(similarity, np.ones(2, bool)), [1, 0])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31 - 1),
    st.sampled_from([0.0, 0.05, 0.4, 1.0]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([(50, 16, 0.5), (10, 16, 0.25), (50, 16, 0.0), (50, 16, 1.0)]),
)
def test_laws_of_sampling(seed, positive_share, negative_share, sizes):
    n, size, fraction = sizes
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < positive_share
    negative = ~positive & (rng.random(n) < negative_share)
    drawn = matching.sample(jax.random.key(seed), positive, negative, size=size, positive_fraction=fraction)
    indices, is_positive, valid = (np.asarray(x) for x in drawn)
    number_positive = min(positive.sum(), int(size * fraction))
    number = number_positive + min(negative.sum(), size - number_positive)
    np.testing.assert_array_equal(is_positive, np.arange(size) < number_positive)
    np.testing.assert_array_equal(valid, np.arange(size) < number)
    assert positive[indices[is_positive]].all()
    assert negative[indices[valid & ~is_positive]].all()
    assert len(set(indices[valid])) == number
    assert (indices[~valid] == -1).all()
    assert indices.dtype == np.int32


def test_sampling_is_uniform_and_follows_its_key():
    positive = np.arange(20) < 6
    draw = jax.jit(jax.vmap(lambda key: matching.sample(key, positive, ~positive, size=8, positive_fraction=0.25)))
    indices, _, valid = draw(jax.random.split(jax.random.key(0), 6000))
    assert valid.all()
    counts = np.bincount(np.asarray(indices).reshape(-1), minlength=20) / 6000
    np.testing.assert_allclose(counts[:6], 2 / 6, atol=0.03)  # five standard deviations
    np.testing.assert_allclose(counts[6:], 6 / 14, atol=0.032)
    np.testing.assert_array_equal(indices[0], draw(jax.random.split(jax.random.key(0), 6000))[0][0])
    assert (indices[0] != indices[1]).any()


def test_sampling_batch_equals_loop():
    keys = jax.random.split(jax.random.key(3), 4)
    positive = np.random.default_rng(0).random((4, 30)) < 0.2

    def draw(key, positive):
        return matching.sample(key, positive, jnp.logical_not(positive), size=12, positive_fraction=0.5)

    for i, batched in enumerate(zip(*jax.vmap(draw)(keys, positive))):
        for one, other in zip(batched, draw(keys[i], positive[i])):
            np.testing.assert_array_equal(one, other)


def test_sampling_of_nothing():
    none = np.zeros(0, bool)
    indices, is_positive, valid = matching.sample(jax.random.key(0), none, none, size=4, positive_fraction=0.5)
    np.testing.assert_array_equal(indices, [-1] * 4)
    assert not is_positive.any()
    assert not valid.any()


def test_bad_options():
    similarity, flags = np.zeros((1, 2), np.float32), np.ones(1, bool)
    with pytest.raises(ValueError, match="low must not exceed high"):
        matching.threshold_match(similarity, flags, high=0.3, low=0.7, allow_low_quality=False)
    with pytest.raises(ValueError, match=r"positive_fraction in \[0, 1\]"):
        matching.sample(jax.random.key(0), flags, flags, size=4, positive_fraction=2.0)
