"""Loss primitives shared by the models. Element-wise losses leave the mean to ``weighted_mean``, which alone knows how
to divide when the batch lies on several devices.

All of them compute in float32 at least: a network may work in bfloat16, its losses do not."""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxvision.typing import Array, Float, Int


def smooth_l1(difference: Float[Array, "*n"], *, beta: float) -> Float[Array, "*n"]:
    """``x^2 / (2 beta)`` where ``|x| < beta``, ``|x| - beta / 2`` beyond (Fast R-CNN, arXiv:1504.08083, section 2.3).

    beta = 0 is the absolute value. Gradient: within [-1, 1], continuous for beta > 0.
    """
    if beta < 0:
        raise ValueError(f"beta must not be negative, got {beta}")
    difference = _precise(difference)
    if beta == 0:
        return jnp.abs(difference)
    return optax.losses.huber_loss(difference, delta=beta) / beta


def cross_entropy(
    logits: Float[Array, "*n k"], labels: Int[Array, "*n"] | Float[Array, "*n k"], *, label_smoothing: float = 0.0
) -> Float[Array, "*n"]:
    """Softmax cross-entropy of each row in nats. Labels are classes, or probabilities of the classes, to which
    gradients flow too; ``label_smoothing`` mixes the uniform distribution into them as torch does."""
    logits = _precise(logits)
    if jnp.issubdtype(labels.dtype, jnp.floating):
        uniform = 1 / logits.shape[-1]
        return optax.losses.softmax_cross_entropy(logits, (1 - label_smoothing) * labels + label_smoothing * uniform)
    loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    if label_smoothing == 0.0:
        return loss
    uniform = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
    return (1 - label_smoothing) * loss + label_smoothing * uniform


def binary_cross_entropy(logits: Float[Array, "*n"], targets: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Cross-entropy in nats between ``sigmoid(logits)`` and targets in [0, 1], element by element."""
    return optax.losses.sigmoid_binary_cross_entropy(_precise(logits), targets)


def focal(
    logits: Float[Array, "*n"], targets: Float[Array, "*n"], *, alpha: float = 0.25, gamma: float = 2.0
) -> Float[Array, "*n"]:
    """Binary cross-entropy that well-classified elements hardly enter (arXiv:1708.02002, section 3): times
    ``(1 - p)^gamma`` for the probability p of the target, and alpha for targets of 1, 1 - alpha for 0."""
    logits = _precise(logits)
    targets = jnp.asarray(targets, logits.dtype)
    probability = jax.nn.sigmoid(logits)
    wrong = probability * (1 - targets) + (1 - probability) * targets
    balance = alpha * targets + (1 - alpha) * (1 - targets)
    return balance * wrong**gamma * binary_cross_entropy(logits, targets)


def weighted_mean(
    values: Float[Array, "*n"],
    weights: Array,
    *,
    count: Array | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """``sum(values * weights) / count``, with ``count = sum(weights)`` by default; 0 where nothing counts.

    axis_name: inside ``pmap`` over that axis the division is by the mean count of the devices, so that the mean of the
    devices' losses (and gradients) is the loss of the whole batch however unevenly the counted elements are spread.
    Values of weight 0 may be anything finite. No gradient flows to the weights or the count.
    """
    values = _precise(values)
    weights = lax.stop_gradient(jnp.asarray(weights, values.dtype))
    count = jnp.sum(weights) if count is None else lax.stop_gradient(jnp.asarray(count, values.dtype))
    if axis_name is not None:
        count = lax.pmean(count, axis_name)
    total = jnp.sum(jnp.where(weights > 0, values, 0) * weights)
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0)


def _precise(x: Array) -> jax.Array:
    return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))
