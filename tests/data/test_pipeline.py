import itertools
import json
import logging
from functools import partial

import jax
import numpy as np
import pytest

from jaxvision.data.pipeline import classification_batches, detection_batches
from jaxvision.data.transforms import colour_jitter, flip_horizontal, random_crop, scale_jitter
from jaxvision.typing import Targets

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


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

    def ground_truth(self, indices=None):
        raise NotImplementedError


class Labelled:
    categories = ("a", "b")

    def __len__(self):
        return 5

    def __getitem__(self, index):
        image = np.full((10 + index, 20, 3), index, np.uint8)
        image[:, :5] = 255
        return {"image": image, "label": index % 2}


def detection(source, **options):
    chosen = {"batch_size": 4, "image_size": (24, 24), "max_objects": 4, "mean": MEAN, "std": STD}
    return detection_batches(source, **chosen | options)


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
    assert first["images"].shape == (4, 24, 24, 3) and first["images"].dtype == np.float32
    assert first["image_ids"].tolist() == [100, 101, 102, 103]
    assert first["image_ids"].dtype == np.int32 and first["valid"].all()
    for row in range(4):
        example = source[row]
        h, w = example["image"].shape[:2]
        expected = (example["image"].astype(np.float64) / 255 - MEAN) / STD
        np.testing.assert_allclose(first["images"][row, :h, :w], expected, atol=1e-5)
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
    for batch in detection(source, image_size=(10, 8)):
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
@pytest.mark.parametrize("mode", [{"shuffle": True, "repeat": True}, {"drop_remainder": True}, {}])
def test_processes_together_read_the_batches_of_one(mode, count):
    """Row for row, over the borders of epochs (26 is no multiple of 8), random transforms included."""

    def read(**options):
        return list(itertools.islice(detection(Pictures(26), transforms=augment, **mode, **options), 9))

    whole = read(batch_size=8)
    parts = [read(batch_size=8 // count, process_index=p, process_count=count) for p in range(count)]
    assert len(whole) == (9 if "repeat" in mode else 3 if mode else 4)
    for batch, *rows in zip(whole, *parts, strict=True):
        assert same(jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows), batch)


def test_evaluation_sees_everything_once_on_every_process():
    parts = [list(detection(Pictures(13, missing=(4,)), process_index=p, process_count=3)) for p in range(3)]
    assert {len(part) for part in parts} == {2}
    seen = [i for part in parts for batch in part for i, ok in zip(batch["image_ids"], batch["valid"]) if ok]
    assert sorted(seen) == [100 + i for i in range(13) if i != 4]


def test_unreadable_examples_are_passed_over_in_training():
    batches = detection(Pictures(10, missing=(1, 7)), repeat=True)
    assert ids(take(batches, 4)) == [100 + i for i in [0, 2, 3, 4, 5, 6, 8, 9] * 2]
    assert ids(detection(Pictures(10, missing=(1, 7)), drop_remainder=True, batch_size=5)) == [100, 102, 103, 104, 105]
    with pytest.raises(ValueError, match="none of the last 3 examples"):
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
    with pytest.raises(ValueError, match="do not fill one batch"):
        detection(Pictures(3), drop_remainder=True)
    with pytest.raises(ValueError, match="std must be positive"):
        detection(Pictures(3), std=(1.0, 0.0, 1.0))


def test_classification():
    batches = classification_batches(Labelled(), batch_size=4, image_size=(10, 10), mean=(0.0,) * 3, std=(1.0,) * 3)
    first, last = batches
    assert first["images"].shape == (4, 10, 10, 3) and first["labels"].tolist() == [0, 1, 0, 1]
    assert last["valid"].tolist() == [True, False, False, False] and last["labels"].dtype == np.int32
    np.testing.assert_allclose(first["images"][0], 0)  # columns 5 ... 15 of picture 0
    # Picture 4 is 14 × 20; its middle 14 columns of 10 / 14 the size begin inside the white stripe.
    assert (last["images"][0, :, 0] > 0.5).all()
    np.testing.assert_allclose(last["images"][0, :, 4:], 4 / 255, rtol=1e-6)
