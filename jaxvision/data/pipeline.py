"""From a source to batches of static shape: shuffled, sharded, read in threads or processes, resumable (Grain).

Every random choice depends on the seed and the position in the stream alone, so the stream is the same however many
threads and processes read it, and ``set_state`` continues it exactly. Which images make a batch is known without
reading any (``batching.Plan``), so several shapes, and several processes that must agree, need no more than that.
"""

import collections
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex

import grain
import jax
import numpy as np
from absl import flags

from jaxvision.data.batching import Plan
from jaxvision.data.rows import Rows
from jaxvision.data.source import Example, Source, size_of

__all__ = ["Batches", "batches"]

Batch = dict[str, Any]
Transform = Callable[[Any, Example], Example]  # (key, example) -> example

logger = logging.getLogger("jaxvision")


def batches(
    source: Source,
    rows: Rows,
    *,
    batch_size: int,
    shapes: Sequence[tuple[int, int]],
    seed: int = 0,
    shuffle: bool = False,
    repeat: bool = False,
    transforms: Sequence[Transform] = (),
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 2,
    worker_processes: int = 0,
) -> "Batches":
    """Batches of what ``rows`` makes of each example (``DetectionRows``, ``ClassificationRows``), all of one of
    ``shapes`` = (height, width): that of the nearest aspect for each image.

    ``batch_size`` counts this process's rows: each process reads its own, and all of them, in the order of the
    processes, are the batch of one process that reads everything. A batch is handed out where the stream completes it.

    With ``repeat`` the stream is endless, each epoch shuffled anew, and an unreadable example (None) is replaced by the
    next one of its shape. Without, it is a row with ``valid=False``, like the rest of the last batch of each shape, so
    every example comes once and every process sees the same number of batches.
    transforms: functions of (key, example), in order; the key is a tuple of ints. workers: reading threads, 0 for none,
    in each of the ``worker_processes`` or, without any, in this one. Worker processes get a copy of the source, and of
    everything else given here.
    Raises: ValueError, with ``repeat``, where no example can be read.
    """
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} must lie in 0 ... process_count - 1 = {process_count - 1}")
    if batch_size < 1 or not shapes:
        raise ValueError(f"batch_size={batch_size} must be at least 1, and shapes={shapes} name one")
    dropped = Tally()
    order = grain.MapDataset.range(len(source)).seed(seed)
    records = grain.MapDataset.source(source).seed(seed)  # the same order: it follows from the seed alone
    if shuffle:
        order, records = order.shuffle(), records.shuffle()
    records = records.random_map(Transformed(rows, transforms))  # its generator follows the position in the stream
    if repeat:
        order, records = order.repeat(), records.repeat()
    plan = Plan(source, order, shapes=tuple(shapes), batch_size=batch_size * process_count, repeat=repeat)
    share = Share(records, rows, plan, size=batch_size, first=process_index * batch_size, dropped=dropped)
    threads = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=2 * workers)  # each makes whole batches
    ready = grain.MapDataset.source(share).to_iter_dataset(threads)
    if worker_processes:
        if not flags.FLAGS.is_parsed():  # Grain looks at flags of its own, also where nobody uses absl's
            flags.FLAGS.mark_as_parsed()
        ready = ready.mp_prefetch(grain.MultiprocessingOptions(num_workers=worker_processes))
    return Batches(iter(ready), dropped=dropped)


class Batches:
    """An iterator of batches whose position can be saved: ``get_state`` names the batch that comes next.

    Without ``repeat`` it ends after one pass; for another, ``set_state`` to the state it had at the start.
    ``dropped`` counts the objects left out of the targets, by reason, as far as this process has read them.
    ``close`` ends the threads and processes that read; without it they end with the program.
    """

    def __init__(self, ready: grain.DatasetIterator, *, dropped: "Tally"):
        self._ready = [ready]
        self._dropped = dropped
        # Also at the end of the program: Grain's own clean-up comes when the interpreter has begun to fall apart.
        self.close = weakref.finalize(self, _close, self._ready)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        return next(self._ready[0])

    @property
    def dropped(self) -> dict[str, int]:
        return dict(self._dropped.counts)

    def get_state(self) -> dict[str, Any]:
        """The position as a small dict of JSON types."""
        return self._ready[0].get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._ready[0].set_state(state)


def _close(ready: list[grain.DatasetIterator]) -> None:
    ready.pop().close()


class Tally:
    """Counts what is left out, and logs the first case of each reason."""

    def __init__(self):
        self.counts: collections.Counter = collections.Counter()
        self._lock = threading.Lock()

    def __reduce__(self):  # a lock cannot go to another process, which counts for itself
        return (Tally, ())

    def add(self, reason: str, count: int, image_id: Any) -> None:
        if count == 0:
            return
        with self._lock:
            first = reason not in self.counts
            self.counts[reason] += count
        if first:
            logger.warning("%d boxes of image %s left out: %s (further ones are only counted)", count, image_id, reason)


class Transformed:
    """The transforms one after the other, each with its own key from the generator of the position in the stream."""

    def __init__(self, rows: Rows, transforms: Sequence[Transform]):
        self.rows, self.transforms = rows, tuple(transforms)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        keys = rng.integers(2**32, size=(len(self.transforms), 4)).tolist()
        example = self.rows.prepare({**example, "size": size_of(example)})
        for key, transform in zip(keys, self.transforms):
            example = transform(tuple(key), example)
        return example


class Share:
    """The batches of one process, by number: of each of the plan's ``size`` rows from ``first`` on."""

    def __init__(self, records: grain.MapDataset, rows: Rows, plan: Plan, *, size: int, first: int, dropped: Tally):
        self.records, self.rows, self.plan, self.dropped = records, rows, plan, dropped
        self.size, self.first = size, first

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: SupportsIndex) -> Batch:
        rows = [self._row(int(index), self.first + row) for row in range(self.size)]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

    def _row(self, batch: int, row: int) -> Batch:
        shape, place = self.plan.place(batch, row)
        example = self.records[place] if place >= 0 else None
        if example is None and self.plan.repeat:
            example = self._another(shape, place)
        return self.rows.empty(shape) if example is None else self.rows.row(example, shape, self.dropped)

    def _another(self, shape: tuple[int, int], place: int) -> Example:
        """The next example of that shape which can be read."""
        tried = 1
        for other in self.plan.after(shape, place):
            example = self.records[other]
            if example is not None:
                return example
            tried += 1
        raise ValueError(f"none of {tried} examples of shape {shape} could be read; see the log for the reasons")
