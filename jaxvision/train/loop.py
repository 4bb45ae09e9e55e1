"""The training loop: plain Python around a step.

It resumes by itself: a run that is started again with the same directory goes on after its newest checkpoint, and ends
bit for bit where an uninterrupted one would have (same devices, same versions, deterministic kernels).
"""

import json
import signal
import textwrap
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from jaxvision.train.checkpoint import Checkpointer
from jaxvision.train.parallel import Parallel
from jaxvision.train.processes import gather
from jaxvision.train.progress import Progress
from jaxvision.train.signals import StopSignals
from jaxvision.train.state import TrainState
from jaxvision.train.writers import Writer

__all__ = ["Batches", "NonFiniteLossError", "fit"]


@runtime_checkable
class Batches(Protocol):
    """An endless iterator of dicts of arrays whose position can be saved (as JSON), for example
    ``jaxvision.data``'s with ``repeat=True``."""

    def __next__(self) -> dict[str, Any]: ...

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...


class NonFiniteLossError(FloatingPointError):
    """The loss or the gradient was NaN or infinite. ``step``: the first such step, counted from 1; ``terms``: the
    metrics that were not finite; ``image_ids``: of its batch, if the batch names them."""

    def __init__(self, step: int, terms: list[str], image_ids: list[Any] | None):
        self.step, self.terms, self.image_ids = step, terms, image_ids
        images = "" if image_ids is None else f"; images of the batch: {', '.join(map(str, image_ids))}"
        super().__init__(
            f"step {step}: {', '.join(terms)} not finite{images}. The last checkpoint is from before it; "
            "lower the learning rate, clip the gradient, or look at these images."
        )


class _Done(NamedTuple):
    """A step that was dispatched, and not yet looked at."""

    step: int
    metrics: dict[str, jax.Array]
    image_ids: Any


