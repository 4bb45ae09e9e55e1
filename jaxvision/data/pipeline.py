"""From a source to batches of static shape: shuffled, sharded by process, read in threads, resumable (Grain).

Every random choice depends on the seed and the position in the stream alone, so the stream is the same however many
threads read it, and ``set_state`` continues it exactly.
"""

import collections
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex

import grain
import jax
import numpy as np

from jaxvision.data.regions import thinned
from jaxvision.data.source import DetectionSource, Example, Source
from jaxvision.data.transforms import central_crop, resize
from jaxvision.typing import Regions, Targets

__all__ = ["Batches", "classification_batches", "detection_batches"]

Batch = dict[str, Any]
Transform = Callable[[Any, Example], Example]  # (key, example) -> example

logger = logging.getLogger("jaxvision")


class Batches:
    """An iterator of batches whose position can be saved: ``get_state`` names the batch that comes next.

    Without ``repeat`` it ends after one pass; for another, ``set_state`` to the state it had at the start.
    ``dropped`` counts the objects left out of the targets, by reason.
    """

    def __init__(
        self,
        elements: grain.DatasetIterator,
        collate: Callable[[list[Example | None]], Batch],
        *,
        batch_size: int,
        keep_gaps: bool,
        patience: int,
        dropped: "Tally",
    ):
        self._elements = elements
        self._collate = collate
        self._batch_size = batch_size
        self._keep_gaps = keep_gaps  # a missing example becomes a row with valid=False rather than being passed over
        self._patience = patience  # missing examples in a row that mean there is nothing to read
        self._dropped = dropped

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        rows, missing = [], 0
        while len(rows) < self._batch_size:
            element = next(self._elements)  # its StopIteration is ours: a last incomplete batch is not handed out
            missing = missing + 1 if element is None else 0
            if element is not None or self._keep_gaps:
                rows.append(element)
            elif missing >= self._patience:
                raise ValueError(f"none of the last {missing} examples could be read; see the log for the reasons")
        return self._collate(rows)

    @property
    def dropped(self) -> dict[str, int]:
        return dict(self._dropped.counts)

    def get_state(self) -> dict[str, Any]:
        """The position as a small dict of JSON types."""
        return self._elements.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._elements.set_state(state)


class Tally:
    """Counts what is left out, and logs the first case of each reason."""

    def __init__(self):
        self.counts: collections.Counter = collections.Counter()
        self._lock = threading.Lock()

    def add(self, reason: str, count: int, image_id: Any) -> None:
        if count == 0:
            return
        with self._lock:
            first = reason not in self.counts
            self.counts[reason] += count
        if first:
            logger.warning("%d boxes of image %s left out: %s (further ones are only counted)", count, image_id, reason)


class Share:
    """The rows of one process: of each ``count * rows`` records in a row its own ``rows``, so that the processes' rows
    one after the other are the batch that a single process would have. Records beyond the last are None."""

    def __init__(self, records: grain.MapDataset, *, rows: int, index: int, count: int, batches: int):
        self.records, self.rows, self.index, self.count, self.batches = records, rows, index, count, batches

    def __len__(self) -> int:
        return self.batches * self.rows

    def __getitem__(self, index: SupportsIndex) -> Batch | None:
        batch, row = divmod(int(index), self.rows)
        position = (batch * self.count + self.index) * self.rows + row
        return self.records[position] if position < len(self.records) else None


