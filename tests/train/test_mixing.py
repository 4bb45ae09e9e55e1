import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxvision.train.mixing import cutmix, mixup

MIX = [functools.partial(mixup, alpha=0.4), functools.partial(cutmix, alpha=1.0)]
IDS = ["mixup", "cutmix"]


def batch(rows=4, dtype=jnp.float32):
    images = jax.random.normal(jax.random.key(0), (rows, 6, 8, 3), dtype)
    return images, jax.nn.one_hot(jnp.arange(rows) % 3, 3, dtype=dtype)


def test_mixup_is_the_formula():
    images, labels = batch()
    mixed, soft = mixup(jax.random.key(1), images, labels, alpha=0.4)
    share = float(soft[0, 0])
    assert 0 < share < 1
    swapped = np.array([1, 0, 3, 2])
    np.testing.assert_allclose(mixed, share * images + (1 - share) * images[swapped], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(soft, share * labels + (1 - share) * labels[swapped], rtol=1e-6, atol=1e-7)


def test_cutmix_pastes_one_window_and_counts_its_pixels():
    images, labels = batch()
    areas = []
    for seed in range(40):
        mixed, soft = cutmix(jax.random.key(seed), images, labels, alpha=1.0)
        pasted = np.any(np.asarray(mixed != images), axis=-1)
        np.testing.assert_array_equal(pasted, np.broadcast_to(pasted[0], pasted.shape))  # the same in every row
        rows, columns = pasted[0].any(1), pasted[0].any(0)
        np.testing.assert_array_equal(pasted[0], rows[:, None] & columns[None, :])  # a rectangle
        for axis in (rows, columns):
            assert np.abs(np.diff(axis.astype(int))).sum() <= 2  # without gaps
        np.testing.assert_array_equal(mixed, np.where(pasted[..., None], images[np.array([1, 0, 3, 2])], images))
        areas.append(pasted[0].mean())
        np.testing.assert_allclose(soft[0], [1 - areas[-1], areas[-1], 0], atol=1e-6)
    assert min(areas) < 0.1 and max(areas) > 0.4 and 0.15 < np.mean(areas) < 0.45


@pytest.mark.parametrize("mix", MIX, ids=IDS)
def test_shares_follow_beta(mix):
    """Symmetric about a half where nothing is cut off, and heavy at the ends for a small alpha."""
    images, labels = batch(2)
    draw = jax.jit(jax.vmap(lambda key: functools.partial(mixup, alpha=mix.keywords["alpha"])(key, images, labels)[1]))
    shares = np.asarray(draw(jax.random.split(jax.random.key(2), 4000))[:, 0, 0])
    alpha = mix.keywords["alpha"]
    np.testing.assert_allclose(shares.mean(), 0.5, atol=0.03)
    np.testing.assert_allclose(shares.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.06)


@pytest.mark.parametrize("mix", MIX, ids=IDS)
def test_a_part_of_the_batch_is_mixed_as_in_the_whole(mix):
    images, labels = batch(8)
    whole = jax.jit(mix)(jax.random.key(3), images, labels)
    halves = [mix(jax.random.key(3), images[i : i + 4], labels[i : i + 4]) for i in (0, 4)]
    for found, *parts in zip(whole, *halves):
        np.testing.assert_allclose(np.concatenate(parts), found, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("mix", MIX, ids=IDS)
def test_dtypes_gradients_and_bad_input(x64, mix):
    mixed, soft = mix(jax.random.key(0), *batch(dtype=jnp.bfloat16))
    assert mixed.dtype == soft.dtype == jnp.bfloat16
    images, labels = batch(dtype=jnp.float64)
    check_grads(lambda images, labels: mix(jax.random.key(0), images, labels), (images, labels), order=1)
    with pytest.raises(ValueError, match="3 rows do not make pairs"):
        mix(jax.random.key(0), images[:3], labels[:3])
    with pytest.raises(ValueError, match="alpha must be positive"):
        functools.partial(mix, alpha=0.0)(jax.random.key(0), images, labels)