def fit(
    parallel: Parallel,
    state: TrainState,
    batches: Batches,
    *,
    total_steps: int,
    checkpointer: Checkpointer,
    config: Mapping[str, Any],
    checkpoint_every: int,
    log_every: int = 50,
    eval_every: int | None = None,
    evaluate: Callable[[TrainState], Mapping[str, float]] | None = None,
    check: Callable[[TrainState], Mapping[str, float]] | None = None,
    best_metric: str | None = None,
    patience: int | None = None,
    may_change: Collection[str] = (),
    writers: Sequence[Writer] = (),
) -> TrainState:
    """Train up to ``total_steps`` steps in all, those of earlier starts included; the final state, on one device.

    state: a fresh one, from ``create_state``; it is replaced by the newest intact checkpoint's if there is one.
    batches: give host batches; the loop transfers them while the devices work. The key ``image_ids`` is kept back for
    error messages and does not reach the step.
    evaluate: called every ``eval_every`` steps and at the end, always after a checkpoint was written; its values are
    logged (details, such as ``bbox/AP/cat`` with two slashes, to the writers only) and, where ``best_metric`` names one
    of them (higher is better; ``-name`` for lower), the best state is kept in the checkpointer's ``best``. A run that
    ended between a checkpoint and its evaluation does the evaluation first when it goes on.
    check: an evaluation of a batch or so, called before the first step of every start: what would fail after hours
    fails now.
    patience: stop after so many evaluations in a row without a better value.
    may_change: names in ``config`` (``output``, ``data.directory``, or ``data`` for all within) that may differ when a
    finished run is started again; any other change is refused then, as its results were made without it. An unfinished
    run goes on with other values, and says so.
    Metrics come to the host every ``log_every`` steps and before each evaluation and checkpoint: the mean over the
    steps since the last time.
    SIGTERM or SIGINT: the step is finished, a checkpoint written, and SystemExit(128 + the signal's number) raised; a
    second SIGINT does not wait for the step or the evaluation, but for a checkpoint that is being written. Of several
    processes one is enough; they agree when the metrics come to the hosts, so at most ``log_every`` steps later.
    Several processes (``processes.connect``): all call this with the same arguments, ``batches`` apart, which give each
    its own rows; writers for one of them. Each evaluates, and process 0's values count.
    Raises: NonFiniteLossError at most ``log_every`` steps late, and never after a later checkpoint; ValueError if an
    option is out of its range, ``best_metric`` is none of the values, the checkpoint is of another model or another
    number of processes, a finished run was made with other options, or ``batches`` end; OSError naming the path where
    something cannot be written.
    """
    _check_options(total_steps, checkpoint_every, log_every, eval_every, evaluate, best_metric, patience)
    run = _Run(checkpointer, batches, config, best_metric, patience)
    state, start = run.resume(state)
    progress = Progress(start=start, total=total_steps, quiet=jax.process_index() > 0)
    finished = start >= total_steps or run.out_of_patience
    if finished:
        run.refuse_changes(start, total_steps, may_change)
    due = evaluate is not None and run.is_due(start, eval_every, total_steps)
    if finished and not due:
        why = f"{best_metric} is no better since {patience} evaluations" if start < total_steps else "nothing to train"
        progress.say(f"already at step {start} of {total_steps}: {why}")
        progress.close()
        return state
    if check is not None:
        run.check_names(_as_floats(check(state)))
    meter = _Meter(progress, writers)
    try:
        for writer in writers:
            writer.start(start)
        progress.say(f"going on after step {start}" if start else f"training {total_steps} steps")
        for change in run.changes:
            progress.say(change)
        with StopSignals(progress.say) as signals:
            stop = due and run.evaluate(evaluate, state, start, meter, signals)
            if due:
                run.leave_if(signals.agreed(), start, progress)
            state = parallel.shard_state(state)
            for step in range(start + 1, start + 1 if stop else total_steps + 1):
                state = meter.run(parallel, state, batches, step)
                due = evaluate is not None and (step == total_steps or (bool(eval_every) and step % eval_every == 0))
                if step % log_every == 0:
                    meter.flush(step)
                ending = signals.agreed() if step % log_every == 0 or jax.process_count() == 1 else 0
                if due or ending or step % checkpoint_every == 0 or step == total_steps:
                    meter.flush(step)
                    plain = parallel.unshard(state)
                    with signals.held():
                        run.save(step, plain)
                    run.leave_if(signals.agreed(), step, progress)
                    if due:
                        stop = run.evaluate(evaluate, plain, step, meter, signals)
                        run.leave_if(signals.agreed(), step, progress)
                    if stop and step < total_steps:
                        progress.say(f"stopped at step {step}: {best_metric} is no better since {patience} evaluations")
                        break
    except OSError as error:
        if checkpointer.newest() not in str(error):
            error.add_note(checkpointer.newest())
        raise
    finally:
        progress.close()
        for writer in writers:
            writer.close()
    return parallel.unshard(state)


def _check_options(
    total_steps: int,
    checkpoint_every: int,
    log_every: int,
    eval_every: int | None,
    evaluate: Callable | None,
    best_metric: str | None,
    patience: int | None,
) -> None:
    counts = {"total_steps": total_steps, "checkpoint_every": checkpoint_every, "log_every": log_every}
    optional = {"eval_every": eval_every, "patience": patience}
    for name, value in (counts | {name: value for name, value in optional.items() if value is not None}).items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be a whole number of at least 1")
    if best_metric is not None and (evaluate is None or eval_every is None):
        raise ValueError(f"best_metric={best_metric!r} needs evaluate and eval_every")
    if patience is not None and best_metric is None:
        raise ValueError(f"patience={patience} needs best_metric")


def _as_floats(values: Mapping[str, Any]) -> dict[str, float]:
    for name, value in values.items():
        if np.ndim(value) or not isinstance(value, (int, float, np.generic, np.ndarray, jax.Array)):
            raise TypeError(f"evaluate gave {name}={str(value)[:80]!r}, which is not a number")
    return {name: float(value) for name, value in values.items()}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"optimizer": {"name": "sgd"}}`` as ``{"optimizer.name": "sgd"}``."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return flat


