"""Variables without compiling a model's ``init``, and whether a model learns from them."""

import jax
import jax.numpy as jnp
import numpy as np


def random_variables(model, images):
    """Kernels after He, small biases, batch norm near the identity."""
    rng = np.random.default_rng(0)

    def leaf(path, shape):
        noise = rng.standard_normal(shape.shape, np.float32)
        name = path[-1].key
        if name == "kernel":
            return noise * np.sqrt(2 / np.prod(shape.shape[:-1])).astype(np.float32)
        return (1 if name in ("scale", "var") else 0) + noise / 20

    return jax.tree.map_with_path(leaf, jax.eval_shape(model.init, jax.random.key(0), images))


def assert_learns(model, images):
    """Every parameter gets a gradient in training, every running statistic moves."""
    variables = random_variables(model, images)

    def loss(params):
        (logits, _), updates = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            rngs={"dropout": jax.random.key(3)},
            mutable=["batch_stats"],
        )
        return jnp.sin(logits + jnp.arange(logits.shape[1])[None]).sum(), updates

    grads, updates = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    silent = [path for path, leaf in jax.tree.leaves_with_path(grads) if not jnp.any(leaf != 0)]
    assert not silent, f"no gradient reaches {[jax.tree_util.keystr(path) for path in silent]}"
    if "batch_stats" in variables:
        still = jax.tree.map(np.array_equal, variables["batch_stats"], updates["batch_stats"])
        assert not any(jax.tree.leaves(still))
