"""What test_two_processes.py runs alone and in each of two processes:
python -m tests.train.two_processes COORDINATOR PROCESS FOLDER."""

import dataclasses
import functools
import json
import os
import pathlib
import signal
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments import classification, detection
from experiments.config import Augmentation, Config, Digits
from jaxvision import data, train
from jaxvision.data.source import ground_truth_of
from jaxvision.layers.convolution import Conv, Dense
from jaxvision.layers.norm import BatchNorm
from jaxvision.typing import Detections

BATCH, STEPS = 16, 10
RUNS = (("jit", np.float32), ("jit", np.float64), ("pmap", np.float64))  # each is compiled anew, which takes the time
CONFIG = Config(
    data=Digits(), model="resnet18", mean=(0.4,) * 3, std=(0.25,) * 3, image_size=((12, 12),),
    augmentation=Augmentation(cutmix=1.0), label_smoothing=0.1, eval_batch_size=4,
)  # fmt: skip
DETECTION = dataclasses.replace(CONFIG, model="fasterrcnn_small", augmentation=Augmentation(), label_smoothing=0.0)
TX = train.optimizer("sgd", learning_rate=0.1, weight_decay=1e-3)


class Small(nn.Module):
    num_classes: int = 3
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        x = images
        for i, width in enumerate((8, 16)):
            x = Conv(width, 3, strides=2, padding=1, use_bias=False, name=f"conv{i}")(x)
            x = nn.relu(BatchNorm(axis_name=self.axis_name, name=f"bn{i}")(x, train=train))
        return Dense(self.num_classes, name="fc")(jnp.mean(x, axis=(1, 2))), {}


class Pictures:
    """Noise, brighter in the channel of its class; 42 of them, so that epochs end within batches."""

    categories = ("red", "green", "blue")

    def __len__(self):
        return 42

    def size(self, index):
        return 12, 12

    def __getitem__(self, index):
        image = np.random.default_rng(int(index)).integers(0, 200, (12, 12, 3)).astype(np.uint8)
        image[..., int(index) % 3] += 40
        return {"image": image, "label": int(index) % 3}


def batches():
    return data.batches(
        Pictures(),
        data.ClassificationRows(),
        batch_size=BATCH // jax.process_count(),
        shapes=((12, 12),),
        seed=3,
        shuffle=True,
        repeat=True,
        transforms=(data.flip_horizontal,),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


class Spots(nn.Module):
    """Finds a square around the brightest pixel, as the class of its channel; the loss is the mean brightness."""

    def detect(self, images, image_sizes):
        place = jnp.argmax(images.reshape(len(images), -1), axis=1)
        y, x, label = jnp.unravel_index(place, images.shape[1:])
        corner = jnp.stack([x, y], axis=1).astype(jnp.float32)[:, None]
        scores = jnp.max(images, axis=(1, 2, 3))[:, None] / 10
        boxes = jnp.concatenate([corner - 2, corner + 3], axis=2)
        return Detections(boxes, scores, label[:, None].astype(jnp.int32), jnp.ones(scores.shape, bool))

    def loss(self, images, targets, image_sizes):
        value = jnp.mean(images)
        return value, {"loss": value}


class Spotted(Pictures):
    """The same with the square around the brightest pixel of each as its object."""

    category_ids = (1, 2, 3)

    def __getitem__(self, index):
        image = super().__getitem__(index)["image"]
        y, x, channel = np.unravel_index(image.argmax(), image.shape)
        box = np.array([[x - 2, y - 2, x + 3, y + 2 + index % 3]], np.float32).clip(0, 12)
        labels, iscrowd = np.array([channel], np.int32), np.zeros(1, bool)
        return {"image": image, "image_id": int(index), "boxes": box, "labels": labels, "iscrowd": iscrowd}

    def ground_truth(self, indices=None):
        chosen = range(len(self)) if indices is None else indices
        return ground_truth_of(map(self.__getitem__, chosen), categories=self.categories, category_ids=(1, 2, 3))


def evaluations(devices=None):
    """Validation figures of a classifier and of a detector."""
    variables = Small().init(jax.random.key(0), jnp.zeros((1, 12, 12, 3)))
    figures = classification.evaluator(CONFIG, Small(), Pictures(), devices)(variables)
    return figures | detection.evaluator(DETECTION, Spots(), Spotted(), devices)({})


def start(dtype):
    variables = Small().init(jax.random.key(0), jnp.zeros((1, 12, 12, 3)))
    state = train.create_state(jax.random.key(1), variables, TX, ema=True)
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)


@functools.cache
def parallel(mode, count=None, dtype="float32"):
    axis_name = train.AXIS if mode == "pmap" else None
    config = dataclasses.replace(CONFIG, compute_dtype=dtype)
    grad_fn = train.value_and_grads(classification.loss_of(config, Small(axis_name=axis_name)))
    if mode == "pmap":
        grad_fn = train.mean_over(grad_fn, train.AXIS)
    return train.parallelize(
        train.make_train_step(grad_fn, TX, ema_decay=0.9), mode=mode, devices=jax.devices()[:count]
    )


def ten_steps(mode, dtype, count=None):
    """All parameters, statistics, momenta and averages as one vector, and the loss of each step."""
    with jax.enable_x64(dtype == np.float64):
        way, rows, losses = parallel(mode, count, np.dtype(dtype).name), batches(), []
        state = way.shard_state(start(dtype))
        for _ in range(STEPS):
            state, metrics = way.step(state, way.shard_batch(next(rows)))
            losses.append(float(metrics["loss"]))
        leaves = [np.ravel(x) for x in jax.tree.leaves(way.unshard(state)) if jnp.issubdtype(x.dtype, jnp.floating)]
        return np.concatenate(leaves), np.array(losses)


def fit(folder, steps, rows=None):
    """In the real loop, with checkpoints; the vector of parameters."""
    checkpointer = train.Checkpointer(folder)
    state = train.fit(
        parallel("jit"),
        start(np.float32),
        rows or batches(),
        total_steps=steps,
        checkpointer=checkpointer,
        config={},
        checkpoint_every=100,
        log_every=2,
        eval_every=3,
        # Another value in each process: those of the first must count, or they would keep different steps as the best.
        evaluate=lambda state: {"figure": (int(state.step) - 4) * (1 - 2 * jax.process_index())},
        best_metric="figure",
        writers=(train.JsonlWriter(folder),) if jax.process_index() == 0 else (),
    )
    checkpointer.close()
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.params)])


class Signalled:
    """Batches; the second process gets SIGTERM while it reads the third."""

    def __init__(self):
        self.batches, self.count = batches(), 0
        self.get_state, self.set_state = self.batches.get_state, self.batches.set_state

    def __next__(self):
        self.count += 1
        if self.count == 3 and jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return next(self.batches)


def main(coordinator: str, process: int, folder: pathlib.Path) -> None:
    train.connect(coordinator, processes=2, process=process)
    results = {}
    for mode, dtype in RUNS:
        vector, losses = ten_steps(mode, dtype)
        results |= {f"{mode}_{np.dtype(dtype)}": vector, f"{mode}_{np.dtype(dtype)}_losses": losses}
    results["figures"] = np.array(json.dumps(evaluations()))
    results["whole"] = fit(folder / "whole", 6)
    try:
        fit(folder / "parts", 6, Signalled())
    except SystemExit as stop:
        results["stopped"] = np.array(stop.code)
    results["parts"] = fit(folder / "parts", 6)
    np.savez(folder / f"process{process}.npz", **results)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]))