class _Run:
    """Checkpoints of one run, and its best value so far."""

    def __init__(
        self,
        checkpointer: Checkpointer,
        batches: Batches,
        config: Mapping[str, Any],
        best_metric: str | None,
        patience: int | None,
    ):
        self._checkpointer, self._batches = checkpointer, batches
        # What JSON makes of it, to compare with a checkpoint's; and a value it cannot hold fails now, not at the save.
        self._config = json.loads(json.dumps(dict(config)))
        self._metric, self._patience = best_metric, patience
        self.changes: list[str] = []  # of the config since the checkpoint
        self._differences: list[str] = []
        self._best: float | None = None
        self._stale = 0  # evaluations since the best one
        self._evaluated = False  # whether the checkpoint that was restored had been

    @property
    def out_of_patience(self) -> bool:
        return self._patience is not None and self._stale >= self._patience

    def resume(self, state: TrainState) -> tuple[TrainState, int]:
        restored = self._checkpointer.restore(state)
        if restored is None:
            return state, 0
        positions, metrics = restored.iterator_state, restored.metrics
        if not isinstance(positions, list) or not {"best", "stale"} <= metrics.keys():
            raise ValueError(
                f"the checkpoint of step {restored.step} in {self._checkpointer.directory} is not one of a training: "
                "it holds no position in the data. Train into another output folder."
            )
        if len(positions) != jax.process_count():
            raise ValueError(
                f"the checkpoint of step {restored.step} was written by {len(positions)} processes, each "
                f"with its share of the data, and now there are {jax.process_count()}; start as many as before"
            )
        self._batches.set_state(positions[jax.process_index()])
        before, now = _flat(restored.config), _flat(self._config)
        self._differences = [
            f"{name} was {before.get(name)}, is {now.get(name)} now"
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        ]
        self.changes = [f"note: {difference}" for difference in self._differences]
        record = self._checkpointer.read_evaluation(restored.step)
        # Earlier versions evaluated before they saved.
        self._evaluated = record is not None or "metric" not in metrics
        metrics = record or metrics
        if metrics.get("metric", self._metric) == self._metric:
            self._best, self._stale = metrics["best"], metrics["stale"]
        return restored.state, restored.step

    def refuse_changes(self, step: int, total_steps: int, may_change: Collection[str]) -> None:
        """Of a finished run: what it was made with must not be overwritten by what it was not made with."""

        def free(difference: str) -> bool:
            name = difference.split(" was ", 1)[0]
            return any(name == allowed or name.startswith(f"{allowed}.") for allowed in may_change)

        if faults := [difference for difference in self._differences if not free(difference)]:
            raise ValueError(
                f"the run in {self._checkpointer.directory} has ended, at step {step}, and other options cannot change "
                "it any more:\n  " + "\n  ".join(faults) + "\n"
                f"Nothing was overwritten. Use the options it was made with, more steps than {max(step, total_steps)}, "
                "or another output folder."
            )

    def is_due(self, step: int, eval_every: int | None, total_steps: int) -> bool:
        """Whether the checkpoint that was restored should have been evaluated, and was not."""
        last = step >= total_steps
        return step > 0 and not self._evaluated and (last or (bool(eval_every) and step % eval_every == 0))

    def save(self, step: int, state: TrainState, *, best: bool = False) -> None:
        positions = gather(self._batches.get_state())
        self._checkpointer.save(step, state, positions, self._config, self._counters(), best=best)

    def check_names(self, values: Mapping[str, float]) -> None:
        if self._metric is not None and self._metric.removeprefix("-") not in values:
            names = ", ".join(sorted(name for name in values if name.count("/") < 2))
            raise ValueError(
                f"best_metric={self._metric!r} is none of the figures of an evaluation:\n"
                + textwrap.fill(names, 80, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
            )

    def evaluate(self, evaluate: Callable, state: TrainState, step: int, meter: "_Meter", signals: StopSignals) -> bool:
        """Evaluate, log, keep the best; whether patience has run out."""
        began = time.perf_counter()
        # Those of process 0, lest rounding make two processes keep different states as the best.
        values = gather(_as_floats(evaluate(state)))[0]
        self.check_names(values)
        with signals.held():
            meter.record_evaluation(step, values, time.perf_counter() - began)
            if self._metric is not None:
                value = values[self._metric.removeprefix("-")] * (-1 if self._metric.startswith("-") else 1)
                if np.isfinite(value) and (self._best is None or value > self._best):
                    self._best, self._stale = value, 0
                    self.save(step, state, best=True)
                else:
                    self._stale += 1
            self._checkpointer.write_evaluation(step, self._counters())
        return self.out_of_patience

    def leave_if(self, number: int, step: int, progress: Progress) -> None:
        """Where a signal has asked for it, say so and exit; a checkpoint of this step has been written."""
        if number:
            progress.say(
                f"stopped by {signal.Signals(number).name} after step {step}; the checkpoint is in "
                f"{self._checkpointer.directory}. Run the same command again to go on."
            )
            raise SystemExit(128 + number)

    def _counters(self) -> dict[str, Any]:
        return {"best": self._best, "stale": self._stale, "metric": self._metric}


class _Meter:
    """Runs steps and keeps their metrics on the devices until someone looks."""

    def __init__(self, progress: Progress, writers: Sequence[Writer]):
        self._progress, self._writers = progress, writers
        self._pending: list[_Done] = []
        self._shapes: set[str] = set()
        self._reset()

    def _reset(self) -> None:
        self._began, self._data_seconds, self._images = time.perf_counter(), 0.0, 0

    def run(self, parallel: Parallel, state: TrainState, batches: Batches, step: int) -> TrainState:
        """One step: fetch a batch, send it, dispatch."""
        before = time.perf_counter()
        try:
            batch = dict(next(batches))
        except StopIteration:
            raise ValueError(f"the batches ended before step {step}; they must repeat without end") from None
        image_ids = batch.pop("image_ids", None)
        self._data_seconds += time.perf_counter() - before

        shapes = str(jax.tree.map(np.shape, batch))
        before = time.perf_counter()
        state, metrics = parallel.step(state, parallel.shard_batch(batch))
        if shapes not in self._shapes:
            self._shapes.add(shapes)
            jax.block_until_ready(metrics)
            self._not_counted(time.perf_counter() - before)
            sizes = ", ".join(str(np.shape(leaf)) for leaf in jax.tree.leaves(batch))
            self._progress.say(f"compiled in {time.perf_counter() - before:.1f} s for a batch of {sizes}")
        else:
            self._images += np.shape(jax.tree.leaves(batch)[0])[0] * jax.process_count()
        self._pending.append(_Done(step, metrics, image_ids))
        if len(self._pending) > 2:
            # Let the devices have one step in hand, not log_every: waiting batches hold memory.
            jax.block_until_ready(self._pending[-3].metrics)
        self._progress.advance()
        return state

    def flush(self, step: int) -> None:
        """Look at the pending metrics: raise if one is not finite, log the mean otherwise."""
        if not self._pending:
            return
        fetched = jax.device_get([done.metrics for done in self._pending])
        for done, metrics in zip(self._pending, fetched):
            if not metrics["finite"]:
                raise _non_finite(done, metrics)
        values = {name: float(np.mean([m[name] for m in fetched])) for name in fetched[0] if name != "finite"}
        elapsed = time.perf_counter() - self._began
        if self._images:
            values["images_per_second"] = self._images / elapsed
        values["data_seconds"] = self._data_seconds / len(self._pending)
        self._progress.report(step, values)
        self._write(step, values)
        self._pending.clear()
        self._reset()

    def record_evaluation(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if name.count("/") < 2)
        self._progress.say(f"evaluation at step {step} ({seconds:.1f} s): {text}")
        self._write(step, values)
        self._not_counted(seconds)

    def _not_counted(self, seconds: float) -> None:
        self._began += seconds
        self._progress.not_counted(seconds)

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.scalars(step, values)


def _non_finite(done: _Done, metrics: Mapping[str, np.ndarray]) -> NonFiniteLossError:
    terms = [name for name, value in metrics.items() if not np.all(np.isfinite(value))]
    # The terms that a loss is made of say more than their sum and the norms that follow from it.
    derived = {"loss", "gradient_norm", "update_norm", "parameter_norm"}
    terms = [name for name in terms if name not in derived] or terms
    image_ids = None if done.image_ids is None else np.asarray(done.image_ids).tolist()
    return NonFiniteLossError(done.step, terms, image_ids)
