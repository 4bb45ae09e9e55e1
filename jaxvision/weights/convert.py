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

import dataclasses
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
IGNORED = ("num_batches_tracked", "n_averaged")  # torch counts batches and averages; nothing of ours needs them
FLOATS = ("float16", "bfloat16", "float32", "float64")
LISTED = 6  # keys of each kind that an error lists

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
    """How a state dict fits a model: the leaves that it has, by path, and all that stands in the way.

    wrong: key and fault of each array of the right shape that holds no weights. shapes: of all that was given, by its
    present name.
    """

    leaves: dict[Path, jax.Array]
    missing: list[tuple[Path, str]]
    unused: list[str]
    misshapen: list[Misshapen]
    wrong: list[tuple[str, str]]
    shapes: dict[str, tuple[int, ...]]

    @property
    def exact(self) -> bool:
        return not (self.missing or self.unused or self.misshapen or self.wrong)


def from_torch(model: str | nn.Module, state_dict: Mapping[str, Any], *, allow_nonfinite: bool = False) -> Variables:
    """Variables of the model (a registered name, or a module) from arrays under torch's own keys.

    Arrays may be numpy's, JAX's or torch's, of float16, bfloat16, float32 or float64. Leaves become float32; float64
    stays so under ``jax.enable_x64``. allow_nonfinite: take NaN and infinite numbers too.

    Raises: ValueError that counts all missing, unused, misshapen and meaningless arrays, lists the first of each kind,
    and names the registered models that they would fit.
    """
    module = registry.get_model(model) if isinstance(model, str) else model
    found = match(module, state_dict, allow_nonfinite=allow_nonfinite)
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
        more = [f"  and {len(different) - LISTED} more"] * (len(different) > LISTED)
        raise ValueError(
            "\n".join([f"these are no variables of {type(module).__name__}; see", *different[:LISTED], *more])
        )
    return {
        key: np.asarray(leaves[path]).transpose(np.argsort(_axes(path, leaves[path].ndim)))
        for path, key in torch_keys(module, leaves).items()
    }


def match(module: nn.Module, state_dict: Mapping[str, Any], *, allow_nonfinite: bool = False) -> Match:
    """How the state dict fits the model."""
    wanted = template(module)
    keys = torch_keys(module, wanted)
    given = {current_name(module, key): value for key, value in state_dict.items() if not key.endswith(IGNORED)}
    leaves, misshapen, wrong = {}, [], []
    for path, key in keys.items():
        if key not in given:
            continue
        value = _as_numpy(given[key])
        if value.ndim == len(wanted[path].shape):
            value = value.transpose(_axes(path, value.ndim))
        if value.shape != wanted[path].shape:
            misshapen.append(Misshapen(path, key, wanted[path].shape, value))
        elif fault := unfit(value, allow_nonfinite=allow_nonfinite):
            wrong.append((key, fault))
        else:
            leaves[path] = as_leaf(value)
    missing = [(path, key) for path, key in keys.items() if key not in given]
    shapes = {key: np.shape(value) for key, value in given.items()}
    return Match(leaves, missing, sorted(given.keys() - set(keys.values())), misshapen, wrong, shapes)


def unfit(value: np.ndarray, *, allow_nonfinite: bool) -> str | None:
    """Why the array can be no weights, or None."""
    if value.dtype.name not in FLOATS:
        return f"is {value.dtype}, expected one of {FLOATS}"
    with np.errstate(over="ignore"):
        good = value.size if allow_nonfinite else int(np.isfinite(value.astype(leaf_dtype(value), copy=False)).sum())
    if good < value.size:
        return f"holds {value.size - good} of {value.size} numbers that are NaN, infinite or too large for float32"
    return None


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
    return _shapes(module, template(module))


def _shapes(module: nn.Module, leaves: Mapping[Path, Any]) -> dict[str, tuple[int, ...]]:
    """Torch's keys and shapes of some of the module's leaves."""
    return {
        key: tuple(leaves[path].shape[axis] for axis in np.argsort(_axes(path, leaves[path].ndim)))
        for path, key in torch_keys(module, leaves).items()
    }


def current_name(module: nn.Module, key: str) -> str:
    """Torch's key today for that of an older checkpoint of the model."""
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


def leaf_dtype(value: np.ndarray) -> Any:
    """float32, or float64 if the array is and may be."""
    return np.float64 if value.dtype == np.float64 and jax.config.jax_enable_x64 else np.float32


def as_leaf(value: np.ndarray) -> jax.Array:
    """The array of floats for JAX."""
    with np.errstate(over="ignore"):
        return jnp.asarray(value, leaf_dtype(value))


