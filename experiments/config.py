"""What an experiment is made of, as typed values; ``train.py --help`` shows every field."""

import dataclasses
import importlib
import json
import os
import pkgutil
from pathlib import Path
from typing import Any, Literal

import jax

from experiments import configs
from jaxvision.data.voc import VOC_CATEGORIES


@dataclasses.dataclass(frozen=True)
class DigitScenes:
    """Handwritten digits in photographs, made on this machine (jaxvision.data.digit_scenes)."""

    directory: Path | None = None
    """Where the prepared set lies; $JAXVISION_DATASETS or ./datasets by default."""


@dataclasses.dataclass(frozen=True)
class Digits:
    """scikit-learn's handwritten digits as they are, 8x8 pixels: 1,437 to train, 360 to test."""


@dataclasses.dataclass(frozen=True)
class DigitCrops:
    """The same digits in colour over photographs, 64x64 pixels (jaxvision.data.DigitCrops)."""


@dataclasses.dataclass(frozen=True)
class Tfds:
    """A set of TensorFlow Datasets that was prepared as array_record (PreparedImages, PreparedDetection)."""

    name: str
    """As TFDS has it, such as "cifar10", "imagenet2012:5.1.0" or, for detectors, "coco/2017" and "voc/2007"."""
    train_split: str = "train"
    val_split: str = "test"
    """Of "coco/2017" take "validation": its test split has no annotations."""
    directory: Path | None = None
    """Where the prepared set lies; $JAXVISION_DATASETS or ./datasets by default."""


@dataclasses.dataclass(frozen=True)
class Coco:
    """A data set in COCO format: folders of images and JSON files of annotations."""

    train_images: Path
    train_annotations: Path
    val_images: Path | None = None
    """Validation images; without them the training images validate, which shows overfitting and nothing else."""
    val_annotations: Path | None = None
    limit: int | None = None
    """Take the first so many training images only."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do about a bad image or annotation; either way it is named."""


@dataclasses.dataclass(frozen=True)
class Voc:
    """PASCAL VOC as its archives unpack (jaxvision.data.VocDetection)."""

    devkit: Path
    """The folder that has VOC2007 and the like in it."""
    train: tuple[str, ...] = ("VOC2007/trainval", "VOC2012/trainval")
    val: tuple[str, ...] = ("VOC2007/test",)
    categories: tuple[str, ...] = VOC_CATEGORIES
    """The names of the classes in label order; VOC's twenty by default."""
    on_error: Literal["raise", "skip"] = "raise"


@dataclasses.dataclass(frozen=True)
class Folders:
    """Images sorted into one folder a class."""

    train: Path
    val: Path
    on_error: Literal["raise", "skip"] = "raise"


