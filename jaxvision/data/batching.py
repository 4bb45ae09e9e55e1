"""Which examples make each batch when images have several shapes: known from their sizes, before any is read."""

import functools
import math
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np

from jaxvision.data.source import Source

__all__ = ["Plan", "nearest_shape"]

Shape = tuple[int, int]


def nearest_shape(size: tuple[int, int], shapes: Sequence[Shape]) -> Shape:
    """The shape whose aspect is nearest to that of ``size`` = (height, width), by ratio; the first of equals."""
    return min(shapes, key=lambda shape: round(abs(math.log(shape[0] * size[1] / (shape[1] * size[0]))), 9))


class Plan:
    """Which image of the stream each row of each batch is; place -1 is an empty row.

    Each shape collects its images in the order of the stream, and its batch is due where the last image comes. With
    ``repeat`` what an epoch leaves over waits for the next; without, the last batch of each shape is filled up with
    empty rows. A batch follows from its number alone: every epoch has the same number of each shape, so it is known how
    many were complete before an epoch.
    """

    def __init__(
        self, source: Source, order: grain.MapDataset, *, shapes: tuple[Shape, ...], batch_size: int, repeat: bool
    ):
        self.shapes, self.batch_size, self.repeat = shapes, batch_size, repeat
        self.order, self.length = order, len(source)
        if len(shapes) == 1:
            self.shape_of = np.zeros(self.length, np.int32)
        else:
            nearest = functools.lru_cache(maxsize=65536)(lambda size: shapes.index(nearest_shape(size, shapes)))
            self.shape_of = np.array([nearest(tuple(source.size(index))) for index in range(self.length)], np.int32)
        self.counts = np.bincount(self.shape_of, minlength=len(shapes))
        self._epochs: dict[int, Epoch] = {}

    def __len__(self) -> int:
        return sys.maxsize // (64 * self.batch_size) if self.repeat else int(sum(-(-self.counts // self.batch_size)))

    def place(self, batch: int, row: int) -> tuple[Shape, int]:
        """The shape of a batch, and the place in the stream of one of its rows."""
        epoch = self._epoch_of(batch)
        shape, number = self._epoch(epoch).due[batch - self._before(epoch)]
        return self.shapes[shape], self._place(shape, number * self.batch_size + row)

    def after(self, shape: Shape, place: int) -> Iterator[int]:
        """The places of the images of ``shape`` that follow ``place``, as many as an epoch has."""
        number = self.shapes.index(shape)
        epoch, within = divmod(place, self.length)
        rank = epoch * int(self.counts[number]) + int(np.searchsorted(self._epoch(epoch).ranked[number], within))
        return (self._place(number, rank + step) for step in range(1, int(self.counts[number])))

    def _before(self, epoch: int) -> int:
        """How many batches were complete before an epoch."""
        return int(sum(epoch * self.counts // self.batch_size))

    def _epoch_of(self, batch: int) -> int:
        """The epoch in which a batch is due: the last one before which no more than ``batch`` were complete."""
        if not self.repeat:
            return 0
        epoch = batch * self.batch_size // self.length
        while self._before(epoch + 1) <= batch:
            epoch += 1
        return epoch

    def _place(self, shape: int, rank: int) -> int:
        """The place of a shape's image by its rank in the whole stream; -1 beyond its end."""
        count = int(self.counts[shape])
        epoch, within = divmod(rank, count)
        if epoch and not self.repeat:
            return -1
        return epoch * self.length + int(self._epoch(epoch).ranked[shape][within])

    def _epoch(self, epoch: int) -> "Epoch":
        """The epoch's order; the latest are kept."""
        kept = self._epochs.get(epoch)
        if kept is None:
            if len(self.shapes) == 1:
                ranked = [range(self.length)]
            else:
                start = epoch * self.length
                shapes = self.shape_of[[self.order[start + place] for place in range(self.length)]]
                ranked = [np.flatnonzero(shapes == shape) for shape in range(len(self.shapes))]
            kept = Epoch(ranked, self._due(epoch, ranked))
            self._epochs = {**{key: self._epochs[key] for key in list(self._epochs)[-8:]}, epoch: kept}
        return kept

    def _due(self, epoch: int, ranked: list[np.ndarray | range]) -> list[tuple[int, int]]:
        found = []
        for shape, count in enumerate(self.counts.tolist()):
            first = epoch * count // self.batch_size
            last = (epoch + 1) * count // self.batch_size if self.repeat else -(-count // self.batch_size)
            for number in range(first, last):
                rank = (number + 1) * self.batch_size - 1 - epoch * count
                found.append((int(ranked[shape][rank]) if rank < count else self.length, shape, number))
        return [(shape, number) for _, shape, number in sorted(found)]


class Epoch(NamedTuple):
    """The order of one epoch."""

    ranked: list[np.ndarray | range]  # of each shape: the places of its images within the epoch, rising
    due: list[tuple[int, int]]  # (shape, number among its batches in the whole stream), as they are completed
