"""A small training for test_random_moments.py to hurt: python -m tests.train.fragile FOLDER STEPS FULL.

While the file FULL exists, writing a checkpoint fails as on a full disk: for machines that lend no small one."""

import errno
import os
import pathlib
import sys
import time

import jax
import optax
import orbax.checkpoint

from experiments.command import script
from jaxvision.train.checkpoint import Checkpointer
from jaxvision.train.lock import locked
from jaxvision.train.loop import fit
from jaxvision.train.optim import optimizer
from jaxvision.train.parallel import parallelize
from jaxvision.train.state import state_variables
from jaxvision.train.step import make_train_step, value_and_grads
from jaxvision.train.writers import JsonlWriter, TensorBoardWriter
from tests.train.task import Batches, Net, make_batch, make_loss_fn, make_state

TX = optimizer("adamw", learning_rate=0.03)


class SlowBatches(Batches):
    def __next__(self):
        time.sleep(0.03)
        return super().__next__()


def evaluate(state):
    """On other examples; it goes up and down, so that the best step is not the last."""
    batch = make_batch(12345, 64)
    logits = Net().apply(jax.device_get(state_variables(state)), batch["x"])
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()
    return {"score": float(loss) * (int(state.step) % 5 - 2)}


def fail_when(path):
    """Let Orbax fail as on a full disk where the file is."""
    save = orbax.checkpoint.Checkpointer.save

    def full(*args, **options):
        if path.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(*args, **options)

    orbax.checkpoint.Checkpointer.save = full


def run(folder, steps):
    step = make_train_step(value_and_grads(make_loss_fn(Net(), noise=0.1)), TX, ema_decay=0.9)
    with locked(folder):
        checkpointer = Checkpointer(folder / "checkpoints")
        fit(
            parallelize(step, devices=jax.devices()[:1]),
            make_state(TX, ema=True),
            SlowBatches(),
            total_steps=steps,
            checkpointer=checkpointer,
            config={"steps": steps},
            checkpoint_every=4,
            log_every=1,
            eval_every=6,
            evaluate=evaluate,
            check=evaluate,
            best_metric="score",
            writers=(JsonlWriter(folder), TensorBoardWriter(folder / "tensorboard")),
        )
        checkpointer.close()


@script
def main():
    folder, steps, full = sys.argv[1:]
    fail_when(pathlib.Path(full))
    run(pathlib.Path(folder), int(steps))
    print("finished")


if __name__ == "__main__":
    main()
