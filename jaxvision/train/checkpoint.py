"""Checkpoints: the one module that knows Orbax.

A run's directory holds ``last/<step>`` (a few), ``best/<step>`` (one) and ``evaluation.json`` (the newest). A
checkpoint is the state as a flat mapping from paths to arrays, and JSON: the position of the data, the resolved config,
metrics. Each is written under a temporary name, gets the checksums of its files, and is renamed, so a process killed in
the middle of it leaves the earlier ones as they were; the checksums are verified before anything is read.
"""

import functools
import json
import logging
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvision.train.integrity import add_checksums, damage, free_space, out_of_space, read_checked, write_checked
from jaxvision.train.processes import gather
from jaxvision.train.state import TrainState

__all__ = ["Checkpointer", "Restored", "load_variables"]

log = logging.getLogger(__name__)


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
        if keep < 1:
            raise ValueError(f"keep={keep} must be at least 1")
        self.directory = _absolute(directory)
        self._keep, self._saved = keep, {}  # sums that name the checkpoints of ``last``
        try:
            for name in ("last", "best"):
                (self.directory / name).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.directory):
                pass
        except OSError as error:
            raise OSError(f"cannot write to the output folder {self.directory}: {error.strerror}") from error
        self._orbax, self._tidy = _orbax(), False

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
        Raises: OSError naming the folder and the newest checkpoint that it has if it cannot be written; if the disk is
        full, with the space that is wanted and free. What was there stays.
        """
        folder = self.directory / ("best" if best else "last")
        leaves = _with_paths(state)
        arrays = {path: np.asarray(_raw(leaf)) for path, leaf in leaves if leaf.size}
        keys = {path: str(jax.random.key_impl(leaf)) for path, leaf in leaves if _is_key(leaf)}
        meta = {"iterator": iterator_state, "config": dict(config), "metrics": dict(metrics or {}), "keys": keys}
        meta = json.loads(json.dumps({**meta, "step": step, "checksums": True}))
        fault = None
        try:
            self._tidy_up()
            self._write(folder / f"{step}.writing", arrays, meta)
            if jax.process_index() == 0:
                name = add_checksums(folder / f"{step}.writing")
                self._replace(folder, step)
                if not best:
                    self._saved = {step: name}
        except (OSError, ValueError, RuntimeError) as error:
            fault = error
        if text := next(filter(None, gather(fault and self._why_not(fault, folder, step, arrays))), None):
            raise OSError(text) from None

    def restore(self, like: TrainState) -> Restored | None:
        """The newest intact checkpoint in the structure of ``like`` (a state, or its ``jax.eval_shape``), or None.

        Bit for bit what was saved, dtypes included; one that is damaged is passed over with a warning and set aside, as
        ``<step>.damaged``.
        Raises: ValueError listing names and shapes if the checkpoint is of another model, OSError naming all of them if
        none is intact.
        """
        folder = self.directory / "last"
        found = _read_newest(folder)
        if found is None:
            return None
        step, arrays, meta = found
        state = _unflatten(like, arrays, meta["keys"], where=f"the checkpoint {folder / str(step)}")
        if jax.process_index() == 0:
            for newer in _steps(folder):
                if newer > step:
                    (folder / str(newer)).rename(_free_name(folder / f"{newer}.damaged"))
            if meta.get("checksums"):
                self._saved = {step: read_checked(folder / str(step) / "checksums.json")[1]}
        return Restored(state, meta["iterator"], meta["config"], step, meta["metrics"])

    def write_evaluation(self, step: int, values: Mapping[str, Any]) -> None:
        """Note that the checkpoint of a step in ``last`` was evaluated, with what must not be forgotten of it."""
        if jax.process_index() == 0:
            path = self.directory / "evaluation.json"
            try:
                write_checked(path, {"step": step, "checkpoint": self._saved.get(step), **values})
            except OSError as error:
                free = f" ({free_space(path.parent)} free)" if out_of_space(error) else ""
                raise OSError(f"cannot write {path}: {error.strerror}{free}") from error

    def read_evaluation(self, step: int) -> dict[str, Any] | None:
        """What was noted about this very checkpoint of a step, or None."""
        found = None
        if jax.process_index() == 0:
            try:
                found, _ = read_checked(self.directory / "evaluation.json")
            except (OSError, ValueError):
                found = None  # the evaluation can be done again
            if found and (found.pop("step"), found.pop("checkpoint")) != (step, self._saved.get(step, -1)):
                found = None
        return gather(found)[0]

    def newest(self) -> str:
        """In words, for an error: what a run has to go on from."""
        found = _steps(self.directory / "last")[:1]
        good = f"is {self.directory / 'last' / str(found[0])}" if found else "is none yet"
        return f"The last good checkpoint {good}; run the same command again to go on."

    def close(self) -> None:
        self._orbax.close()

    def _tidy_up(self) -> None:
        """Once, remove what a killed process was writing or deleting."""
        if not self._tidy and jax.process_index() == 0:
            for pattern in ("*.writing*", "*.deleting*", "*.orbax-checkpoint-tmp*"):
                for path in self.directory.glob(f"*/{pattern}"):
                    shutil.rmtree(path, ignore_errors=True)
        self._tidy = True

    def _write(self, path: pathlib.Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        import orbax.checkpoint as ocp

        args = ocp.args.Composite(state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta))
        self._orbax.save(path, args=args, force=True)

    def _replace(self, folder: pathlib.Path, step: int) -> None:
        """Give a complete checkpoint its name, and delete those that are not kept any more; under another name first,
        so that nothing half deleted is taken for a checkpoint."""
        others = [other for other in _steps(folder) if other != step]
        gone = others if folder.name == "best" else others[self._keep - 1 :]
        final = folder / str(step)
        if final.exists():  # of this step before it was resumed
            final.rename(_free_name(folder / f"{step}.deleting"))
        (folder / f"{step}.writing").rename(final)
        for other in gone:
            (folder / str(other)).rename(_free_name(folder / f"{other}.deleting"))
        for path in folder.glob("*.deleting*"):
            shutil.rmtree(path, ignore_errors=True)

    def _why_not(self, error: BaseException, folder: pathlib.Path, step: int, arrays: Mapping[str, np.ndarray]) -> str:
        for path in folder.glob(f"{step}.writing*"):
            shutil.rmtree(path, ignore_errors=True)
        if out_of_space(error):
            wanted = sum(array.nbytes for array in arrays.values()) / 1e6
            why = f"no space left; up to {wanted:,.1f} MB wanted, {free_space(folder)} free"
        else:
            why = (getattr(error, "strerror", None) or str(error)).splitlines()[0][:300]
        return f"cannot write the checkpoint {folder / str(step)}: {why}. {self.newest()}"


def load_variables(directory: str | os.PathLike, *, which: str = "best") -> tuple[dict[str, Any], dict[str, Any]]:
    """The Flax variables and the config of a run, for inference: no model, optimiser or state is needed.

    directory: that of the ``Checkpointer``. which: ``best`` or ``last``, of which the newest that is intact. The
    parameters are the averaged ones if the run kept an average.
    Raises: FileNotFoundError if there is no such checkpoint, OSError if none is intact, ValueError for another
    ``which``.
    """
    if which not in ("best", "last"):
        raise ValueError(f"which={which!r}; choose best or last")
    folder = _absolute(directory) / which
    found = _read_newest(folder) if folder.is_dir() else None
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


def _steps(folder: pathlib.Path) -> list[int]:
    """Of the complete checkpoints of a folder, newest first."""
    return sorted((int(path.name) for path in folder.iterdir() if path.name.isdecimal()), reverse=True)


def _free_name(path: pathlib.Path) -> pathlib.Path:
    names = (path.with_name(f"{path.name}{suffix}") for suffix in ("", *(f"-{i}" for i in range(2, 1000))))
    return next(name for name in names if not name.exists())


def _orbax() -> Any:
    import orbax.checkpoint as ocp

    _silence()
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler())


@functools.cache
def _silence() -> None:
    """Of an error that Orbax raises nothing else is heard: it logs each with its traceback (and a line for each file),
    and after it TensorStore's threads call the event loop that Orbax has closed."""
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    logging.getLogger("asyncio").addFilter(lambda record: "OCDBT" not in str(record.exc_info))
    before = sys.unraisablehook

    def hear(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hear


def _read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    import orbax.checkpoint as ocp

    try:
        found = damage(path)
    except FileNotFoundError:
        meta = json.loads((path / "meta" / "metadata").read_bytes())
        found = "checksums.json is missing" if "checksums" in meta else None
        if found is None:
            log.warning("%s was written before checkpoints had checksums: read as it is", path)
    if found is not None:
        raise ValueError(found)
    with _orbax() as checkpointer:
        args = ocp.args.Composite(state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore())
        restored = checkpointer.restore(path, args=args)
    meta = restored.meta
    if meta.get("step", int(path.name)) != int(path.name):
        raise ValueError(f"it is the checkpoint of step {meta['step']}")
    if missing := [name for name in ("iterator", "config", "metrics", "keys") if name not in meta]:
        raise ValueError(f"meta/metadata has no {', '.join(missing)}")
    return dict(restored.state), meta


def _read_newest(folder: pathlib.Path) -> tuple[int, dict[str, np.ndarray], dict[str, Any]] | None:
    """(step, arrays, meta) of the newest checkpoint that all processes can read."""
    faults = []
    for step in _steps(folder):
        found, fault = None, None
        try:
            found = _read(folder / str(step))
        except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            fault = (str(error) or type(error).__name__).splitlines()[0][:200]
        fault = next(filter(None, gather(fault)), None)
        if fault is None:
            if faults:
                log.warning("damaged: %s; going back to %s", "; ".join(faults), folder / str(step))
            return step, *found
        faults.append(f"{folder / str(step)} ({fault})")
    if not faults:
        return None
    other = "last" if folder.name == "best" else "best"
    raise OSError(
        f"no checkpoint in {folder} is intact: {'; '.join(faults)}. Nothing was changed; put a copy of one back, "
        f"look into {folder.parent / other}, or train into another folder."
    )


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
