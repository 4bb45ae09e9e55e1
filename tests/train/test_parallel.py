import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision.train.optim import optimizer
from jaxvision.train.parallel import parallelize
from jaxvision.train.step import accumulate, make_train_step, mean_over, value_and_grads
from tests.train.task import Net, assert_same, make_batch, make_loss_fn, make_state

TX = optimizer("sgd", learning_rate=0.1, weight_decay=1e-3)


def make_parallel(mode, devices, *, parts=1):
    grad_fn = value_and_grads(make_loss_fn(Net("data" if mode == "pmap" else None)))
    if parts > 1:
        grad_fn = accumulate(grad_fn, parts)
    if mode == "pmap":
        grad_fn = mean_over(grad_fn, "data")
    return parallelize(make_train_step(grad_fn, TX, ema_decay=0.9), mode=mode, devices=devices)


def five_steps(parallel):
    state = parallel.shard_state(make_state(TX, ema=True))
    for i in range(5):
        state, metrics = parallel.step(state, parallel.shard_batch(make_batch(i)))
    return parallel.unshard(state), metrics


def assert_close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["jit", "pmap"])
@pytest.mark.parametrize("parts", [1, 2])
def test_eight_devices_equal_one(mode, parts):
    assert jax.device_count() == 8
    state, metrics = five_steps(make_parallel(mode, None, parts=parts))
    # With pmap, part i of accumulation is image i of every device; the same images as one device sees in jit.
    alone, alone_metrics = five_steps(make_parallel("jit", jax.devices()[:1], parts=parts))
    assert_close(state[:5], alone[:5])
    assert metrics["loss"].shape == ()
    assert_close(metrics["loss"], alone_metrics["loss"])
    assert int(metrics["right"]) == int(alone_metrics["right"])
    assert jax.tree.leaves(state.params)[0].devices() == {jax.devices()[0]}


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_there_and_back(mode):
    parallel, state = make_parallel(mode, jax.devices()[:2]), make_state(TX, ema=True)
    assert_same(parallel.unshard(parallel.shard_state(state)), state)
    split = parallel.shard_batch(make_batch(0))
    np.testing.assert_array_equal(np.reshape(split["x"], (16, 5)), make_batch(0)["x"])


@pytest.mark.parametrize("mode", ["jit", "pmap"])
@pytest.mark.parametrize("count", [1, 2])
def test_donation_spares_the_callers_arrays(mode, count):
    parallel, state = make_parallel(mode, jax.devices()[:count]), make_state(TX, ema=True)
    sharded = parallel.shard_state(state)
    view = parallel.unshard(sharded)
    parallel.step(sharded, parallel.shard_batch(make_batch(0)))
    assert_same(view, state)  # both still readable
    assert jax.tree.leaves(sharded.params)[0].is_deleted()


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_a_batch_that_does_not_split(mode):
    parallel = make_parallel(mode, jax.devices()[:3])
    with pytest.raises(ValueError, match=r"\(16, 5\) cannot be split over 3 devices"):
        parallel.shard_batch({"x": jnp.zeros((16, 5))})


def test_unknown_mode():
    with pytest.raises(ValueError, match="'xmap'"):
        make_parallel("xmap", None)
