"""What test_two_processes.py runs alone and in each of two processes:
python -m tests.train.two_processes COORDINATOR PROCESS FOLDER."""

import functools
import os
import pathlib
import signal
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments import classification
from experiments.config import Augmentation, Config, Digits
from jaxvision import data, train
from jaxvision.layers.convolution import Conv, Dense
from jaxvision.layers.norm import BatchNorm

BATCH, STEPS = 16, 10
RUNS = (("jit", np.float32), ("jit", np.float64), ("pmap", np.float64))  # each is compiled anew, which takes the time
CONFIG = Config(data=Digits(), model="resnet18", augmentation=Augmentation(cutmix=1.0), label_smoothing=0.1)
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

    def __getitem__(self, index):
        image = np.random.default_rng(int(index)).integers(0, 200, (12, 12, 3)).astype(np.uint8)
        image[..., int(index) % 3] += 40
        return {"image": image, "label": int(index) % 3}


def batches():
    return data.classification_batches(
        Pictures(),
        batch_size=BATCH // jax.process_count(),
        image_size=(12, 12),
        mean=(0.4,) * 3,
        std=(0.25,) * 3,
        seed=3,
        shuffle=True,
        repeat=True,
        transforms=(data.flip_horizontal,),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def start(dtype):
    variables = Small().init(jax.random.key(0), jnp.zeros((1, 12, 12, 3)))
    state = train.create_state(jax.random.key(1), variables, TX, ema=True)
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)


@functools.cache
def parallel(mode, count=None):
    axis_name = train.AXIS if mode == "pmap" else None
    grad_fn = train.value_and_grads(classification.loss_of(CONFIG, Small(axis_name=axis_name)))
    if mode == "pmap":
        grad_fn = train.mean_over(grad_fn, train.AXIS)
    return train.parallelize(
        train.make_train_step(grad_fn, TX, ema_decay=0.9), mode=mode, devices=jax.devices()[:count]
    )


def ten_steps(mode, dtype, count=None):
    """All parameters, statistics, momenta and averages as one vector, and the loss of each step."""
    with jax.enable_x64(dtype == np.float64):
        way, rows, losses = parallel(mode, count), batches(), []
        state = way.shard_state(start(dtype))
        for _ in range(STEPS):
            batch = next(rows)
            state, metrics = way.step(state, way.shard_batch({**batch, "images": batch["images"].astype(dtype)}))
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
    results["whole"] = fit(folder / "whole", 6)
    try:
        fit(folder / "parts", 6, Signalled())
    except SystemExit as stop:
        results["stopped"] = np.array(stop.code)
    results["parts"] = fit(folder / "parts", 6)
    np.savez(folder / f"process{process}.npz", **results)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]))
