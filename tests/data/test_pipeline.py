import dataclasses
import itertools
import json
import logging
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxvision.data import ClassificationRows, DetectionRows, nearest_shape
from jaxvision.data.masks import on_boxes
from jaxvision.data.pipeline import batches as make_batches
from jaxvision.data.transforms import colour_jitter, flip_horizontal, random_crop, scale_jitter
from jaxvision.typing import Targets


class Pictures:
    """Small pictures of various sizes with 0 ... 3 rectangles; those in ``missing`` cannot be read."""

    categories = ("a", "b", "c")
    category_ids = (1, 2, 3)

    def __init__(self, count, *, missing=(), keypoints=0):
        self.count, self.missing, self.keypoints = count, set(missing), keypoints

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        index = int(index)
        if index in self.missing:
            return None
        rng = np.random.default_rng((7, index))
        h, w = rng.integers(12, 25, 2)
        corners = np.sort(rng.integers(0, 12, (index % 4, 2, 2)), axis=1)
        corners[:, 1] += 1
        boxes = corners.reshape(-1, 4).astype(np.float32)
        masks = np.zeros((len(boxes), h, w), bool)
        for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int)):
            mask[top:bottom, left:right] = True
        example = {
            "image": rng.integers(0, 256, (h, w, 3), np.uint8),
            "image_id": 100 + index,
            "boxes": boxes,
            "labels": rng.integers(0, 3, len(boxes)).astype(np.int32),
            "masks": masks,
            "iscrowd": np.zeros(len(boxes), bool),
        }
        if self.keypoints:
            example["keypoints"] = rng.uniform(1, 10, (len(boxes), self.keypoints, 3)).astype(np.float32)
        return example

    def size(self, index):
        return tuple(np.random.default_rng((7, int(index))).integers(12, 25, 2).tolist())


class OnBoxes(Pictures):
    """The same with masks on their boxes."""

    def __getitem__(self, index):
        example = super().__getitem__(index)
        return None if example is None else on_boxes(example, 8)


class Labelled:
    categories = ("a", "b")

    def __len__(self):
        return 5

    def size(self, index):
        return 10 + index, 20

    def __getitem__(self, index):
        image = np.full((10 + index, 20, 3), index, np.uint8)
        image[:, :5] = 255
        return {"image": image, "label": index % 2}


ROWS = {field.name for field in dataclasses.fields(DetectionRows)}


def detection(source, **options):
    rows = {"max_objects": 4} | {name: value for name, value in options.items() if name in ROWS}
    chosen = {"batch_size": 4, "shapes": ((24, 24),)}
    chosen |= {name: value for name, value in options.items() if name not in ROWS}
    return make_batches(source, DetectionRows(**rows), **chosen)


augment = (
    flip_horizontal,
    partial(scale_jitter, range=(0.7, 1.4)),
    partial(random_crop, size=(20, 20)),
    partial(colour_jitter, brightness=0.3, contrast=0.3, saturation=0.3),
)


def same(one, other):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


def ids(batches):
    return [int(i) for batch in batches for i in batch["image_ids"]]


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def test_batch_holds_the_example_padded():
    source = Pictures(6)
    first, last = detection(source)
    assert first["images"].shape == (4, 24, 24, 3) and first["images"].dtype == np.uint8
    assert first["image_ids"].tolist() == [100, 101, 102, 103]
    assert first["image_ids"].dtype == np.int32 and first["valid"].all()
    for row in range(4):
        example = source[row]
        h, w = example["image"].shape[:2]
        np.testing.assert_array_equal(first["images"][row, :h, :w], example["image"])
        assert not first["images"][row, h:].any() and not first["images"][row, :, w:].any()
        assert first["image_sizes"][row].tolist() == [h, w] == first["original_sizes"][row].tolist()
        targets = Targets(*(None if part is None else part[row] for part in first["targets"]))
        n = len(example["boxes"])
        assert targets.valid.tolist() == [True] * n + [False] * (4 - n)
        np.testing.assert_array_equal(targets.boxes[:n], example["boxes"])
        np.testing.assert_array_equal(targets.labels[:n], example["labels"])
        np.testing.assert_array_equal(targets.masks[:n, :h, :w], example["masks"])
        assert targets.masks.sum() == example["masks"].sum() and targets.keypoints is None
    assert last["valid"].tolist() == [True, True, False, False]
    assert last["image_ids"].tolist() == [104, 105, -1, -1]
    assert not last["targets"].valid[2:].any() and (last["image_sizes"] > 0).all()


