import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from jaxvision.train.optim import optimizer, schedule
from jaxvision.train.state import state_variables
from jaxvision.train.step import accumulate, make_train_step, mean_over, value_and_grads
from tests.train.task import Net, assert_same, make_batch, make_loss_fn, make_state

TX = optimizer("sgd", learning_rate=0.1, weight_decay=1e-3)
GRAD_FN = value_and_grads(make_loss_fn(Net(), noise=0.1))
STEP = make_train_step(GRAD_FN, TX, learning_rate=optax.constant_schedule(0.1))


def close(a, b, rtol=1e-5):
    def compare(x, y):
        if jnp.issubdtype(x.dtype, jnp.inexact):
            np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6)

    jax.tree.map(compare, a, b)


def stack(*trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def test_step_by_hand():
    """One step of SGD written out: velocity = gradient + decay * kernel; parameter -= rate * velocity."""
    state, batch = make_state(TX), make_batch(0)
    new, metrics = jax.jit(STEP)(state, batch)
    key = jax.random.fold_in(state.key, 0)
    loss_fn = make_loss_fn(Net(), noise=0.1)
    (loss, (terms, model_state)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        state.params, state.model_state, batch, key
    )
    expected = jax.tree.map(lambda p, g: p - 0.1 * (g + 1e-3 * p * (p.ndim > 1)), state.params, grads)
    close(new.params, expected)
    close(new.model_state, model_state)
    assert new.step == 1 and metrics["finite"]
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], metrics["cross_entropy"] + metrics["penalty"], rtol=1e-6)
    assert metrics["right"] == terms["right"]
    flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(grads)])
    np.testing.assert_allclose(metrics["gradient_norm"], np.linalg.norm(flat), rtol=1e-5)
    flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(expected)])
    np.testing.assert_allclose(metrics["parameter_norm"], np.linalg.norm(flat), rtol=1e-5)
    np.testing.assert_allclose(metrics["learning_rate"], 0.1)


def test_overfits_one_batch():
    state, batch, step = make_state(TX), make_batch(0), jax.jit(STEP)
    for _ in range(200):
        state, metrics = step(state, batch)
    assert metrics["cross_entropy"] < 0.1


def test_scan_equals_loop():
    batches = [make_batch(i) for i in range(4)]
    looped, step = make_state(TX), jax.jit(STEP)
    for batch in batches:
        looped, _ = step(looped, batch)
    scanned, metrics = jax.jit(lambda s, b: lax.scan(STEP, s, b))(make_state(TX), stack(*batches))
    close(scanned.params, looped.params)
    close(scanned.model_state, looped.model_state)
    assert scanned.step == 4 and metrics["loss"].shape == (4,)


def test_vmap_over_seeds_equals_loop():
    states = [make_state(TX, seed=seed) for seed in range(3)]
    batch = make_batch(0)
    together, _ = jax.jit(jax.vmap(STEP, in_axes=(0, None)))(stack(*states), batch)
    alone = stack(*[jax.jit(STEP)(state, batch)[0] for state in states])
    close(together.params, alone.params)


