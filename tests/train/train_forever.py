"""A small training run for test_loop.py to kill: python -m tests.train.train_forever FOLDER STEPS."""

import sys
import time

import jax

from jaxvision.train.checkpoint import Checkpointer
from jaxvision.train.loop import fit
from jaxvision.train.optim import optimizer
from jaxvision.train.parallel import parallelize
from jaxvision.train.step import make_train_step, value_and_grads
from jaxvision.train.writers import JsonlWriter
from tests.train.task import Batches, Net, make_loss_fn, make_state


class SlowBatches(Batches):
    def __next__(self):
        time.sleep(0.02)
        return super().__next__()


def run(folder, steps, *, batches):
    tx = optimizer("sgd", learning_rate=0.1)
    step = make_train_step(value_and_grads(make_loss_fn(Net(), noise=0.1)), tx)
    return fit(
        parallelize(step, devices=jax.devices()[:1]),
        make_state(tx),
        batches,
        total_steps=steps,
        checkpointer=Checkpointer(folder),
        config={},
        checkpoint_every=5,
        log_every=2,
        writers=[JsonlWriter(folder)],
    )


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), batches=SlowBatches())
    print("finished")