def test_large_images_shrink_with_their_objects():
    source = Pictures(8)
    for batch in detection(source, shapes=((10, 8),)):
        for row, (h, w) in enumerate(batch["image_sizes"].astype(int)):
            example = source[row + batch["image_ids"][0] - 100]
            height, width = example["image"].shape[:2]
            assert h == 10 or w == 8
            assert abs(h / height - w / width) < 0.08
            n = len(example["boxes"])
            scale = np.array([w / width, h / height] * 2)
            np.testing.assert_allclose(batch["targets"].boxes[row, :n], example["boxes"] * scale, rtol=1e-5)
            assert batch["original_sizes"][row].tolist() == [height, width]


def test_without_masks_and_with_keypoints():
    batch = next(detection(Pictures(4, keypoints=5), with_masks=False, num_keypoints=5))
    assert batch["targets"].masks is None
    assert batch["targets"].keypoints.shape == (4, 4, 5, 3)
    np.testing.assert_array_equal(batch["targets"].keypoints[3, :3], Pictures(4, keypoints=5)[3]["keypoints"])
    with pytest.raises(ValueError, match="keypoints were asked for"):
        next(detection(Pictures(4), num_keypoints=5))


def test_crowds_and_empty_boxes_are_no_targets_and_the_largest_stay(caplog):
    class Odd(Pictures):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            boxes = np.array([[0, 0, 2, 2], [0, 0, 9, 9], [3, 3, 3, 8], [0, 0, 5, 5], [0, 0, 12, 12]], np.float32)
            crowd = np.array([False, False, False, False, True])
            masks = np.ones((5, *example["image"].shape[:2]), bool)
            return example | {"boxes": boxes, "iscrowd": crowd, "labels": np.arange(5, dtype=np.int32), "masks": masks}

    batches = detection(Odd(8), max_objects=2)
    with caplog.at_level(logging.WARNING, logger="jaxvision"):
        for batch in batches:
            assert batch["targets"].labels.tolist() == [[1, 3]] * 4
    assert batches.dropped == {"the box has no area": 8, "more than max_objects=2": 8}
    assert len(caplog.records) == 2  # each reason once


def test_300_objects_with_room_for_100(caplog):
    class Crowded(Pictures):
        def __getitem__(self, index):
            left, top = np.meshgrid(np.arange(20.0), np.arange(15.0))
            corner = np.stack([left.ravel(), top.ravel()], axis=1)
            sides = 1 + np.arange(300)[:, None] / 300  # the last 100 are the largest
            boxes = np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
            example = {**super().__getitem__(index), "boxes": boxes, "labels": np.arange(300, dtype=np.int32)}
            return example | {"iscrowd": np.zeros(300, bool)}

    batches = detection(Crowded(4), max_objects=100, with_masks=False)
    with caplog.at_level(logging.WARNING, logger="jaxvision"):
        targets = next(batches)["targets"]
    assert targets.valid.all() and targets.labels.tolist() == [list(range(200, 300))] * 4
    assert batches.dropped == {"more than max_objects=100": 800}
    assert "200 boxes of image" in caplog.text and "more than max_objects=100" in caplog.text


