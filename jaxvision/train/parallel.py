"""One step on many devices: ``jit`` over a mesh, or ``pmap``.

In both, the batch is the global one and is split over the devices, and the state is the same on all of them. ``jit``
sees the whole batch, so batch norm and losses do too; under ``pmap`` each device sees its share, so the gradient
function must average (``mean_over(grad_fn, "data")``) and batch norm needs ``axis_name="data"`` to see the whole.

Several processes: call ``processes.connect`` first, run the same script in each, and let each read its own share of the
data: ``shard_batch`` then takes the process's rows and joins them (``make_array_from_process_local_data``).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvision.train.state import TrainState
from jaxvision.train.step import Step

__all__ = ["AXIS", "Parallel", "parallelize", "per_device"]

AXIS = "data"


class Parallel(NamedTuple):
    """A step and the ways into and out of it. The step donates its state: do not use that one again."""

    step: Step
    shard_state: Callable[[TrainState], TrainState]  # copies a plain state to the devices
    shard_batch: Callable[[Any], Any]  # splits this process's batch over its devices
    unshard: Callable[[TrainState], TrainState]  # copies the state to one device


def parallelize(step: Step, *, mode: str = "jit", devices: Sequence[jax.Device] | None = None) -> Parallel:
    """Compile a step for all devices (or those given): ``mode`` is ``jit`` (over a mesh) or ``pmap``.

    Raises: ValueError for another mode or no devices and, from ``shard_batch``, if the batch cannot be split over the
    devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    if not devices:
        raise ValueError("devices is empty; name at least one, or None for all")
    if mode == "jit":
        return _by_jit(step, devices)
    if mode == "pmap":
        return _by_pmap(step, devices)
    raise ValueError(f"unknown mode {mode!r}; choose jit or pmap")


def _by_jit(step: Step, devices: list[jax.Device]) -> Parallel:
    mesh = Mesh(np.array(devices), (AXIS,))
    same, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
    local = len(mesh.local_devices)

    def shard_leaf(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == split:
            return leaf
        leaf = np.asarray(leaf)
        _check_divides(leaf, local)
        return jax.make_array_from_process_local_data(split, leaf)

    return Parallel(
        step=jax.jit(step, in_shardings=(same, split), out_shardings=(same, same), donate_argnums=0),
        shard_state=lambda state: jax.tree.map(lambda leaf: _replicated(leaf, same), state),
        shard_batch=lambda batch: jax.tree.map(shard_leaf, batch),
        unshard=lambda state: jax.tree.map(lambda leaf: jnp.copy(leaf.addressable_data(0)), state),
    )


def _by_pmap(step: Step, devices: list[jax.Device]) -> Parallel:
    local = [device for device in devices if device.process_index == jax.process_index()]
    split = NamedSharding(Mesh(np.array(local), (AXIS,)), PartitionSpec(AXIS))

    def shard_leaf(leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        _check_divides(leaf, len(local))
        return np.reshape(leaf, (len(local), leaf.shape[0] // len(local), *leaf.shape[1:]))

    def replicate(state: TrainState) -> TrainState:
        stacked = jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)] * len(local)), state)
        return jax.device_put(stacked, split)

    return Parallel(
        step=jax.pmap(step, axis_name=AXIS, devices=devices, donate_argnums=0, out_axes=(0, None)),
        shard_state=replicate,
        shard_batch=lambda batch: jax.tree.map(shard_leaf, batch),
        unshard=lambda state: jax.tree.map(lambda leaf: leaf.addressable_data(0)[0], state),
    )


def per_device(
    function: Callable[[Any, Any], Any], devices: Sequence[jax.Device]
) -> tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]:
    """``function(variables, batch)`` on each of these devices of this process with its own rows of the batch, side by
    side and without a word between them: what a device computes does not depend on how many there are.

    Returns (place, call): ``place(variables)`` copies these to the devices, once for many calls of
    ``call(variables, batch)``, compiled once a shape. Every array of the batch and of the result has rows first, and
    the devices' rows stand one after the other.
    """
    mesh = Mesh(np.array(devices), (AXIS,))
    same, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
    call = jax.jit(
        jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
            out_specs=PartitionSpec(AXIS),
            check_vma=False,  # loops inside start from constants, which count as the same on all devices
        )
    )
    return (
        lambda variables: jax.device_put(variables, same),
        lambda variables, batch: call(variables, jax.device_put(batch, split)),
    )


def _replicated(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """A copy on every device, also where other processes own some of them. Without a copy the caller's array would be
    donated to the first step."""
    if sharding.is_fully_addressable:
        return jax.device_put(jnp.copy(leaf), sharding)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _replicated(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return jax.make_array_from_process_local_data(sharding, np.array(leaf))


def _check_divides(leaf: np.ndarray, devices: int) -> None:
    if leaf.ndim == 0 or leaf.shape[0] % devices:
        raise ValueError(
            f"a batch leaf of shape {leaf.shape} cannot be split over {devices} devices: "
            "make the batch size a multiple of their number, or give fewer devices"
        )
