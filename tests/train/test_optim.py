import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision.train.optim import matching, optimizer, schedule

PARAMS = {"conv": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full((2,), 2.0)}}


def rates(name, **options):
    rate = schedule(name, learning_rate=0.8, total_steps=12, **options)
    return np.array([rate(step) for step in range(12)])


def test_schedules():
    np.testing.assert_allclose(rates("constant"), 0.8)
    np.testing.assert_allclose(rates("constant", warmup_steps=4)[:6], [0.2, 0.4, 0.6, 0.8, 0.8, 0.8], rtol=1e-6)
    np.testing.assert_allclose(rates("constant", warmup_steps=1), 0.8)
    falling = 0.4 * (1 + np.cos(np.pi * np.arange(8) / 8))
    np.testing.assert_allclose(rates("cosine", warmup_steps=4)[4:], falling, rtol=1e-5)
    stepped = rates("step", warmup_steps=2, milestones=(5, 9), gamma=0.5)
    np.testing.assert_allclose(stepped, [0.4, 0.8, 0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.4, 0.2, 0.2, 0.2], rtol=1e-6)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="linear"):
        rates("linear")
    with pytest.raises(ValueError, match="warmup_steps=12"):
        rates("cosine", warmup_steps=12)
    with pytest.raises(ValueError, match="lion"):
        optimizer("lion", learning_rate=0.1)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_decay_spares_biases(name):
    tx = optimizer(name, learning_rate=0.1, weight_decay=0.5)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = tx.update(zeros, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["conv"]["kernel"], -0.1 * 0.5 * 2.0, rtol=1e-6)
    assert not np.any(updates["conv"]["bias"])
    tx = optimizer(name, learning_rate=0.1, weight_decay=0.5, decay_all=True)
    updates, _ = tx.update(zeros, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["conv"]["bias"], -0.1 * 0.5 * 2.0, rtol=1e-6)


def test_sgd_is_torchs():
    """v = momentum * v + (g + decay * p); p -= rate * v, three steps by hand on one kernel."""
    tx = optimizer("sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.01)
    params, p, v = {"kernel": jnp.ones((1, 1))}, 1.0, 0.0
    state = tx.init(params)
    for g in (0.5, -0.2, 0.3):
        updates, state = tx.update({"kernel": jnp.full((1, 1), g)}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        v = 0.9 * v + (g + 0.01 * p)
        p -= 0.1 * v
    np.testing.assert_allclose(params["kernel"][0, 0], p, rtol=1e-6)


def test_clip_ignores_frozen_parameters():
    params = {"a": jnp.zeros(4), "b": jnp.zeros(4)}
    grads = {"a": jnp.full(4, 100.0), "b": jnp.full(4, 3.0)}
    tx = optimizer("sgd", learning_rate=1.0, momentum=0.0, clip_norm=1.0, freeze=("a",))
    updates, _ = tx.update(grads, tx.init(params), params)
    assert not np.any(updates["a"])
    np.testing.assert_allclose(np.linalg.norm(updates["b"]), 1.0, rtol=1e-6)


def test_matching_is_from_the_start_of_the_path():
    assert matching(PARAMS, ("conv/k",)) == {"conv": {"kernel": True, "bias": False}}
    assert matching(PARAMS, (".*bias$",)) == {"conv": {"kernel": False, "bias": True}}
    assert matching(PARAMS, ("(?!conv/k)",)) == {"conv": {"kernel": False, "bias": True}}  # all but
    assert matching(PARAMS, ()) == {"conv": {"kernel": False, "bias": False}}
    with pytest.raises(ValueError, match="'onv'"):
        matching(PARAMS, ("onv",))