def test_each_epoch_is_another_order_of_everything():
    batches = detection(Pictures(12), shuffle=True, repeat=True, seed=3)
    epochs = [ids(take(batches, 3)) for _ in range(3)]
    assert all(sorted(epoch) == list(range(100, 112)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_seed_decides_everything_and_threads_nothing():
    options = {"shuffle": True, "repeat": True, "transforms": augment}
    one, two, other = (
        take(detection(Pictures(10), seed=seed, workers=workers, **options), 7)
        for seed, workers in ((5, 0), (5, 3), (6, 2))
    )
    assert all(map(same, one, two))
    assert not any(map(same, one, other))


def test_every_record_and_epoch_has_its_own_key():
    keys = []

    def spy(key, example):
        keys.append(key)
        return example

    take(detection(Pictures(4), repeat=True, transforms=(spy, spy), workers=0), 3)
    assert len(set(keys)) == len(keys) == 24


@pytest.mark.parametrize("position", [0, 1, 3, 8])
@pytest.mark.parametrize("missing", [(), (0, 5, 6)])
def test_resume_is_bit_for_bit(position, missing):
    def fresh():
        return detection(Pictures(10, missing=missing), shuffle=True, repeat=True, seed=1, transforms=augment)

    whole = take(fresh(), 13)
    batches = fresh()
    take(batches, position)
    state = json.loads(json.dumps(batches.get_state()))
    resumed = fresh()
    resumed.set_state(state)
    assert all(map(same, take(resumed, 13 - position), whole[position:]))
    batches.set_state(state)  # an iterator in use jumps as well
    assert same(next(batches), whole[position])


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("mode", [{"shuffle": True, "repeat": True}, {}])
def test_processes_together_read_the_batches_of_one(mode, count):
    """Row for row, over the borders of epochs (26 is no multiple of 8), random transforms included."""

    def read(**options):
        return list(itertools.islice(detection(Pictures(26), transforms=augment, **mode, **options), 9))

    whole = read(batch_size=8)
    parts = [read(batch_size=8 // count, process_index=p, process_count=count) for p in range(count)]
    assert len(whole) == (9 if mode else 4)
    for batch, *rows in zip(whole, *parts, strict=True):
        assert same(jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows), batch)


def test_evaluation_sees_everything_once_on_every_process():
    parts = [list(detection(Pictures(13, missing=(4,)), process_index=p, process_count=3)) for p in range(3)]
    assert {len(part) for part in parts} == {2}
    seen = [i for part in parts for batch in part for i, ok in zip(batch["image_ids"], batch["valid"]) if ok]
    assert sorted(seen) == [100 + i for i in range(13) if i != 4]


def test_unreadable_examples_are_replaced_in_training():
    batches = detection(Pictures(10, missing=(1, 7, 8)), repeat=True, batch_size=5)
    assert ids(take(batches, 2)) == [100 + i for i in [0, 2, 2, 3, 4, 5, 6, 9, 9, 9]]
    with pytest.raises(ValueError, match="none of 3 examples"):
        next(detection(Pictures(3, missing=(0, 1, 2)), repeat=True))


def test_an_error_of_a_source_reaches_the_caller():
    class Broken(Pictures):
        def __getitem__(self, index):
            raise ValueError("cat.jpg is truncated")

    with pytest.raises(ValueError, match=r"cat\.jpg is truncated"):
        next(detection(Broken(4)))


def test_bad_options():
    with pytest.raises(ValueError, match="process_index 2"):
        detection(Pictures(4), process_index=2, process_count=2)
    with pytest.raises(ValueError, match="batch_size=0"):
        detection(Pictures(3), batch_size=0)
    with pytest.raises(ValueError, match="planes of masks were asked for"):
        next(detection(OnBoxes(3)))


def test_classification():
    batches = make_batches(Labelled(), ClassificationRows(), batch_size=4, shapes=((10, 10),))
    first, last = batches
    assert first["images"].shape == (4, 10, 10, 3) and first["labels"].tolist() == [0, 1, 0, 1]
    assert last["valid"].tolist() == [True, False, False, False] and last["labels"].dtype == np.int32
    np.testing.assert_allclose(first["images"][0], 0)  # columns 5 ... 15 of picture 0
    # Picture 4 is 14 × 20; its middle 14 columns of 10 / 14 the size begin inside the white stripe.
    assert (last["images"][0, :, 0] > 127).all()
    np.testing.assert_array_equal(last["images"][0, :, 4:], 4)


def test_masks_on_boxes_come_from_either_kind_of_source():
    shrink = (partial(scale_jitter, range=(0.5, 0.5)), partial(flip_horizontal, probability=1.0))
    planes = next(detection(Pictures(4), mask_side=8, transforms=shrink))["targets"]
    grids = next(detection(OnBoxes(4), mask_side=8, transforms=shrink))["targets"]
    assert same(planes, grids) and planes.masks.shape == (4, 4, 8, 8) and planes.masks.dtype == np.uint8
    assert planes.masks[planes.valid].any((1, 2)).all() and not planes.masks[~planes.valid].any()
    empty = next(detection(Pictures(4, missing=(0, 1, 2, 3)), mask_side=8))["targets"]
    assert not empty.valid.any() and empty.masks.shape == (4, 4, 8, 8)
    without = next(detection(OnBoxes(4), with_masks=False))["targets"]
    assert without.masks is None and without.mask_boxes is None


SHAPES = ((20, 28), (28, 20))


def shape_of(batch):
    return batch["images"].shape[1:3]


def test_batches_have_the_shape_of_their_images():
    source = Pictures(23)
    seen = []
    for batch in detection(source, shapes=SHAPES, batch_size=4):
        rows = batch["image_ids"][batch["valid"]] - 100
        assert all(nearest_shape(source.size(row), SHAPES) == shape_of(batch) for row in rows)
        seen += rows.tolist()
    assert sorted(seen) == list(range(23)) and len({*seen}) == 23
    assert nearest_shape((7, 7), SHAPES) == SHAPES[0]  # the first of equals


def test_no_image_is_forgotten_between_epochs():
    """Few landscapes: their batch waits for the epochs that complete it."""
    source = Pictures(11)
    portraits = sum(nearest_shape(source.size(index), SHAPES) == SHAPES[1] for index in range(11))
    assert 0 < 11 - portraits < 8
    batches = take(detection(source, shapes=SHAPES, batch_size=8, shuffle=True, repeat=True), 22)  # 16 epochs
    counts = np.bincount(np.array(ids(batches)) - 100, minlength=11)
    assert counts.min() >= 14 and counts.max() <= 18


@pytest.mark.parametrize("position", [0, 4, 11])
def test_several_shapes_resume_and_are_shared_out(position):
    options = dict(shapes=SHAPES, shuffle=True, repeat=True, transforms=augment, seed=2)
    whole = take(detection(Pictures(13, missing=(3,)), batch_size=4, **options), 14)
    assert {shape_of(batch) for batch in whole} == set(SHAPES)
    assert 103 not in ids(whole)
    resumed = detection(Pictures(13, missing=(3,)), batch_size=4, **options)
    resumed.set_state({"next_index": position})
    assert all(map(same, take(resumed, 14 - position), whole[position:]))
    parts = [
        take(detection(Pictures(13, missing=(3,)), batch_size=2, process_index=p, process_count=2, **options), 14)
        for p in range(2)
    ]
    for batch, *rows in zip(whole, *parts, strict=True):
        assert same(jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows), batch)


def test_a_batch_comes_as_soon_as_it_is_complete():
    """No batch needs an image that lies later in the stream than those of the batches after it."""
    source = Pictures(40)
    last = []
    for batch in detection(source, shapes=SHAPES, batch_size=4, repeat=False):
        if batch["valid"].all():
            last.append(batch["image_ids"].max())
    assert last == sorted(last) and len(last) >= 8


def test_worker_processes_read_the_same_stream(tmp_path):
    """In a program of its own, for the processes start anew from its main module."""
    script = tmp_path / "read.py"
    script.write_text(WORKERS)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, script], check=True, env=environment, timeout=300)


WORKERS = """
import json
from functools import partial
import numpy as np
from jaxvision import data
from jaxvision.data.transforms import flip_horizontal, random_crop

class Noise:
    categories, category_ids = ("a",), (1,)
    def __len__(self): return 11
    def size(self, index): return (16, 24) if index % 3 else (24, 16)
    def __getitem__(self, index):
        image = np.random.default_rng(int(index)).integers(0, 256, (*self.size(index), 3), np.uint8)
        return {"image": image, "label": int(index) % 7}

def read(**options):
    return data.batches(Noise(), data.ClassificationRows(), batch_size=4, shapes=((16, 24), (24, 16)), seed=1,
        shuffle=True, repeat=True, transforms=(flip_horizontal, partial(random_crop, size=(12, 12))), **options)

if __name__ == "__main__":
    alone, together = read(), read(worker_processes=2, workers=1)
    for number in range(6):
        if number == 3:
            state = json.loads(json.dumps(together.get_state()))
            together = read(worker_processes=2, workers=1)
            together.set_state(state)
        one, other = next(alone), next(together)
        assert all(np.array_equal(one[name], other[name]) for name in one), number
"""
