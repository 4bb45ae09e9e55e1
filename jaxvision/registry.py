"""The one table of models: ``register``, ``get_model``, ``list_models``; and what any model can be initialised with."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class Entry(NamedTuple):
    factory: Callable[..., nn.Module]
    task: str


_MODELS: dict[str, Entry] = {}


def register(*, task: str, name: str | None = None) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Decorates a factory, so that ``get_model`` finds it under ``name`` (its own name by default).

    Raises: ValueError if the name is taken.
    """

    def decorate(factory: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        key = name or factory.__name__
        if key in _MODELS:
            raise ValueError(f"a model named {key!r} is already registered")
        _MODELS[key] = Entry(factory, task)
        return factory

    return decorate


def get_model(name: str, **options: Any) -> nn.Module:
    """The registered model as a Linen module; ``options`` go to its factory (``num_classes=10``).

    Raises: ValueError with the nearest names if there is no such model, and for a number of classes or channels that
    no model can have; TypeError for an option that the model does not have, or a number that is no integer.
    """
    if not isinstance(name, str):
        raise TypeError(f"a model is named by a string, not by a {type(name).__name__}")
    entry = _entry(name)
    check_counts(options)
    if entry.task != "classification" and options.get("num_classes") == 0:
        raise ValueError(
            f"{name} is for {entry.task}: num_classes=0, which leaves out a classifier's head, must be at least 1"
        )
    try:
        return entry.factory(**options)
    except TypeError as error:
        raise TypeError(f"{name} with the options {sorted(options)}: {error}") from error


def check_counts(options: Mapping[str, Any]) -> None:
    """Raises: TypeError or ValueError unless ``num_classes`` is an integer from 0 and ``in_channels`` one from 1, where
    they are given."""
    for option, least in (("num_classes", 0), ("in_channels", 1)):
        value = options.get(option, least)
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"{option} is an integer, not {str(value)[:50]!r} of type {type(value).__name__}")
        if value < least:
            raise ValueError(f"{option}={value}, but it is at least {least}")


def list_models(*, task: str | None = None) -> list[str]:
    """Sorted names of the registered models, of one task (``"classification"``, ``"detection"``, ``"segmentation"``) or
    of all."""
    tasks = {entry.task for entry in _MODELS.values()}
    if task is not None and task not in tasks:
        raise ValueError(f"no models for task {task!r}; tasks are {sorted(tasks)}")
    return sorted(name for name, entry in _MODELS.items() if task in (None, entry.task))


def model_task(name: str) -> str:
    """The task a model is registered for."""
    return _entry(name).task


def example_images(model: nn.Module) -> jax.Array:
    """One black image of the model's ``in_channels`` and of a size that it can be initialised with: its class's
    ``init_size``, 64 pixels where it has none."""
    size = getattr(model, "init_size", 64)
    return jnp.zeros((1, size, size, getattr(model, "in_channels", 3)))


def _entry(name: str) -> Entry:
    if name not in _MODELS:
        near = difflib.get_close_matches(name, _MODELS, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are {sorted(_MODELS)}"
        raise ValueError(f"no model named {name!r}; {hint}")
    return _MODELS[name]
