"""Several processes that train together: how they find each other, and what they tell each other outside the step."""

import json
from typing import Any

import jax
import numpy as np

__all__ = ["connect", "gather"]


def connect(coordinator: str | None = None, *, processes: int | None = None, process: int | None = None) -> None:
    """Join this process to the others; before anything else that needs a device.

    coordinator: ``host:port`` on which process 0 listens. What is None comes from JAX's environment variables
    (``JAX_COORDINATOR_ADDRESS`` …) or from the cluster (Slurm, TPU pods …), see ``jax.distributed.initialize``. On CPU
    the devices talk through Gloo.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, num_processes=processes, process_id=process)


def gather(value: Any) -> list[Any]:
    """What each process gave, in the order of the processes: anything that JSON can hold. All of them must call it,
    and wait for each other."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(text.size))
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: text.size] = text
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths)]
