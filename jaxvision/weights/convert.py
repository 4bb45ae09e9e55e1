"""The one converter between our variables and torch's state dicts, driven by names.

From our path to torch's key: join the modules with dots, apply the module class's ``torch_names``, turn every
``_<digits>`` into ``.<digits>`` (``layer1_0.downsample_1`` becomes ``layer1.0.downsample.1``), and add the leaf:

    kernel             weight          HWIO from OIHW, (in, out) from (out, in)
    transposed_kernel  weight          [h, w, in, out] from [in, out, h, w]
    scale, bias        weight, bias
    mean, var          running_mean, running_var

A module class states its exceptions in class attributes, of which only the outermost module's count: ``torch_names``,
(regular expression, replacement) pairs for our dotted path, which write ``__1`` where torch's key has ``_1``; and
``torch_legacy_names``, pairs for keys of older checkpoints.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxvision import registry
from jaxvision.typing import Variables

LEAVES = {
    "kernel": "weight",
    "transposed_kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
IGNORED = "num_batches_tracked"  # torch counts batches; nothing of ours needs it

Path = tuple[str, ...]


class Misshapen(NamedTuple):
    """A leaf whose array has another shape than the model wants; both in our axis order."""

    path: Path
    key: str
    wanted: tuple[int, ...]
    value: np.ndarray

    @property
    def other_outputs(self) -> bool:
        """Whether only the number of outputs differs, as it does in the head of a model for other classes."""
        found = self.value.shape
        return len(self.wanted) == len(found) and self.wanted[:-1] == found[:-1]

    @property
    def other_inputs(self) -> bool:
        """Whether only the number of input channels differs, as it does in the stem of a model for other images."""
        found = self.value.shape
        return len(self.wanted) == len(found) == 4 and (*self.wanted[:2], self.wanted[3]) == (*found[:2], found[3])


class Match(NamedTuple):
    """How a state dict fits a model: the leaves that it has, by path, and all that stands in the way."""

    leaves: dict[Path, jax.Array]
    missing: list[tuple[Path, str]]
    unused: list[str]
    misshapen: list[Misshapen]

    @property
    def exact(self) -> bool:
        return not (self.missing or self.unused or self.misshapen)


def from_torch(model: str | nn.Module, state_dict: Mapping[str, Any]) -> Variables:
    """Variables of the model (a registered name, or a module) from arrays under torch's own keys.

    Arrays may be numpy's, JAX's or torch's. Float leaves become float32; float64 stays so under ``jax.enable_x64``.

    Raises: ValueError that lists every missing, unused and misshapen key.
    """
    module = registry.get_model(model) if isinstance(model, str) else model
    found = match(module, state_dict)
    if not found.exact:
        raise ValueError(misfit(module, found))
    return unflatten_dict(found.leaves)


def to_torch(model: str | nn.Module, variables: Variables) -> dict[str, np.ndarray]:
    """The inverse of ``from_torch``: numpy arrays under torch's keys.

    Where torch is, ``{key: torch.from_numpy(array.copy()) for key, array in state.items()}`` is what ``torch.save`` and
    ``load_state_dict`` take. (torchvision's MNASNet also wants the attribute ``_metadata`` of its own state dict.)

    Raises: ValueError if the variables are not the model's.
    """
    module = registry.get_model(model) if isinstance(model, str) else model
    leaves, wanted = flatten_dict(variables), template(module)
    different = [
        f"  {'/'.join(path)}"
        for path in sorted(wanted.keys() | leaves.keys())
        if path not in wanted or path not in leaves or leaves[path].shape != wanted[path].shape
    ]
    if different:
        raise ValueError("\n".join([f"these are no variables of {type(module).__name__}; see", *different]))
    return {
        key: np.asarray(leaves[path]).transpose(np.argsort(_axes(path, leaves[path].ndim)))
        for path, key in torch_keys(module, leaves).items()
    }


def match(module: nn.Module, state_dict: Mapping[str, Any]) -> Match:
    """How the state dict fits the model."""
    wanted = template(module)
    keys = torch_keys(module, wanted)
    given = {_current_name(module, key): value for key, value in state_dict.items() if not key.endswith(IGNORED)}
    leaves, misshapen = {}, []
    for path, key in keys.items():
        if key not in given:
            continue
        value = _as_numpy(given[key])
        if value.ndim == len(wanted[path].shape):
            value = value.transpose(_axes(path, value.ndim))
        if value.shape == wanted[path].shape:
            leaves[path] = as_leaf(value)
        else:
            misshapen.append(Misshapen(path, key, wanted[path].shape, value))
    missing = [(path, key) for path, key in keys.items() if key not in given]
    return Match(leaves, missing, sorted(given.keys() - set(keys.values())), misshapen)


def template(module: nn.Module) -> dict[Path, jax.ShapeDtypeStruct]:
    """Shapes of the model's variables by path, without computing anything."""
    return flatten_dict(jax.eval_shape(module.init, jax.random.key(0), registry.example_images(module)))


def torch_keys(module: nn.Module, paths: Mapping[Path, Any]) -> dict[Path, str]:
    """Torch's key for each of our paths (collection, modules …, leaf).

    Raises: ValueError if two paths have the same key, which is a fault of the module's ``torch_names``.
    """
    keys = {}
    for path in paths:
        name = ".".join(path[1:-1])
        for pattern, replacement in getattr(module, "torch_names", ()):
            name = re.sub(pattern, replacement, name)
        name = re.sub(r"(?<!_)_(\d+)(?=[._]|$)", r".\1", name).replace("__", "_")
        leaf = LEAVES.get(path[-1], path[-1])
        keys[path] = f"{name}.{leaf}" if name else leaf
    twice = sorted({key for key in keys.values() if list(keys.values()).count(key) > 1})
    if twice:
        raise ValueError(f"the names of {type(module).__name__} give two leaves the torch keys {twice}")
    return keys


def torch_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The keys and shapes of the model's state dict, without computing anything."""
    wanted = template(module)
    return {
        key: tuple(np.take(wanted[path].shape, np.argsort(_axes(path, wanted[path].ndim))).tolist())
        for path, key in torch_keys(module, wanted).items()
    }


def _current_name(module: nn.Module, key: str) -> str:
    for pattern, replacement in getattr(module, "torch_legacy_names", ()):
        key = re.sub(pattern, replacement, key)
    return key


def _axes(path: Path, ndim: int) -> tuple[int, ...]:
    """The order in which our leaf takes the axes of torch's."""
    spatial = range(2, ndim)
    match path[-1]:
        case "kernel":
            return (*spatial, 1, 0)
        case "transposed_kernel":
            return (*spatial, 0, 1)
    return tuple(range(ndim))


def _as_numpy(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a torch tensor; numpy cannot take its bfloat16
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    return np.asarray(value)


def as_leaf(value: np.ndarray) -> jax.Array:
    """The array for JAX: floats as float32, or as float64 if they are and may be."""
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return jnp.asarray(value)
    return jnp.asarray(value, np.float64 if value.dtype == np.float64 and jax.config.jax_enable_x64 else np.float32)


def misfit(module: nn.Module, found: Match) -> str:
    """The error text for a state dict that does not fit, with a remedy."""
    lines = [f"the state dict does not fit {type(module).__name__}:"]
    lines += [f"  missing: {key} (for {'/'.join(path)})" for path, key in found.missing]
    lines += [f"  unused: {key}" for key in found.unused]
    lines += [
        f"  shape: {item.key} is {item.value.shape}, expected {item.wanted} (for {'/'.join(item.path)})"
        for item in found.misshapen
    ]
    return "\n".join([*lines, _remedy(found)])


def _remedy(found: Match) -> str:
    other_model = "Is it the checkpoint of another model, or of another variant of this one?"
    if found.missing or found.unused:
        return other_model
    names = ", ".join(dict.fromkeys(item.key.rpartition(".")[0] for item in found.misshapen))
    if all(item.other_outputs for item in found.misshapen):
        return (
            f"Only the number of outputs of {names} differs: the checkpoint was made for other classes. Build the "
            "model with its number, get_model(name, num_classes=...), or let load_weights(model, weights, "
            "num_classes=...) start these layers anew."
        )
    if all(item.other_inputs for item in found.misshapen):
        return (
            f"Only the number of input channels of {names} differs: the checkpoint was made for other images. Let "
            "load_weights(model, weights, in_channels=...) adapt this layer."
        )
    return other_model
