"""Training as composition: gradient functions and their transforms, a pure step, devices, checkpoints, a loop."""

from jaxvision.train.checkpoint import Checkpointer, Restored, load_variables
from jaxvision.train.lock import locked
from jaxvision.train.loop import Batches, NonFiniteLossError, fit
from jaxvision.train.mixing import cutmix, mixup
from jaxvision.train.optim import matching, optimizer, schedule
from jaxvision.train.parallel import AXIS, Parallel, parallelize, per_device
from jaxvision.train.processes import connect, gather
from jaxvision.train.state import TrainState, create_state, state_variables
from jaxvision.train.step import accumulate, make_train_step, mean_over, value_and_grads
from jaxvision.train.writers import JsonlWriter, TensorBoardWriter, Writer

__all__ = [
    "AXIS",
    "Batches",
    "Checkpointer",
    "JsonlWriter",
    "NonFiniteLossError",
    "Parallel",
    "Restored",
    "TensorBoardWriter",
    "TrainState",
    "Writer",
    "accumulate",
    "connect",
    "create_state",
    "cutmix",
    "fit",
    "gather",
    "load_variables",
    "locked",
    "make_train_step",
    "matching",
    "mean_over",
    "mixup",
    "optimizer",
    "parallelize",
    "per_device",
    "schedule",
    "state_variables",
    "value_and_grads",
]
