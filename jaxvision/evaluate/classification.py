"""Accuracy as (total, count) states that are merged by addition and divided once, at the end."""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax.numpy as jnp

from jaxvision.typing import Array, Bool, Float, Int

__all__ = ["Mean", "mean", "merge", "top_k"]


class Mean(NamedTuple):
    """A mean in the making: add the states of all batches (and devices), then ask for the result."""

    total: Float[Array, ""] | float = 0.0
    count: Float[Array, ""] | float = 0.0

    def merge(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)

    def result(self) -> float:
        """NaN if nothing was counted: no examples are not the same as none right."""
        return float(self.total) / float(self.count) if self.count else float("nan")


def merge(states: Iterable[Mean]) -> Mean:
    """The state of all parts together."""
    return functools.reduce(Mean.merge, states, Mean())


def mean(values: Float[Array, " b"], valid: Bool[Array, " b"]) -> Mean:
    """The state of a figure that every row has, over the rows where ``valid``; what the others hold, NaN included, is
    ignored. Gradients flow to the values that are counted."""
    return Mean(jnp.sum(jnp.where(valid, values, 0)), jnp.sum(jnp.asarray(valid), dtype=jnp.float32))


def top_k(logits: Float[Array, "b c"], labels: Int[Array, " b"], valid: Bool[Array, " b"], k: int) -> Mean:
    """How many labels are among the ``k`` highest logits, over the rows where ``valid``.

    Of equal logits the lower class comes first, as in ``jax.lax.top_k``. A row with a NaN, or with a label outside
    0 … c − 1, is counted as wrong. Not differentiable (the gradient is zero).
    Raises: ValueError if ``k`` is not in 1 … c.
    """
    classes = logits.shape[1]
    if not 1 <= k <= classes:
        raise ValueError(f"k={k} must be between 1 and the number of classes, {classes}")
    known = (labels >= 0) & (labels < classes)
    own = jnp.take_along_axis(jnp.asarray(logits), jnp.clip(labels, 0, classes - 1)[:, None], axis=1)
    before = jnp.arange(classes)[None, :] < labels[:, None]
    rank = jnp.sum((logits > own) | ((logits == own) & before), axis=1)
    right = (rank < k) & known & ~jnp.any(jnp.isnan(logits), axis=1)
    return Mean(jnp.sum(right & valid, dtype=jnp.float32), jnp.sum(jnp.asarray(valid), dtype=jnp.float32))