def test_gradient_through_steps(x64):
    """The derivative of the loss after three steps by the start, and by the data, against finite differences."""
    state = make_state(TX)
    params, model_state = jax.tree.map(lambda x: x.astype(jnp.float64), state[1:3])
    batches = stack(*[make_batch(i) for i in range(3)])

    def after(params, x):
        start = state._replace(params=params, model_state=model_state, opt_state=TX.init(params))
        _, metrics = lax.scan(STEP, start, {**batches, "x": x})
        return metrics["loss"][-1]

    x = jnp.asarray(batches["x"], jnp.float64)
    gradient = jax.jit(jax.grad(after, (0, 1)))(params, x)
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(gradient))
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), (params, x))
    along = sum(np.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    f = jax.jit(lambda t: after(*jax.tree.map(lambda leaf, d: leaf + t * d, (params, x), direction)))
    np.testing.assert_allclose(along, (f(1e-6) - f(-1e-6)) / 2e-6, rtol=1e-4)


def test_gradient_at_zero_norms():
    """With no gradient at all the norms' derivatives must not turn into NaN."""

    def loss_fn(params, model_state, batch, key):
        return jnp.sum(params["kernel"] * 0.0) + batch, ({}, model_state)

    step = make_train_step(value_and_grads(loss_fn), optax.sgd(0.1))
    state = make_state(TX)._replace(params={"kernel": jnp.zeros(3)}, opt_state=optax.sgd(0.1).init(None))

    def after(params):
        new, metrics = step(state._replace(params=params), 1.0)
        return jnp.sum(new.params["kernel"] ** 2) + metrics["loss"]

    assert np.isfinite(jax.grad(after)({"kernel": jnp.zeros(3)})["kernel"]).all()


@pytest.mark.parametrize("unroll", [1, 4])
def test_accumulate_is_the_mean_of_the_parts(unroll):
    state, batch, key = make_state(TX), make_batch(0), jax.random.key(1)
    grads, metrics, model_state = jax.jit(accumulate(GRAD_FN, 4, unroll=unroll))(
        state.params, state.model_state, batch, key
    )
    statistics, parts = state.model_state, []
    for i, part_key in enumerate(jax.random.split(key, 4)):
        part = jax.tree.map(lambda x, i=i: x[i::4], batch)
        g, m, statistics = GRAD_FN(state.params, statistics, part, part_key)
        parts.append((g, m))
    close(grads, jax.tree.map(lambda *g: sum(g) / 4, *[g for g, _ in parts]))
    close(model_state, statistics)
    np.testing.assert_allclose(metrics["loss"], np.mean([m["loss"] for _, m in parts]), rtol=1e-5)
    assert metrics["right"] == sum(m["right"] for _, m in parts)


def test_accumulate_one_is_the_identity_and_five_is_refused():
    state, batch = make_state(TX), make_batch(0)
    quiet = value_and_grads(make_loss_fn(Net()))
    close(accumulate(quiet, 1)(*state[1:3], batch, state.key), quiet(*state[1:3], batch, state.key))
    with pytest.raises(ValueError, match=r"\(16, 5\) in 5 equal parts"):
        accumulate(quiet, 5)(*state[1:3], batch, state.key)


def test_mean_over_and_accumulate_compose():
    """Two members of two parts each, batch norm synchronised over nothing: the mean of four quarter batches."""
    state, batch, key = make_state(TX), make_batch(0), jax.random.key(1)
    quiet = value_and_grads(make_loss_fn(Net()))
    halves = jax.tree.map(lambda x: jnp.reshape(x, (2, 8, *x.shape[1:])), batch)
    composed = mean_over(accumulate(quiet, 2), "data")
    grads, metrics, model_state = jax.vmap(composed, in_axes=(None, None, 0, None), axis_name="data")(
        *state[1:3], halves, key
    )
    close(jax.tree.map(lambda x: x[0], grads), jax.tree.map(lambda x: x[1], grads))
    quarters = [jax.tree.map(lambda x, i=i, j=j: x[i][j::2], halves) for i in range(2) for j in range(2)]
    alone = [quiet(*state[1:3], quarter, key) for quarter in quarters]
    close(jax.tree.map(lambda x: x[0], grads), jax.tree.map(lambda *g: sum(g) / 4, *[a[0] for a in alone]))
    assert metrics["right"][0] == sum(a[1]["right"] for a in alone)
    statistics = model_state["batch_stats"]["bn"]["mean"]
    np.testing.assert_array_equal(statistics[0], statistics[1])


def test_mean_over_lets_a_loss_draw_as_on_one_device():
    def noise(key, numbers):
        return jax.vmap(lambda number: jax.random.normal(jax.random.fold_in(key, number)))(numbers)

    def loss_fn(params, model_state, batch, key):
        return jnp.mean(jnp.square(params["w"] * noise(key, batch))), ({}, model_state)

    params, numbers, key = {"w": jnp.ones(())}, jnp.arange(4), jax.random.key(0)
    whole, _, _ = value_and_grads(loss_fn)(params, {}, numbers, key)
    parts, _, _ = jax.vmap(
        mean_over(value_and_grads(loss_fn), "data"), in_axes=(None, None, 0, None), axis_name="data"
    )(params, {}, numbers.reshape(2, 2), key)
    np.testing.assert_allclose(parts["w"], jnp.full(2, whole["w"]), rtol=1e-6)


@pytest.mark.parametrize("tx", [TX, optimizer("adamw", learning_rate=1e-3, clip_norm=1.0)])
def test_state_stays_when_the_loss_is_not_finite(tx):
    step = jax.jit(make_train_step(GRAD_FN, tx, ema_decay=0.9))
    state, _ = step(make_state(tx, ema=True), make_batch(0))
    bad = make_batch(1)
    bad["x"][3, 2] = np.inf
    after, metrics = step(state, bad)
    assert not metrics["finite"] and not np.isfinite(metrics["cross_entropy"])
    assert np.isfinite(metrics["penalty"])  # so the loop can name the term
    assert_same(after, state)
    again, metrics = step(after, make_batch(1))
    assert metrics["finite"] and again.step == 2


def test_ema():
    step = jax.jit(make_train_step(GRAD_FN, TX, ema_decay=0.15))
    state = make_state(TX, ema=True)
    average = state.params
    for i in range(3):
        state, _ = step(state, make_batch(i))
        decay = min(0.15, (1 + i) / (10 + i))
        average = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, average, state.params)
    close(state.ema, average)
    assert state_variables(state)["params"] is state.ema
    assert state_variables(make_state(TX)).keys() == {"params", "batch_stats"}
    with pytest.raises(ValueError, match="ema=True"):
        step(make_state(TX), make_batch(0))


def test_frozen_parameters_cost_and_move_nothing():
    freeze = ("dense1", "bn/scale")
    tx = optimizer("adamw", learning_rate=0.1, weight_decay=0.1, freeze=freeze)
    step = jax.jit(make_train_step(value_and_grads(make_loss_fn(Net()), freeze=freeze), tx))
    state = make_state(tx)
    new, _ = step(state, make_batch(0))
    assert_same(new.params["dense1"], state.params["dense1"])
    assert_same(new.params["bn"]["scale"], state.params["bn"]["scale"])
    assert np.any(new.params["bn"]["bias"] != state.params["bn"]["bias"])
    assert np.any(new.params["dense2"]["kernel"] != state.params["dense2"]["kernel"])
    grads, _, _ = value_and_grads(make_loss_fn(Net()), freeze=freeze)(*state[1:3], make_batch(0), state.key)
    assert not np.any(grads["dense1"]["kernel"]) and np.any(grads["dense2"]["kernel"])
    with pytest.raises(ValueError, match="'backbone' matches no parameter; paths begin with bn, dense1, dense2"):
        optimizer("sgd", learning_rate=0.1, freeze=("backbone",)).init(state.params)


def test_learning_rate_of_the_record_is_that_of_the_update():
    rate = schedule("cosine", learning_rate=0.2, total_steps=10, warmup_steps=4)
    tx = optimizer("sgd", learning_rate=rate, momentum=0.0)
    step = jax.jit(make_train_step(GRAD_FN, tx, learning_rate=rate))
    state = make_state(tx)
    for i in range(10):
        state, metrics = step(state, make_batch(i))
        np.testing.assert_allclose(
            metrics["update_norm"], metrics["learning_rate"] * metrics["gradient_norm"], rtol=1e-4
        )
