"""Gradient functions, transforms of them, and the training step.

``loss_fn(params, model_state, batch, key) -> (loss, (metrics, model_state))`` is what a task writes.
``grad_fn(params, model_state, batch, key) -> (grads, metrics, model_state)`` is what the transforms here take and
return, so they compose: ``mean_over(accumulate(value_and_grads(loss_fn), 4), "data")``.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxvision.train.optim import matching
from jaxvision.train.state import TrainState
from jaxvision.typing import Array

LossFn = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, tuple[dict[str, jax.Array], Any]]]
GradFn = Callable[[Any, Any, Any, jax.Array], tuple[Any, dict[str, jax.Array], Any]]
Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]

__all__ = ["GradFn", "LossFn", "Step", "accumulate", "make_train_step", "mean_over", "value_and_grads"]


def value_and_grads(loss_fn: LossFn, *, freeze: tuple[str, ...] = ()) -> GradFn:
    """The gradient function of a loss; its metrics are the loss's own and ``loss``.

    Parameters that ``freeze`` matches (see ``optim.matching``) get zero gradients, and XLA leaves their work out.
    Give the optimiser the same patterns, or weight decay moves them.
    """

    def grad_fn(params: Any, model_state: Any, batch: Any, key: jax.Array):
        frozen = matching(params, freeze)

        def loss_of(params: Any):
            params = jax.tree.map(lambda x, stop: lax.stop_gradient(x) if stop else x, params, frozen)
            return loss_fn(params, model_state, batch, key)

        (loss, (metrics, new_state)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        return grads, {**metrics, "loss": loss}, new_state

    return grad_fn


def accumulate(grad_fn: GradFn, n: int, *, unroll: int = 1) -> GradFn:
    """Split the batch in ``n`` parts, run them one after the other and average: less memory, the same gradient for a
    loss that is a mean over images (batch norm sees one part at a time and its statistics pass from part to part).

    Float metrics are averaged and integer ones (counts) added. Part i holds the images i, i + n, i + 2n, …, so a batch
    that is sharded over devices is split without moving data. XLA's CPU backend runs convolutions in a loop slowly:
    ``unroll=n`` writes the parts out.
    Raises: ValueError if n is below 1 or the batch cannot be split.
    """
    if n < 1:
        raise ValueError(f"n={n} parts of a batch must be at least 1")

    def split(leaf: Array) -> jax.Array:
        if leaf.ndim == 0 or leaf.shape[0] % n:
            raise ValueError(f"cannot split a batch leaf of shape {leaf.shape} in {n} equal parts")
        return jnp.moveaxis(jnp.reshape(leaf, (leaf.shape[0] // n, n, *leaf.shape[1:])), 1, 0)

    def accumulated(params: Any, model_state: Any, batch: Any, key: jax.Array):
        def body(carry, part):
            total, model_state = carry
            grads, metrics, model_state = grad_fn(params, model_state, *part)
            return (jax.tree.map(jnp.add, total, grads), model_state), metrics

        start = (jax.tree.map(jnp.zeros_like, params), model_state)
        parts = (jax.tree.map(split, batch), jax.random.split(key, n))
        (total, model_state), metrics = lax.scan(body, start, parts, unroll=unroll)
        metrics = jax.tree.map(lambda x: jnp.mean(x, 0) if _is_float(x) else jnp.sum(x, 0), metrics)
        return jax.tree.map(lambda x: x / n, total), metrics, model_state

    return accumulated


def mean_over(grad_fn: GradFn, axis_name: str) -> GradFn:
    """Average gradients, float metrics and float model state over a mapped axis (``pmap``, ``vmap``, ``shard_map``);
    integer metrics (counts) are added.

    All members get the same key, so that a loss can draw what it would draw on one device: it folds in the number of
    each example in the whole batch, or at least ``lax.axis_index(axis_name)``.
    """

    def averaged(params: Any, model_state: Any, batch: Any, key: jax.Array):
        grads, metrics, model_state = grad_fn(params, model_state, batch, key)
        metrics = jax.tree.map(lambda x: lax.pmean(x, axis_name) if _is_float(x) else lax.psum(x, axis_name), metrics)
        model_state = jax.tree.map(lambda x: lax.pmean(x, axis_name) if _is_float(x) else x, model_state)
        return lax.pmean(grads, axis_name), metrics, model_state

    return averaged


def make_train_step(
    grad_fn: GradFn,
    tx: optax.GradientTransformation,
    *,
    learning_rate: optax.Schedule | None = None,
    ema_decay: float | None = None,
) -> Step:
    """The pure step ``(state, batch) -> (state, metrics)``; jit it, scan it, vmap it, differentiate through it.

    Metrics: those of ``grad_fn``, ``gradient_norm``, ``update_norm``, ``parameter_norm``, ``learning_rate`` if its
    schedule is given (the optimiser has its own copy; this one is for the record), and ``finite``, a bool.
    If the loss or the gradient is not finite, the state comes back as it was, bit for bit, its step number included.
    Randomness comes from ``fold_in(state.key, state.step)``, so a resumed run draws what the uninterrupted one drew.
    ``ema_decay`` averages the parameters; the decay grows as (1 + t) / (10 + t) up to it, so early steps count less.
    Gradients flow through the update to params, optimiser state and batch; the norms carry none.
    Raises: ValueError for an ``ema_decay`` outside [0, 1), or a state that was made without what it needs.
    """
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay={ema_decay} must be at least 0 and below 1")

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        if (ema_decay is None) != (state.ema is None):
            raise ValueError(f"ema_decay={ema_decay} needs create_state(…, ema={ema_decay is not None})")
        key = jax.random.fold_in(state.key, state.step)
        grads, metrics, model_state = grad_fn(state.params, state.model_state, batch, key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        metrics = dict(metrics)
        # The norm's derivative at zero is not a number; it must not meet a zero cotangent.
        for name, tree in (("gradient", grads), ("update", updates), ("parameter", params)):
            metrics[f"{name}_norm"] = _norm(lax.stop_gradient(tree))
        if learning_rate is not None:
            metrics["learning_rate"] = jnp.asarray(learning_rate(state.step), jnp.float32)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
        metrics["finite"] = finite

        ema = None
        if ema_decay is not None:
            decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
            ema = jax.tree.map(lambda old, new: (decay * old + (1 - decay) * new).astype(old.dtype), state.ema, params)
        new = TrainState(state.step + 1, params, model_state, opt_state, ema, state.key)
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state), metrics

    return step


def _is_float(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _norm(tree: Any) -> jax.Array:
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros((), jnp.float32)))
