import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxvision import losses


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_smooth_l1(beta):
    x = np.array([-3.0, -1.0, -0.05, 0.0, 0.02, 0.5, 2.0], np.float32)
    want = [0.5 * v * v / beta if abs(v) < beta else abs(v) - beta / 2 for v in x]
    np.testing.assert_allclose(losses.smooth_l1(x, beta=beta), want, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="negative"):
        losses.smooth_l1(x, beta=-1.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing):
    logits, labels = jax.random.normal(jax.random.key(0), (5, 4)) * 50, jnp.array([0, 3, 1, 2, 2])
    log_p = np.asarray(logits) - np.log(np.exp(np.asarray(logits, np.float64)).sum(1, keepdims=True))
    target = np.eye(4)[labels] * (1 - smoothing) + smoothing / 4
    got = losses.cross_entropy(logits, labels, label_smoothing=smoothing)
    np.testing.assert_allclose(got, -(target * log_p).sum(1), rtol=1e-5, atol=1e-5)


def test_binary_cross_entropy_of_large_logits():
    got = losses.binary_cross_entropy(jnp.array([-200.0, 200.0, 0.0]), jnp.array([1.0, 0.5, 0.25]))
    np.testing.assert_allclose(got, [200.0, 100.0, np.log(2)], rtol=1e-6)


def test_focal_by_its_definition():
    logits, targets = jnp.array([-3.0, 0.5, 2.0, -1.0]), np.array([1.0, 0.0, 1.0, 0.0])
    p = 1 / (1 + np.exp(-np.asarray(logits, float)))
    p, alpha = np.where(targets == 1, p, 1 - p), np.where(targets == 1, 0.25, 0.75)
    got = losses.focal(logits, targets.astype(np.float32))
    np.testing.assert_allclose(got, -alpha * (1 - p) ** 2 * np.log(p), rtol=1e-5)
    plain = losses.focal(logits, targets.astype(np.float32), alpha=0.5, gamma=0.0)
    np.testing.assert_allclose(2 * plain, losses.binary_cross_entropy(logits, targets.astype(np.float32)), rtol=1e-6)
    extreme = jnp.array([-200.0, 200.0])
    for target in (jnp.zeros(2), jnp.ones(2)):
        value, slope = jax.jvp(lambda x, target=target: losses.focal(x, target), (extreme,), (jnp.ones(2),))
        assert bool(jnp.isfinite(value).all() & jnp.isfinite(slope).all())


def test_weighted_mean():
    values, weights = jnp.array([1.0, 2.0, jnp.inf]), jnp.array([True, True, False])
    assert losses.weighted_mean(values, weights) == 1.5
    assert losses.weighted_mean(values, weights, count=jnp.array(4.0)) == 0.75
    nothing = jnp.zeros(3, bool)
    assert losses.weighted_mean(values, nothing) == 0
    grads = jax.grad(lambda v: losses.weighted_mean(v, nothing))(jnp.ones(3))
    np.testing.assert_array_equal(grads, 0)


def test_weighted_mean_over_devices_is_that_of_the_whole():
    values, weights = jnp.arange(8.0), jnp.array([1, 1, 1, 1, 0, 0, 1, 0.0])
    parts = jax.vmap(lambda v, w: losses.weighted_mean(v, w, axis_name="data"), axis_name="data")(
        values.reshape(2, 4), weights.reshape(2, 4)
    )
    np.testing.assert_allclose(parts.mean(), losses.weighted_mean(values, weights), rtol=1e-6)


def test_gradients(x64):
    x = jnp.array([-2.0, -0.04, 0.03, 0.7])
    check_grads(lambda x: losses.smooth_l1(x, beta=1 / 9), (x,), order=2, modes=("fwd", "rev"))
    check_grads(lambda x: losses.cross_entropy(x[None], jnp.array([2]), label_smoothing=0.1), (x,), order=2)
    check_grads(lambda x: losses.binary_cross_entropy(x, jnp.array([0.0, 1.0, 0.5, 0.2])), (x,), order=2)
    check_grads(lambda x: losses.focal(x, jnp.array([0.0, 1.0, 0.0, 1.0])), (x,), order=1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_soft_labels(smoothing):
    logits, labels = jax.random.normal(jax.random.key(0), (5, 4)) * 50, jnp.array([0, 3, 1, 2, 2])
    hard = losses.cross_entropy(logits, labels, label_smoothing=smoothing)
    soft = losses.cross_entropy(logits, jax.nn.one_hot(labels, 4), label_smoothing=smoothing)
    np.testing.assert_allclose(soft, hard, rtol=1e-5, atol=1e-5)
    other = losses.cross_entropy(logits, labels[::-1], label_smoothing=smoothing)
    mixed = 0.3 * jax.nn.one_hot(labels, 4) + 0.7 * jax.nn.one_hot(labels[::-1], 4)
    got = losses.cross_entropy(logits, mixed, label_smoothing=smoothing)
    np.testing.assert_allclose(got, 0.3 * hard + 0.7 * other, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_computed_in_float32():
    logits = jax.random.normal(jax.random.key(0), (300, 4)).astype(jnp.bfloat16)
    labels = jnp.arange(300) % 4
    want = losses.cross_entropy(logits.astype(jnp.float32), labels)
    got = losses.cross_entropy(logits, labels)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, want)
    mean = losses.weighted_mean(want.astype(jnp.bfloat16), jnp.ones(300, bool))
    np.testing.assert_allclose(mean, np.mean(want.astype(jnp.bfloat16).astype(np.float32)), rtol=1e-6)
    for loss in (losses.binary_cross_entropy(logits, jnp.ones((300, 4))), losses.smooth_l1(logits, beta=0.0)):
        assert loss.dtype == jnp.float32
