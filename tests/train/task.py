"""A small classifier with batch norm and dropout-like noise, for the training tests."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxvision.train.state import create_state


class Net(nn.Module):
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = nn.Dense(16, name="dense1")(x)
        x = nn.BatchNorm(
            use_running_average=not train, momentum=0.9, axis_name=self.axis_name if train else None, name="bn"
        )(x)
        return nn.Dense(3, name="dense2")(nn.relu(x))


def make_loss_fn(model, *, noise=0.0):
    def loss_fn(params, model_state, batch, key):
        x = batch["x"] + noise * jax.random.normal(key, batch["x"].shape)
        logits, updated = model.apply({"params": params, **model_state}, x, train=True, mutable=list(model_state))
        cross_entropy = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]))
        penalty = 1e-3 * jnp.mean(jnp.square(params["dense1"]["kernel"]))
        right = jnp.sum(jnp.argmax(logits, -1) == batch["y"])
        return cross_entropy + penalty, ({"cross_entropy": cross_entropy, "penalty": penalty, "right": right}, updated)

    return loss_fn


def make_state(tx, *, seed=0, ema=False):
    init_key, key = jax.random.split(jax.random.key(seed))
    return create_state(key, Net().init(init_key, jnp.zeros((1, 5))), tx, ema=ema)


def make_batch(seed, size=16):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, 5)).astype(np.float32)
    return {"x": x, "y": (np.abs(x).argmax(1) % 3).astype(np.int32)}


class Batches:
    """An endless iterator whose position can be saved, as Grain's can."""

    def __init__(self, size=16, fault_at=None):
        self.position, self.size, self.fault_at = 0, size, fault_at

    def __iter__(self):
        return self

    def __next__(self):
        batch = {**make_batch(self.position, self.size), "image_ids": np.arange(self.size) + 100 * self.position}
        if self.position == self.fault_at:
            batch["x"] = batch["x"] * np.float32(np.nan)
        self.position += 1
        return batch

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def assert_same(a, b):
    """Bit for bit, dtypes and structure included."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