def detection_batches(
    source: DetectionSource,
    *,
    batch_size: int,
    image_size: tuple[int, int],
    max_objects: int,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int = 0,
    shuffle: bool = False,
    repeat: bool = False,
    transforms: Sequence[Transform] = (),
    process_index: int = 0,
    process_count: int = 1,
    drop_remainder: bool = False,
    with_masks: bool = True,
    num_keypoints: int = 0,
    max_regions: int = 0,
    workers: int = 2,
) -> Batches:
    """Batches of images and ``Targets``, padded at the right and bottom to ``image_size`` and to ``max_objects``.

    A batch holds ``images`` float32 [b, H, W, 3] (``(x / 255 - mean) / std``, zero in the padding), ``image_sizes``
    and ``original_sizes`` float32 [b, 2] ((h, w) inside the padding and before the transforms), ``image_ids`` int32
    [b], ``valid`` bool [b] and ``targets``.  Images that do not fit are shrunk.  Crowd regions and boxes without area
    never become targets; of more than ``max_objects`` the largest stay.  With ``max_regions`` there are also
    ``regions``, those of the source's examples (``with_selective_search``), of which the first so many stay.

    ``batch_size`` counts this process's rows: each process reads its own, and all of them, in the order of the
    processes, are the batch of one process that reads everything (as long as no unreadable example is passed over).

    With ``repeat`` the stream is endless, each epoch shuffled anew, and unreadable examples are passed over.  Without,
    unreadable examples and the rest of the last batch are rows with ``valid=False`` (image_ids -1), so that every
    process sees the same number of batches; ``drop_remainder`` passes over both instead.
    transforms: functions of (key, example), in order; the key is a tuple of ints.  workers: reading threads, or 0.
    """
    height, width = image_size
    dropped = Tally()
    scale, shift = normalisation(mean, std)

    def prepare(example: Example, rng: np.random.Generator) -> Batch:
        original = example["image"].shape[:2]
        example = fit(transformed(example, rng, transforms), image_size)
        image = example["image"]
        h, w = image.shape[:2]
        images = np.zeros((height, width, 3), np.float32)
        images[:h, :w] = image * scale + shift
        return {
            "images": images,
            "image_sizes": np.array([h, w], np.float32),
            "original_sizes": np.array(original, np.float32),
            "image_ids": np.int32(example["image_id"]),
            "valid": np.True_,
            "targets": pad_targets(
                example, image_size, max_objects, with_masks=with_masks, num_keypoints=num_keypoints, dropped=dropped
            ),
            **({"regions": pad_regions(example, max_regions, dropped)} if max_regions else {}),
        }

    empty = {
        "images": np.zeros((height, width, 3), np.float32),
        "image_sizes": np.array(image_size, np.float32),
        "original_sizes": np.array(image_size, np.float32),
        "image_ids": np.int32(-1),
        "valid": np.False_,
        "targets": Targets(
            boxes=np.zeros((max_objects, 4), np.float32),
            labels=np.zeros(max_objects, np.int32),
            valid=np.zeros(max_objects, bool),
            masks=np.zeros((max_objects, height, width), bool) if with_masks else None,
            keypoints=np.zeros((max_objects, num_keypoints, 3), np.float32) if num_keypoints else None,
        ),
        **({"regions": padded_regions(np.zeros((0, 4)), max_regions)} if max_regions else {}),
    }
    return batches(
        source,
        prepare,
        empty,
        dropped,
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        repeat=repeat,
        process_index=process_index,
        process_count=process_count,
        drop_remainder=drop_remainder,
        workers=workers,
    )


def classification_batches(
    source: Source,
    *,
    batch_size: int,
    image_size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    seed: int = 0,
    shuffle: bool = False,
    repeat: bool = False,
    transforms: Sequence[Transform] = (),
    process_index: int = 0,
    process_count: int = 1,
    drop_remainder: bool = False,
    workers: int = 2,
) -> Batches:
    """Batches of ``images`` float32 [b, H, W, 3], ``labels`` int32 [b] and ``valid`` bool [b].

    After the transforms an image of another size is scaled to cover ``image_size`` and cropped to its middle.
    Everything else is as in ``detection_batches``.
    """
    scale, shift = normalisation(mean, std)

    def prepare(example: Example, rng: np.random.Generator) -> Batch:
        image = cover(transformed(example, rng, transforms), image_size)["image"]
        return {"images": image * scale + shift, "labels": np.int32(example["label"]), "valid": np.True_}

    empty = {"images": np.zeros((*image_size, 3), np.float32), "labels": np.int32(0), "valid": np.False_}
    return batches(
        source,
        prepare,
        empty,
        Tally(),
        batch_size=batch_size,
        seed=seed,
        shuffle=shuffle,
        repeat=repeat,
        process_index=process_index,
        process_count=process_count,
        drop_remainder=drop_remainder,
        workers=workers,
    )


def batches(
    source: Source,
    prepare: Callable[[Example, np.random.Generator], Batch],
    empty: Batch,
    dropped: Tally,
    *,
    batch_size: int,
    seed: int,
    shuffle: bool,
    repeat: bool,
    process_index: int,
    process_count: int,
    drop_remainder: bool,
    workers: int,
) -> Batches:
    """The Grain part that both kinds of batches share; ``empty`` is the row of a missing example."""
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} must lie in 0 ... process_count - 1 = {process_count - 1}")
    keep_gaps = not repeat and not drop_remainder
    whole = batch_size * process_count
    if not keep_gaps and not repeat and len(source) < whole:
        raise ValueError(
            f"{len(source)} examples do not fill one batch of {batch_size} on {process_count} processes; "
            "use a smaller batch or drop_remainder=False"
        )
    records = grain.MapDataset.source(source).seed(seed)
    if shuffle:
        records = records.shuffle()
    records = records.random_map(prepare)  # its generator follows the position in the stream of all processes
    if repeat:
        records = records.repeat()
    count = len(records) // whole if not keep_gaps else -(-len(records) // whole)
    share = Share(records, rows=batch_size, index=process_index, count=process_count, batches=count)
    threads = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=2 * batch_size if workers else 0)
    return Batches(
        iter(grain.MapDataset.source(share).to_iter_dataset(threads, allow_nones=True)),
        lambda rows: stack([empty if row is None else row for row in rows]),
        batch_size=batch_size,
        keep_gaps=keep_gaps,
        patience=len(source),
        dropped=dropped,
    )