@dataclasses.dataclass(frozen=True)
class SelectiveSearch:
    """Regions for the detectors that are given them (jaxvision.data.selective_search)."""

    max_regions: int = 0
    """Regions an image at most; 0 is for detectors that propose their own."""
    mode: Literal["fast", "quality"] = "fast"
    min_side: int = 0
    """Leave out regions with a shorter side, in pixels."""
    directory: Path | None = None
    """Where the regions found are kept, $JAXVISION_DATASETS/regions or ./datasets/regions by default."""


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes to training examples; 0 or (1, 1) leaves a part out."""

    flip: float = 0.5
    """Probability of a horizontal flip."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of a random enlargement; what no longer fits is cropped away at random."""
    crop_area: tuple[float, float] = (1.0, 1.0)
    """Range of the share of the image that a random window of random aspect covers, which is then resized to the
    network's size; ImageNet classifiers take (0.08, 1). Replaces scale."""
    colour: float = 0.0
    """Strength of random brightness, contrast and saturation."""
    mixup: float = 0.0
    """Alpha of mixup, for classifiers. With cutmix as well, a coin decides for each batch."""
    cutmix: float = 0.0
    """Alpha of cutmix, for classifiers."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """See jaxvision.train.optim."""

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.02
    """At the configured batch size."""
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    milestones: tuple[int, ...] = ()
    """Steps at which the step schedule divides the rate by ten."""
    warmup_steps: int = 100
    momentum: float = 0.9
    weight_decay: float = 1e-4
    """Of the kernels."""
    decay_all: bool = False
    """Decay biases and the scales of norms as well."""
    clip_norm: float | None = None
    freeze: tuple[str, ...] = ()
    """Regular expressions of parameter paths that do not train, such as "backbone/(conv1|bn1|layer1)"; "(?!fc/)" is
    everything but the head of a ResNet. Statistics of batch norm move all the same."""
    ema_decay: float | None = None
    """Evaluate, keep and predict with a moving average of the parameters instead of the last ones."""


@dataclasses.dataclass(frozen=True)
class Distributed:
    """Several processes: start the same command in each, with its own number."""

    coordinator: str | None = None
    """host:port of process 0, such as localhost:1234; "auto" asks JAX's environment variables or the cluster. None is
    one process alone."""
    processes: int | None = None
    """How many there are."""
    process: int | None = None
    """Which one this is, from 0."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run. The same command resumes it where it stopped."""

    data: DigitScenes | Digits | DigitCrops | Tfds | Coco | Voc | Folders
    model: str
    """A name from jaxvision.list_models()."""
    model_options: dict[str, int | float | bool | str | tuple[float, ...]] = dataclasses.field(default_factory=dict)
    """Keyword arguments of the model's factory."""
    weights: str | None = None
    """Weights to start from: the name of a record or a file; layers of another class count start afresh."""
    backbone_weights: str | None = None
    """Weights of a detector's backbone alone, such as "resnet50/IMAGENET1K_V2"."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    image_size: tuple[tuple[int, int], ...] = ((800, 1344), (1344, 800))
    """Height and width of the shapes that images are shrunk to fit and padded to, each the one whose aspect is nearest;
    a batch has one shape, and each compiles once. Classifiers take one."""
    resize: tuple[int, int] | None = None
    """Shorter and longest side that detection images are first resized to; None only shrinks what does not fit."""
    eval_crop: float = 1.0
    """Classifiers validate on the middle of the image, this share of its shorter side: 0.875 for 224 pixels of 256."""
    max_objects: int = 100
    """Objects an image at most; of more the largest stay, and the number dropped is logged."""
    mask_side: int | None = 112
    """Cells a side of the masks that train, each on its object's own box; None for planes of the whole image."""
    selective_search: SelectiveSearch = SelectiveSearch()
    augmentation: Augmentation = Augmentation()
    label_smoothing: float = 0.0
    """Share of the uniform distribution in the labels of classifiers."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in while it trains; parameters, losses and evaluation are float32 in any case."""
    batch_size: int = 16
    """Images a step, over all devices and processes."""
    accumulate: int = 1
    """Split each batch in so many parts, one after the other, to save memory."""
    steps: int = 90_000
    optimizer: Optimizer = Optimizer()
    eval_every: int = 5_000
    eval_images: int | None = None
    """Validate on the first so many images while training; the end always takes all."""
    eval_batch_size: int = 8
    """Images a device at a time in validation."""
    best_metric: str | None = None
    """The validation figure by which the best checkpoint is kept, such as "bbox/AP"."""
    checkpoint_every: int = 1_000
    log_every: int = 20
    parallel: Literal["jit", "pmap"] = "jit"
    devices: int | None = None
    """Use the first so many devices; all by default, and with several processes."""
    distributed: Distributed = Distributed()
    workers: int = 2
    """Threads that read data, in each process that reads."""
    worker_processes: int = 0
    """Processes that read data besides this one, where threads do not keep the devices busy; 0 reads in this one."""
    output: Path = Path("runs/default")
    seed: int = 0
    pictures: int = 8
    """Validation images to draw at the end."""


def available() -> dict[str, tuple[str, Config]]:
    """Every module of ``experiments/configs``: its name, first docstring line and config."""
    found = {}
    for info in pkgutil.iter_modules(configs.__path__):
        module = importlib.import_module(f"experiments.configs.{info.name}")
        found[info.name] = (module.__doc__.strip().splitlines()[0], module.config())
    return found


def to_json(config: Any) -> dict[str, Any]:
    """The config as plain values; ``type`` names the class of a dataclass."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    nested = {name: to_json(value) if dataclasses.is_dataclass(value) else value for name, value in fields.items()}
    return json.loads(json.dumps({"type": type(config).__name__, **nested}, default=str))


def from_json(values: dict[str, Any]) -> Any:
    """The inverse of ``to_json``.

    Raises: ValueError naming a class or field that this version does not know.
    """
    values = dict(values)
    sets = (DigitScenes, Digits, DigitCrops, Tfds, Coco, Voc, Folders)
    parts = (Config, *sets, SelectiveSearch, Augmentation, Optimizer, Distributed)
    kinds = {kind.__name__: kind for kind in parts}
    kind = kinds.get(values.pop("type", None))
    if kind is None:
        raise ValueError(f"no config of a known type, which are {sorted(kinds)}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(values.keys() - fields.keys()):
        raise ValueError(f"{kind.__name__} has no fields {unknown}; was the run made by another version?")

    def value_of(name: str, value: Any) -> Any:
        if isinstance(value, dict) and "type" in value:
            return from_json(value)
        if isinstance(value, dict):
            return {key: _tuples(item) for key, item in value.items()}
        if isinstance(value, list):
            return _tuples(value)
        return Path(value) if isinstance(value, str) and "Path" in str(fields[name].type) else value

    return kind(**{name: value_of(name, value) for name, value in values.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def use_compilation_cache() -> None:
    """Keep compiled programs on disk, so that only the first run waits for them."""
    if not jax.config.jax_compilation_cache_dir:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(root / "jaxvision" / "compiled"))
