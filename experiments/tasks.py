"""What a task is, and the table of them; ``train.py``, ``evaluate.py`` and ``predict.py`` know no more of it.

A task is a module with the functions of ``Task``. A new one is a file here and a row in ``TASKS``.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import numpy as np
from PIL import Image

from experiments.config import Config
from jaxvision.data.rows import Rows
from jaxvision.registry import model_task
from jaxvision.typing import Variables

TASKS = {
    "classification": "experiments.classification",
    "detection": "experiments.detection",
    "segmentation": "experiments.segmentation",
}


class Prediction(NamedTuple):
    """What was found in one image."""

    lines: list[str]  # a table for people
    picture: np.ndarray  # uint8 [h, w, 3]
    values: dict[str, Any]  # the same for programs, as JSON types
    files: dict[str, Image.Image] = {}  # further pictures, by what their file's name ends with


class Task(Protocol):
    """The functions of a task's module."""

    @staticmethod
    def sources(config: Config) -> tuple[Any, Any]:
        """The training and the validation source (``jaxvision.data.Source``), which agree on the classes.

        Raises: ValueError where the configured data lack the fields that the task needs.
        """

    @staticmethod
    def rows(config: Config) -> Rows:
        """What a batch holds of each example."""

    @staticmethod
    def loss_of(config: Config, model: nn.Module) -> Callable:
        """``loss_fn(params, model_state, batch, key) -> (loss, (metrics, model_state))``."""

    @staticmethod
    def evaluator(
        config: Config, model: nn.Module, source: Any, devices: Sequence[jax.Device] | None = None
    ) -> Callable[..., dict[str, float]]:
        """``evaluate(variables, images=None)``: figures and losses on the first so many validation images (all).

        The images are shared out over the processes and their devices (all those of this process by default), each is
        computed once, and every process gets the figures of all, which do not depend on how many took part.
        """

    @staticmethod
    def predictor(config: Config, model: nn.Module, variables: Variables, **options: Any) -> Callable[..., Prediction]:
        """``predict(image, example=None)``: what is in an image, uint8 [h, w, 3]; ``example`` is that of a source, if
        it comes from one. options: see the task's own."""


def task_of(model: str) -> Task:
    """The task of a registered model.

    Raises: ValueError for a model that is of none of the tasks here.
    """
    name = model_task(model)
    if name not in TASKS:
        raise ValueError(f"{model} is for {name}; there are experiments for {', '.join(TASKS)}")
    return importlib.import_module(TASKS[name])