def misfit(module: nn.Module, found: Match) -> str:
    """The error text for a state dict that does not fit, with a remedy."""
    listed = {
        "missing": [f"{key} (for {'/'.join(path)})" for path, key in found.missing],
        "unused": found.unused,
        "shape": [
            f"{item.key} is {item.value.shape}, expected {item.wanted} (for {'/'.join(item.path)})"
            for item in found.misshapen
        ],
        "value": [f"{key} {fault}" for key, fault in found.wrong],
    }
    lines = [f"the state dict does not fit {type(module).__name__}:"]
    for kind, items in listed.items():
        lines += [f"  {kind}: {item}" for item in items[:LISTED]]
        lines += [f"  {kind}: {len(items) - LISTED} more"] * (len(items) > LISTED)
    return "\n".join([*lines, _remedy(module, found)])


def head_paths(module: nn.Module) -> set[Path]:
    """The leaves whose shape depends on the number of classes, of the module or of modules that are its fields."""
    wanted, other = template(module), template(_with_another_class(module))
    return {path for path in wanted if path in other and other[path].shape != wanted[path].shape}


def class_counts(module: nn.Module) -> set[int]:
    """The numbers of classes that the module and the modules that are its fields have; none for features only."""
    counts = {getattr(module, "num_classes", 0)} - {0}
    return counts.union(*(class_counts(value) for value in _fields(module).values() if isinstance(value, nn.Module)))


def _with_another_class(module: nn.Module) -> nn.Module:
    changes = {}
    for name, value in _fields(module).items():
        if isinstance(value, nn.Module):
            changes[name] = _with_another_class(value)
        elif name == "num_classes" and value:
            changes[name] = value + 1
    return module.clone(**changes) if changes else module


def _fields(module: nn.Module) -> dict[str, Any]:
    return {
        field.name: getattr(module, field.name)
        for field in dataclasses.fields(module)
        if field.name not in ("parent", "name")
    }


def _remedy(module: nn.Module, found: Match) -> str:
    if found.missing or found.unused:
        return _other_models(found.shapes)
    if not found.misshapen:
        return (
            "Weights are finite floating point numbers: this checkpoint is damaged, quantised, or of a training that "
            "diverged. allow_nonfinite=True takes NaN and infinite numbers."
        )
    names = ", ".join(dict.fromkeys(item.key.rpartition(".")[0] for item in found.misshapen))
    heads = head_paths(module)
    if all(item.other_outputs and item.path in heads for item in found.misshapen):
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
    return _other_models(found.shapes)


def _other_models(shapes: Mapping[str, tuple[int, ...]]) -> str:
    exact, other_classes = [], []
    for name in registry.list_models():
        if (heads := _other_heads(name, shapes)) is not None:
            (other_classes if heads else exact).append(name)
    for wording, names in (("it", exact), ("with its num_classes it", other_classes)):
        if names:
            return f"It is the checkpoint of another model or of other options: {wording} would fit {_some(names)}."
    return (
        "Is it the checkpoint of another model, or of another variant of this one? None of the "
        f"{len(registry.list_models())} registered models, built without options, has its keys and shapes."
    )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return " or ".join(names[:LISTED]) + more


class _Unlike(Exception):
    pass


def _other_heads(name: str, shapes: Mapping[str, tuple[int, ...]]) -> set[str] | None:
    """The keys of another number of classes if the registered model has these keys, and else these shapes; or None.

    Its layers are traced until one has another name or other inputs, so that most models take milliseconds.
    """
    try:
        module = registry.get_model(name)
    except TypeError:  # a factory that must be given options
        return None
    given = {current_name(module, key): shape for key, shape in shapes.items()}

    def compare(call: Any, arguments: Any, options: Any, context: nn.module.InterceptorContext) -> Any:
        outputs, layer = call(*arguments, **options), context.module
        for collection, tree in layer.variables.items():
            paths = {(collection, *layer.path, leaf): value for leaf, value in tree.items() if hasattr(value, "shape")}
            if any(
                shape[1:] != given.get(key, ())[1:] or key not in given for key, shape in _shapes(module, paths).items()
            ):
                raise _Unlike
        return outputs

    try:
        with nn.intercept_methods(compare):
            wanted = template(module)
    except _Unlike:
        return None
    wanted_shapes = _shapes(module, wanted)
    different = {key for key, shape in wanted_shapes.items() if given.get(key) != shape}
    if wanted_shapes.keys() != given.keys():
        return None
    if different:
        keys = torch_keys(module, wanted)
        if different - {keys[path] for path in head_paths(module)}:
            return None
    return different
