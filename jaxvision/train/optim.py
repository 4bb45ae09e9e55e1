"""Optimisers and learning-rate schedules from plain arguments, so that a config can hold them."""

import math
import re
from typing import Any

import jax
import optax

__all__ = ["matching", "optimizer", "schedule"]


def schedule(
    name: str,
    *,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    milestones: tuple[int, ...] = (),
    gamma: float = 0.1,
) -> optax.Schedule:
    """The learning rate as a function of the step: a linear warm-up, then ``constant``, ``cosine``, ``step``
    or ``poly``.

    ``cosine`` falls to 0 at ``total_steps``, and so does ``poly``, as ``(1 - step / total) ** 0.9`` (DeepLab,
    arXiv:1606.00915, section 4.1); ``step`` is multiplied by ``gamma`` at each of ``milestones`` (counted
    from step 0, warm-up included). The warm-up's first step already moves: it uses 1/warmup_steps of the peak.
    Raises: ValueError for an unknown name, a value out of its range, or a warm-up that is not shorter than the run.
    """
    _check(learning_rate=(learning_rate, 0 < learning_rate < math.inf, "above 0 and finite"))
    _check(gamma=(gamma, 0 < gamma <= 1, "above 0 and at most 1"))
    rising = all(0 < a < b for a, b in zip(milestones, (*milestones[1:], math.inf)))
    _check(milestones=(milestones, rising, "steps above 0, each later than the one before"))
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"warmup_steps={warmup_steps} must be at least 0 and below total_steps={total_steps}")
    _check(milestones=(milestones, min(milestones, default=math.inf) > warmup_steps, f"beyond {warmup_steps=}"))
    if name == "constant":
        after = optax.constant_schedule(learning_rate)
    elif name == "cosine":
        after = optax.cosine_decay_schedule(learning_rate, total_steps - warmup_steps)
    elif name == "poly":
        after = optax.polynomial_schedule(learning_rate, 0.0, 0.9, total_steps - warmup_steps)
    elif name == "step":
        # join_schedules restarts the count after the warm-up; milestones are counted from the start of the run.
        drops = {milestone - warmup_steps: gamma for milestone in milestones}
        after = optax.piecewise_constant_schedule(learning_rate, drops)
    else:
        raise ValueError(f"unknown schedule {name!r}; choose constant, cosine, step or poly")
    if warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(learning_rate / warmup_steps, learning_rate, warmup_steps - 1)
    return optax.join_schedules([warmup, after], [warmup_steps])


def _check(**options: tuple[Any, bool, str]) -> None:
    """Each: the value, whether it is right, and what it must be."""
    for name, (value, right, words) in options.items():
        if not right:
            raise ValueError(f"{name}={value!r} must be {words}")


def matching(params: Any, patterns: tuple[str, ...]) -> Any:
    """A tree of bools: which parameters have a path (``backbone/layer1_0/conv1/kernel``) that a regular expression
    of ``patterns`` matches from its start.

    Raises: ValueError for a pattern that is no regular expression, or matches nothing, listing the first level of
    names.
    """

    def path_of(path: tuple) -> str:
        return jax.tree_util.keystr(path, simple=True, separator="/")

    paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in patterns:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        if not any(expression.match(path) for path in paths):
            names = sorted({path.split("/")[0] for path in paths})
            raise ValueError(f"{pattern!r} matches no parameter; paths begin with {', '.join(names)}")
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(re.match(pattern, path_of(path)) for pattern in patterns), params
    )


def optimizer(
    name: str,
    *,
    learning_rate: float | optax.Schedule,
    momentum: float = 0.9,
    nesterov: bool = False,
    b2: float = 0.999,
    weight_decay: float = 0.0,
    decay_all: bool = False,
    clip_norm: float | None = None,
    freeze: tuple[str, ...] = (),
) -> optax.GradientTransformation:
    """``sgd`` with momentum, or ``adamw`` (``momentum`` is its b1), on the parameters that ``freeze`` does not match.

    Weight decay acts on kernels only (arrays of two axes or more): biases and norm scales are left alone, unless
    ``decay_all``, as torch's optimisers have it by default. In SGD it is added to the gradient before the momentum, as
    torch does; in AdamW it is decoupled. ``clip_norm`` bounds the global norm of the trained parameters' gradient,
    before everything else. ``freeze`` holds regular expressions over paths,
    see ``matching``; frozen parameters have no optimiser state and are not decayed.
    Raises: ValueError for an unknown name or a value out of its range, and at ``init`` for a pattern that matches
    nothing.
    """
    if not callable(learning_rate):
        _check(learning_rate=(learning_rate, 0 < learning_rate < math.inf, "above 0 and finite"))
    _check(
        momentum=(momentum, 0 <= momentum < 1, "at least 0 and below 1"),
        b2=(b2, 0 <= b2 < 1, "at least 0 and below 1"),
        weight_decay=(weight_decay, 0 <= weight_decay < math.inf, "at least 0 and finite"),
        nesterov=(nesterov, not nesterov or momentum > 0, "False where momentum is 0"),
        clip_norm=(clip_norm, clip_norm is None or 0 < clip_norm < math.inf, "above 0 and finite"),
    )

    def decayed(params: Any) -> Any:
        return jax.tree.map(lambda leaf: decay_all or leaf.ndim > 1, params)

    parts = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    if name == "sgd":
        if weight_decay:
            parts.append(optax.add_decayed_weights(weight_decay, mask=decayed))
        parts.append(optax.sgd(learning_rate, momentum=momentum or None, nesterov=nesterov))
    elif name == "adamw":
        parts.append(
            optax.adamw(learning_rate, b1=momentum, b2=b2, weight_decay=weight_decay, nesterov=nesterov, mask=decayed)
        )
    else:
        raise ValueError(f"unknown optimiser {name!r}; choose sgd or adamw")
    tx = optax.chain(*parts)
    if not freeze:
        return tx

    def labels(params: Any) -> Any:
        return jax.tree.map(lambda frozen: "frozen" if frozen else "trained", matching(params, freeze))

    return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)
