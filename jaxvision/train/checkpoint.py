"""Checkpoints: the one module that knows Orbax.

A run's directory holds ``last/<step>`` (a few) and ``best/<step>`` (one). A checkpoint is the state as a flat mapping
from paths to arrays, and JSON: the position of the data, the resolved config, metrics. Orbax writes under a temporary
name and renames, so a process killed in the middle of it leaves the earlier ones as they were.
"""

import logging
import os
import pathlib
import tempfile
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvision.train.state import TrainState

__all__ = ["Checkpointer", "Restored", "load_variables"]


class Restored(NamedTuple):
    """What a checkpoint held."""

    state: TrainState
    iterator_state: Any
    config: dict[str, Any]
    step: int
    metrics: dict[str, Any]


class Checkpointer:
    """Saves and restores training states under ``directory``, the newest ``keep`` and the best.

    Raises: OSError naming the directory if it cannot be written, at construction, so not after hours of training.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2):
        self.directory = _absolute(directory)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.directory):
                pass
        except OSError as error:
            raise OSError(f"cannot write to the output folder {self.directory}: {error.strerror}") from error
        self._last = _manager(self.directory / "last", keep=keep)
        self._best = _manager(self.directory / "best", keep=1)

    def save(
        self,
        step: int,
        state: TrainState,
        iterator_state: Any,
        config: Mapping[str, Any],
        metrics: Mapping[str, Any] | None = None,
        *,
        best: bool = False,
    ) -> None:
        """Write a checkpoint and wait until it is complete; with ``best=True`` in the place of the best one.

        ``iterator_state``, ``config`` and ``metrics`` must be what JSON can hold.
        """
        import orbax.checkpoint as ocp

        manager = self._best if best else self._last
        if step in manager.all_steps():  # left over and unreadable, or the same step of a run that was resumed
            manager.delete(step)
        leaves = _with_paths(state)
        arrays = {path: np.asarray(_raw(leaf)) for path, leaf in leaves if leaf.size}
        keys = {path: str(jax.random.key_impl(leaf)) for path, leaf in leaves if _is_key(leaf)}
        meta = {"iterator": iterator_state, "config": dict(config), "metrics": dict(metrics or {}), "keys": keys}
        args = ocp.args.Composite(state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta))
        manager.save(step, args=args, force=True)

    def restore(self, like: TrainState) -> Restored | None:
        """The newest complete checkpoint in the structure of ``like`` (a state, or its ``jax.eval_shape``), or None.

        Bit for bit what was saved, dtypes included; one that cannot be read is passed over with a warning.
        Raises: ValueError listing names and shapes if the checkpoint is of another model.
        """
        found = _read_newest(self._last, self.directory / "last")
        if found is None:
            return None
        step, arrays, meta = found
        state = _unflatten(like, arrays, meta["keys"], where=f"the checkpoint {self.directory / 'last' / str(step)}")
        return Restored(state, meta["iterator"], meta["config"], step, meta["metrics"])

    def close(self) -> None:
        self._last.close()
        self._best.close()


def load_variables(directory: str | os.PathLike, *, which: str = "best") -> tuple[dict[str, Any], dict[str, Any]]:
    """The Flax variables and the config of a run, for inference: no model, optimiser or state is needed.

    directory: that of the ``Checkpointer``. which: ``best`` or ``last``. The parameters are the averaged ones if the
    run kept an average.
    Raises: FileNotFoundError if there is no such checkpoint, ValueError for another ``which``.
    """
    if which not in ("best", "last"):
        raise ValueError(f"which={which!r}; choose best or last")
    folder = _absolute(directory) / which
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkpoint in {folder}")
    manager = _manager(folder, keep=None)
    found = _read_newest(manager, folder)
    manager.close()
    if found is None:
        raise FileNotFoundError(f"no checkpoint in {folder}")
    _, arrays, meta = found
    params = "ema" if any(path.startswith("ema/") for path in arrays) else "params"
    variables: dict[str, Any] = {"params": {}}
    for path, array in arrays.items():
        root, *names = path.split("/")
        if root == params:
            names = ["params", *names]
        elif root != "model_state":
            continue
        node = variables
        for name in names[:-1]:
            node = node.setdefault(name, {})
        node[names[-1]] = jnp.asarray(array)
    return variables, meta["config"]


def _absolute(directory: str | os.PathLike) -> pathlib.Path:
    return pathlib.Path(directory).expanduser().absolute()  # Orbax refuses relative paths


def _manager(folder: pathlib.Path, *, keep: int | None):
    """``keep=None`` opens a folder for reading."""
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.ERROR)  # a line for each file otherwise
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        enable_async_checkpointing=False,
        cleanup_tmp_directories=keep is not None,
        read_only=keep is None,
    )
    return ocp.CheckpointManager(folder, options=options)


def _read_newest(manager, folder: pathlib.Path) -> tuple[int, dict[str, np.ndarray], dict[str, Any]] | None:
    import orbax.checkpoint as ocp

    steps, error = sorted(manager.all_steps(), reverse=True), None
    for step in steps:
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore())
            restored = manager.restore(step, args=args)
            return step, dict(restored.state), restored.meta
        except (OSError, KeyError, ValueError) as reason:
            error = reason
            warnings.warn(f"passing over the unreadable checkpoint {folder / str(step)}: {reason}", stacklevel=3)
    if error is not None:
        raise OSError(f"no checkpoint in {folder} can be read; remove the folder to start anew") from error
    return None


def _with_paths(state: TrainState) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _unflatten(
    like: TrainState, arrays: Mapping[str, np.ndarray], keys: Mapping[str, str], *, where: str
) -> TrainState:
    """keys: paths of the PRNG keys, to their implementations."""

    def describe(x: Any) -> str:
        return f"{x.dtype}{list(x.shape)}"

    wanted = _with_paths(like)
    shapes = {path: jax.eval_shape(_raw, leaf) for path, leaf in wanted}
    faults = [f"{path}: missing in the checkpoint" for path, x in shapes.items() if path not in arrays and x.size]
    faults += [f"{path}: in the checkpoint only" for path in arrays if path not in shapes]
    faults += [
        f"{path}: {describe(arrays[path])} in the checkpoint, {describe(x)} in the model"
        for path, x in shapes.items()
        if path in arrays and (arrays[path].shape, arrays[path].dtype) != (x.shape, x.dtype)
    ]
    if faults:
        # The layers first: the optimiser's copies of them say the same again.
        faults.sort(key=lambda fault: not fault.startswith(("params", "model_state")))
        more = f"\n  … and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise ValueError(
            f"{where} does not fit the model:\n  " + "\n  ".join(faults[:20]) + more + "\n"
            "Use the settings it was made with, or another output folder."
        )

    def leaf_of(path: str, leaf: Any) -> Any:
        if path not in arrays:
            return jnp.zeros(leaf.shape, leaf.dtype)  # of size zero: not stored
        array = jnp.asarray(arrays[path])
        return jax.random.wrap_key_data(array, impl=keys[path]) if path in keys else array

    return jax.tree.unflatten(jax.tree.structure(like), [leaf_of(path, leaf) for path, leaf in wanted])
