"""The training loop: plain Python around a step.

It resumes by itself: a run that is started again with the same directory goes on after its newest checkpoint, and ends
bit for bit where an uninterrupted one would have (same devices, same versions, deterministic kernels).
"""

import json
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from jaxvision.train.checkpoint import Checkpointer
from jaxvision.train.parallel import Parallel
from jaxvision.train.processes import gather
from jaxvision.train.progress import Progress
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
    best_metric: str | None = None,
    patience: int | None = None,
    writers: Sequence[Writer] = (),
) -> TrainState:
    """Train up to ``total_steps`` steps in all, those of earlier starts included; the final state, on one device.

    state: a fresh one, from ``create_state``; it is replaced by the newest checkpoint's if there is one.
    batches: give host batches; the loop transfers them while the devices work. The key ``image_ids`` is kept back for
    error messages and does not reach the step.
    evaluate: called every ``eval_every`` steps and at the end; its values are logged (details, such as ``bbox/AP/cat``
    with two slashes, to the writers only) and, where ``best_metric`` names one of them (higher is better; ``-name`` for
    lower), the best state is kept in the checkpointer's ``best``.
    patience: stop after so many evaluations in a row without a better value.
    Metrics come to the host every ``log_every`` steps and before each evaluation and checkpoint: the mean over the
    steps since the last time.
    SIGTERM or SIGINT: the step is finished, a checkpoint written, and SystemExit(0) raised. Of several processes one
    is enough; they agree when the metrics come to the hosts, so at most ``log_every`` steps later.
    Several processes (``processes.connect``): all call this with the same arguments, ``batches`` apart, which give each
    its own rows; writers for one of them. Each evaluates, and process 0's values count.
    Raises: NonFiniteLossError at most ``log_every`` steps late, and never after a later checkpoint; ValueError if the
    checkpoint is of another model or another number of processes, or ``batches`` end.
    """
    if best_metric is not None and (evaluate is None or eval_every is None):
        raise ValueError(f"best_metric={best_metric!r} needs evaluate and eval_every")
    run = _Run(checkpointer, batches, config, best_metric, patience)
    state, start = run.resume(state)
    progress = Progress(start=start, total=total_steps, quiet=jax.process_index() > 0)
    if start >= total_steps:
        progress.say(f"already at step {start} of {total_steps}: nothing to train")
        progress.close()
        return state
    for writer in writers:
        writer.start(start)
    progress.say(f"going on after step {start}" if start else f"training {total_steps} steps")
    for change in run.changes:
        progress.say(change)
    meter = _Meter(progress, writers)
    state = parallel.shard_state(state)
    try:
        with _signals() as received:
            ending = 0
            for step in range(start + 1, total_steps + 1):
                state = meter.run(parallel, state, batches, step)
                last, stop = step == total_steps, False
                if step % log_every == 0:
                    meter.flush(step)
                if evaluate is not None and (last or (eval_every and step % eval_every == 0)):
                    meter.flush(step)
                    stop = run.evaluate(evaluate, parallel.unshard(state), step, meter)
                if step % log_every == 0 or jax.process_count() == 1:
                    ending = max(gather(received[0] if received else 0))
                if step % checkpoint_every == 0 or last or stop or ending:
                    meter.flush(step)
                    run.save(step, parallel.unshard(state))
                if stop and not last:
                    progress.say(f"stopped at step {step}: {best_metric} is no better since {patience} evaluations")
                    break
                if ending and not last:
                    name = signal.Signals(ending).name
                    progress.say(
                        f"stopped by {name} after step {step}; the checkpoint is in {checkpointer.directory}. "
                        "Run the same command again to go on."
                    )
                    raise SystemExit(0)
    finally:
        progress.close()
        for writer in writers:
            writer.close()
    return parallel.unshard(state)


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
        self._best: float | None = None
        self._stale = 0  # evaluations since the best one

    def resume(self, state: TrainState) -> tuple[TrainState, int]:
        restored = self._checkpointer.restore(state)
        if restored is None:
            return state, 0
        if len(restored.iterator_state) != jax.process_count():
            raise ValueError(
                f"the checkpoint of step {restored.step} was written by {len(restored.iterator_state)} processes, each "
                f"with its share of the data, and now there are {jax.process_count()}; start as many as before"
            )
        self._batches.set_state(restored.iterator_state[jax.process_index()])
        self._best, self._stale = restored.metrics["best"], restored.metrics["stale"]
        for name in sorted({*restored.config, *self._config}):
            before, now = restored.config.get(name), self._config.get(name)
            if before != now:
                self.changes.append(f"note: {name} was {before} when the checkpoint was written, is {now} now")
        return restored.state, restored.step

    def save(self, step: int, state: TrainState, *, best: bool = False) -> None:
        metrics = {"best": self._best, "stale": self._stale}
        positions = gather(self._batches.get_state())
        self._checkpointer.save(step, state, positions, self._config, metrics, best=best)

    def evaluate(self, evaluate: Callable, state: TrainState, step: int, meter: "_Meter") -> bool:
        """Evaluate, log, keep the best; whether patience has run out."""
        began = time.perf_counter()
        # Those of process 0, lest rounding make two processes keep different states as the best.
        values = gather({name: float(value) for name, value in evaluate(state).items()})[0]
        meter.record_evaluation(step, values, time.perf_counter() - began)
        if self._metric is None:
            return False
        name = self._metric.removeprefix("-")
        if name not in values:
            raise ValueError(f"best_metric={self._metric!r} is not among {', '.join(sorted(values))}")
        value = -values[name] if self._metric.startswith("-") else values[name]
        if np.isfinite(value) and (self._best is None or value > self._best):
            self._best, self._stale = value, 0
            self.save(step, state, best=True)
        else:
            self._stale += 1
        return self._patience is not None and self._stale >= self._patience


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


@contextmanager
def _signals():
    """The list of stop signals received; a second SIGINT interrupts at once. Only the main thread can have handlers."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def receive(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