def stack(rows: list[Batch]) -> Batch:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def normalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """(scale, shift) with ``x * scale + shift = (x / 255 - mean) / std``."""
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    if not (std > 0).all():
        raise ValueError(f"std must be positive, not {std.tolist()}")
    return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)


def transformed(example: Example, rng: np.random.Generator, transforms: Sequence[Transform]) -> Example:
    keys = rng.integers(2**32, size=(len(transforms), 4)).tolist()
    for key, transform in zip(keys, transforms):
        example = transform(tuple(key), example)
    return example


def fit(example: Example, image_size: tuple[int, int]) -> Example:
    """The example shrunk, where needed, to lie inside ``image_size``."""
    (h, w), (height, width) = example["image"].shape[:2], image_size
    if h <= height and w <= width:
        return example
    factor = min(height / h, width / w)
    size = tuple(max(1, min(limit, round(side * factor))) for side, limit in zip((h, w), image_size))
    return resize(example, size=size)


def cover(example: Example, image_size: tuple[int, int]) -> Example:
    """The middle of the example, scaled so that it just covers ``image_size``."""
    (h, w), (height, width) = example["image"].shape[:2], image_size
    if (h, w) == (height, width):
        return example
    factor = max(height / h, width / w)
    h, w = max(height, round(h * factor)), max(width, round(w * factor))
    return central_crop(resize(example, size=(h, w)), size=image_size)


def pad_regions(example: Example, max_regions: int, dropped: Tally) -> Regions:
    """The regions of an example, at most ``max_regions`` of them, evenly from first to last."""
    if "regions" not in example:
        raise ValueError(
            f"regions were asked for, but image {example['image_id']} of this source has none: "
            "give it some with jaxvision.data.with_selective_search"
        )
    kept = thinned(example["regions"], max_regions)
    surplus = len(example["regions"]) - len(kept)
    dropped.add(f"more than max_regions={max_regions}", surplus, example["image_id"])
    return padded_regions(kept, max_regions)


def padded_regions(boxes: np.ndarray, room: int) -> Regions:
    padded = np.zeros((room, 4), np.float32)
    padded[: len(boxes)] = boxes
    return Regions(padded, np.arange(room) < len(boxes))


def pad_targets(
    example: Example,
    image_size: tuple[int, int],
    max_objects: int,
    *,
    with_masks: bool,
    num_keypoints: int,
    dropped: Tally,
) -> Targets:
    """The objects of an example that can be targets, padded to ``max_objects`` rows and to ``image_size``."""
    boxes = example["boxes"]
    sides = boxes[:, 2:] - boxes[:, :2]
    usable = ~example["iscrowd"] & (sides > 0).all(1)
    dropped.add("the box has no area", int((~usable & ~example["iscrowd"]).sum()), example["image_id"])
    kept = np.flatnonzero(usable)
    if len(kept) > max_objects:
        largest = np.argsort(-sides[kept].prod(1), kind="stable")[:max_objects]
        dropped.add(f"more than max_objects={max_objects}", len(kept) - max_objects, example["image_id"])
        kept = np.sort(kept[largest])

    def padded(values: np.ndarray, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        result = np.zeros((max_objects, *shape), dtype)
        result[tuple(slice(size) for size in values[kept].shape)] = values[kept]
        return result

    for name, wanted in (("masks", with_masks), ("keypoints", num_keypoints)):
        if wanted and name not in example:
            raise ValueError(f"{name} were asked for, but image {example['image_id']} of this source has none")
    return Targets(
        boxes=padded(boxes, (4,), np.float32),
        labels=padded(example["labels"], (), np.int32),
        valid=np.arange(max_objects) < len(kept),
        masks=padded(example["masks"], image_size, bool) if with_masks else None,
        keypoints=padded(example["keypoints"], (num_keypoints, 3), np.float32) if num_keypoints else None,
    )
