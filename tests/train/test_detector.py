"""The real detector in the real loop: eight devices are one, resuming is going on, one batch can be learnt by heart."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.config import Config, DigitScenes
from experiments.detection import loss_of
from jaxvision import data, get_model, train
from jaxvision.data.transforms import flip_horizontal
from tests.train.task import assert_same

SIZE, CLASSES = (64, 64), 3
CONFIG = Config(data=DigitScenes(), model="maskrcnn_small", mean=(0.4,) * 3, std=(0.25,) * 3)
TX = train.optimizer("sgd", learning_rate=0.01, clip_norm=1.0)


class Blocks:
    """Noisy pictures of various sizes with 1 ... 3 rectangles, whose colour is their class."""

    categories, category_ids = ("red", "green", "blue"), (1, 2, 3)

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def size(self, index):
        return self[index]["image"].shape[:2]

    def __getitem__(self, index):
        rng = np.random.default_rng((3, int(index)))
        h, w = rng.integers(56, 65, 2)
        image = rng.integers(0, 80, (h, w, 3)).astype(np.uint8)
        count = 1 + int(index) % 3
        labels = rng.integers(0, CLASSES, count).astype(np.int32)
        low = rng.integers(0, 25, (count, 2))
        boxes = np.concatenate([low, low + rng.integers(14, 30, (count, 2))], axis=1).astype(np.float32)
        masks = np.zeros((count, h, w), bool)
        for label, mask, (left, top, right, bottom) in zip(labels, masks, boxes.astype(int)):
            mask[top:bottom, left:right] = True
            image[mask, label] = 230
        return {
            "image": image,
            "image_id": int(index),
            "boxes": boxes,
            "labels": labels,
            "masks": masks,
            "iscrowd": np.zeros(count, bool),
        }

    def ground_truth(self, indices=None):
        raise NotImplementedError


def make_batches(count=20):
    return data.batches(
        Blocks(count),
        data.DetectionRows(max_objects=4, mask_side=112),
        batch_size=8,
        shapes=(SIZE,),
        seed=5,
        shuffle=True,
        repeat=True,
        transforms=(flip_horizontal,),
    )


def make_model(axis_name=None, frozen_norm=False):
    model = get_model("maskrcnn_small", num_classes=CLASSES, regions=16, axis_name=axis_name)
    return model.clone(backbone=model.backbone.clone(frozen_norm=frozen_norm))


@functools.cache
def start():
    with jax.enable_x64(False):  # whichever test comes first
        key = jax.random.key(0, impl="rbg")  # compiles in half the time
        variables = jax.jit(make_model().init)(key, jnp.zeros((1, *SIZE, 3)))
        return train.create_state(jax.random.key(1), variables, TX)


@functools.cache
def parallel(mode, count, frozen_norm=False, dtype="float32"):
    """Compiled once for all tests: it is what takes the time here."""
    config = dataclasses.replace(CONFIG, compute_dtype=dtype)
    grad_fn = train.value_and_grads(loss_of(config, make_model(train.AXIS if mode == "pmap" else None, frozen_norm)))
    if mode == "pmap":
        grad_fn = train.mean_over(grad_fn, train.AXIS)
    return train.parallelize(train.make_train_step(grad_fn, TX), mode=mode, devices=jax.devices()[:count])


def run(parallel, batches, *, dtype=np.float32):
    """The state after a step on each of the batches, and the metrics of each."""

    def cast(leaf):
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    state, history = parallel.shard_state(jax.tree.map(cast, start())), []
    for batch in batches:
        inputs = {name: values for name, values in batch.items() if name != "image_ids"}
        state, metrics = parallel.step(state, parallel.shard_batch(jax.tree.map(cast, inputs)))
        history.append(jax.device_get(metrics))
    return jax.device_get(parallel.unshard(state)), history


def assert_equal_runs(found, wanted, tolerance, *, parts=("params", "model_state", "opt_state")):
    """These parts of the state, each leaf relative to its largest value; and every step's metrics."""
    (state, history), (alone, alone_history) = found, wanted
    for name in parts:
        pairs = zip(jax.tree.leaves_with_path(getattr(state, name)), jax.tree.leaves(getattr(alone, name)), strict=True)
        for (path, x), y in pairs:
            error = np.abs(x - y).max() / max(np.abs(y).max(), 1e-30)
            assert error < tolerance, f"{name}{jax.tree_util.keystr(path)}: {error:.1e} of the largest value"
    for metrics, wanted in zip(history, alone_history, strict=True):
        for name, value in wanted.items():
            np.testing.assert_allclose(metrics[name], value, rtol=tolerance, err_msg=name)


@functools.cache
def five_steps_alone(dtype, frozen_norm):
    return run(parallel("jit", 1, frozen_norm, np.dtype(dtype).name), itertools.islice(make_batches(), 5), dtype=dtype)


SLOW = pytest.mark.slow  # .ci/run has these too; compiling them takes minutes


@SLOW
@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_eight_devices_equal_one(x64, mode):
    """Batch norm, the sampled regions and the normalisers of the losses are those of the global batch.

    In float64: batch norm divides by differences of large sums, whose order changes float32 gradients by 1e-4 of a bias
    that started at zero; that hides what a wrong normaliser would do.
    """
    eight = run(parallel(mode, 8, dtype="float64"), itertools.islice(make_batches(), 5), dtype=np.float64)
    assert_equal_runs(eight, five_steps_alone(np.float64, False), 1e-12)


@pytest.mark.parametrize("mode", ["jit", pytest.param("pmap", marks=SLOW)])
def test_eight_devices_equal_one_in_float32(mode):
    """As detectors are mostly trained, batch norm frozen. The optimiser holds gradients, which may all but cancel."""
    eight = run(parallel(mode, 8, frozen_norm=True), itertools.islice(make_batches(), 5))
    assert_equal_runs(eight, five_steps_alone(np.float32, True), 1e-5, parts=("params",))


class Recorded:
    """Batches, and a list of those handed out."""

    def __init__(self):
        self.batches, self.seen = make_batches(), []
        self.get_state, self.set_state = self.batches.get_state, self.batches.set_state

    def __next__(self):
        self.seen.append(next(self.batches))
        return self.seen[-1]


def fit(directory, steps):
    """As a new process does it: from the start, with a new reader, towards ``steps`` in all."""
    checkpointer, batches = train.Checkpointer(directory), Recorded()
    options = {"checkpointer": checkpointer, "config": {}, "checkpoint_every": 100, "log_every": 1}
    state = train.fit(parallel("jit", 1), start(), batches, total_steps=steps, **options)
    checkpointer.close()
    return state, batches.seen


def test_stop_and_resume_is_uninterrupted(tmp_path):
    whole, batches = fit(tmp_path / "whole", 4)
    _, first = fit(tmp_path / "parts", 2)
    parts, second = fit(tmp_path / "parts", 4)
    assert (len(first), len(second), int(parts.step)) == (2, 2, 4)
    assert_same(first + second, batches)
    assert_same(parts, whole)


def test_one_batch_is_learnt_by_heart():
    """Two images, four times each; every part of the loss falls, not the largest alone."""
    _, history = run(parallel("jit", 1), [next(make_batches(count=2))] * 60)
    for name in ("loss", "loss_class", "loss_mask", "loss_objectness", "loss_rpn_box"):
        assert np.mean([metrics[name] for metrics in history[-10:]]) < history[0][name] / 3, name
