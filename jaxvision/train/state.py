"""The state of a training run as one pytree."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxvision.typing import Array, Int, Key, Variables

__all__ = ["TrainState", "create_state", "state_variables"]


class TrainState(NamedTuple):
    """Everything a step reads and writes; under ``vmap`` and ``pmap`` every leaf has one more leading axis."""

    step: Int[Array, "*d"]  # steps done
    params: Any
    model_state: Any  # the other Flax collections (``batch_stats`` …), {} if there are none
    opt_state: Any
    ema: Any  # moving average of params, or None
    key: Key[Array, "*d"]  # never changes: a step folds its own number into it


def create_state(
    key: Key[Array, ""], variables: Variables, tx: optax.GradientTransformation, *, ema: bool = False
) -> TrainState:
    """The state before the first step, from the variables that ``model.init`` or a weight file gave."""
    model_state = {name: collection for name, collection in variables.items() if name != "params"}
    params = variables["params"]
    # A copy: two leaves that share a buffer cannot both be donated.
    average = jax.tree.map(jnp.copy, params) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, model_state, tx.init(params), average, key)


def state_variables(state: TrainState) -> dict[str, Any]:
    """What ``model.apply`` takes for evaluation: the averaged parameters where the run keeps them, else the last."""
    params = state.params if state.ema is None else state.ema
    return {"params": params, **state.model_state}
