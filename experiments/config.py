"""What an experiment is made of, as typed values; ``train.py --help`` shows every field."""

import dataclasses
import importlib
import inspect
import json
import os
import pkgutil
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

import jaxvision as jv
from experiments import configs
from experiments.classes import read_classes
from experiments.command import (
    ABOUT_ERRORS,
    ONCE,
    RISING,
    SOME,
    Area,
    Below1,
    Checked,
    Count,
    Finite,
    Inside,
    Name,
    NotNegative,
    Number,
    Pattern,
    Positive,
    Rule,
    Seed,
    Share,
    Side,
    aside,
    checked_after,
    shown,
)
from jaxvision.data.voc import VOC_CATEGORIES
from jaxvision.registry import model_task

Listing = Annotated[str, Rule('YEAR/LIST, such as "VOC2007/trainval"', re.compile(r"[^/]+/[^/]+").fullmatch)]
Address = Annotated[str, Rule('host:port or "auto"', re.compile(r"auto|.+:\d{1,5}").fullmatch)]
Enlargement = Annotated[float, Rule("above 0 and at most 10", lambda value: 0 < value <= 10)]
PixelLoss = Literal["cross_entropy", "focal", "hard_pixels", "dice", "lovasz", "boundary"]
MaskSide = Annotated[int, Rule("between 2 and 1024", lambda value: 2 <= value <= 1024)]


@dataclasses.dataclass(frozen=True)
class DigitScenes(Checked, prefix="--data."):
    """Handwritten digits in photographs, made on this machine (jaxvision.data.digit_scenes)."""

    directory: Path | None = None
    """Where the prepared set lies; $JAXVISION_DATASETS or ./datasets by default."""


@dataclasses.dataclass(frozen=True)
class Digits(Checked, prefix="--data."):
    """scikit-learn's handwritten digits as they are, 8x8 pixels: 1,437 to train, 360 to test."""


@dataclasses.dataclass(frozen=True)
class DigitCrops(Checked, prefix="--data."):
    """The same digits in colour over photographs, 64x64 pixels (jaxvision.data.DigitCrops)."""


@dataclasses.dataclass(frozen=True)
class Tfds(Checked, prefix="--data."):
    """A set of TensorFlow Datasets that was prepared as array_record (PreparedImages, PreparedDetection)."""

    name: Name
    """As TFDS has it, such as "cifar10", "imagenet2012:5.1.0" or, for detectors, "coco/2017" and "voc/2007"."""
    train_split: Name = "train"
    val_split: Name = "test"
    """Of "coco/2017" take "validation": its test split has no annotations."""
    directory: Path | None = None
    """Where the prepared set lies; $JAXVISION_DATASETS or ./datasets by default."""


@dataclasses.dataclass(frozen=True)
class Coco(Checked, prefix="--data."):
    """A data set in COCO format: folders of images and JSON files of annotations."""

    train_images: Path
    train_annotations: Path
    val_images: Path | None = None
    """Validation images; without them the training images validate, which shows overfitting and nothing else."""
    val_annotations: Path | None = None
    limit: Count | None = None
    """Take the first so many training images only."""
    on_error: Literal["raise", "skip"] = "raise"
    """What to do about a bad image or annotation; either way it is named."""

    def faults(self) -> Iterator[str]:
        given = {self.option(name): getattr(self, name) is not None for name in ("val_images", "val_annotations")}
        if len(set(given.values())) > 1:
            first, second = sorted(given, key=given.get, reverse=True)
            yield f"{first} needs {second} beside it"


@dataclasses.dataclass(frozen=True)
class Voc(Checked, prefix="--data."):
    """PASCAL VOC as its archives unpack (jaxvision.data.VocDetection)."""

    devkit: Path
    """The folder that has VOC2007 and the like in it."""
    train: Annotated[tuple[Listing, ...], SOME, ONCE] = ("VOC2007/trainval", "VOC2012/trainval")
    val: Annotated[tuple[Listing, ...], SOME, ONCE] = ("VOC2007/test",)
    categories: Annotated[tuple[Name, ...], SOME, ONCE] = VOC_CATEGORIES
    """The names of the classes in label order; VOC's twenty by default."""
    maps: Name = "SegmentationClass"
    """For segmenters, the folder of the maps of classes; "SegmentationClassAug" goes with the list "trainaug"."""
    on_error: Literal["raise", "skip"] = "raise"


@dataclasses.dataclass(frozen=True)
class Folders(Checked, prefix="--data."):
    """Images sorted into one folder a class."""

    train: Path
    val: Path
    on_error: Literal["raise", "skip"] = "raise"


@dataclasses.dataclass(frozen=True)
class Cityscapes(Checked, prefix="--data."):
    """Cityscapes as its archives unpack, with its 19 classes."""

    root: Path
    """The folder that has leftImg8bit and gtFine in it."""
    train: Name = "train"
    val: Name = "val"
    on_error: Literal["raise", "skip"] = "raise"


@dataclasses.dataclass(frozen=True)
class Maps(Checked, prefix="--data."):
    """Folders of pictures, and of PNG maps of classes with the same names."""

    train_images: Path
    train_maps: Path
    val_images: Path
    val_maps: Path
    classes: Path
    """A text file with the names of the classes, one a line, the first of class 0."""
    zero_is_none: bool = False
    """In the maps 0 is no class and 1 the first one, as in ADE20K; else 255 is none."""
    on_error: Literal["raise", "skip"] = "raise"

    def names(self) -> tuple[str, ...]:
        return read_classes(self.classes)


@dataclasses.dataclass(frozen=True)
class Panoptic(Checked, prefix="--data."):
    """COCO's panoptic annotations, of which the classes are learnt: JSON files, and folders of PNG segments."""

    train_images: Path
    train_annotations: Path
    train_maps: Path
    val_images: Path
    val_annotations: Path
    val_maps: Path
    category_ids: Annotated[tuple[int, ...], ONCE] = ()
    """Ids in the files of the classes that are learnt, in label order; all by default. Others are 255, unknown."""
    on_error: Literal["raise", "skip"] = "raise"


@dataclasses.dataclass(frozen=True)
class Data:
    """The data alone."""

    data: DigitScenes | Digits | DigitCrops | Tfds | Coco | Voc | Folders | Cityscapes | Maps | Panoptic


@dataclasses.dataclass(frozen=True)
class SelectiveSearch(Checked, prefix="--selective-search."):
    """Regions for the detectors that are given them (jaxvision.data.selective_search)."""

    max_regions: Number = 0
    """Regions an image at most; 0 is for detectors that propose their own."""
    mode: Literal["fast", "quality"] = "fast"
    min_side: Number = 0
    """Leave out regions with a shorter side, in pixels."""
    directory: Path | None = None
    """Where the regions found are kept, $JAXVISION_DATASETS/regions or ./datasets/regions by default."""


@dataclasses.dataclass(frozen=True)
class Augmentation(Checked, prefix="--augmentation."):
    """Random changes to training examples; 0 or (1, 1) leaves a part out."""

    flip: Share = 0.5
    """Probability of a horizontal flip."""
    scale: Annotated[tuple[Enlargement, Enlargement], RISING] = (1.0, 1.0)
    """Range of a random enlargement; what no longer fits is cropped away at random."""
    crop_area: Annotated[tuple[Area, Area], RISING] = (1.0, 1.0)
    """Range of the share of the image that a random window of random aspect covers, which is then resized to the
    network's size; ImageNet classifiers take (0.08, 1). Replaces scale."""
    colour: Share = 0.0
    """Strength of random brightness, contrast and saturation."""
    elastic: NotNegative = 0.0
    """Standard deviation, in pixels, of a random smooth bending (jaxvision.data.elastic), for segmenters."""
    mixup: NotNegative = 0.0
    """Alpha of mixup, for classifiers. With cutmix as well, a coin decides for each batch."""
    cutmix: NotNegative = 0.0
    """Alpha of cutmix, for classifiers."""


@dataclasses.dataclass(frozen=True)
class Optimizer(Checked, prefix="--optimizer."):
    """See jaxvision.train.optim."""

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Positive = 0.02
    """At the configured batch size."""
    schedule: Literal["constant", "cosine", "step", "poly"] = "cosine"
    milestones: Annotated[tuple[Count, ...], RISING, ONCE] = ()
    """Steps at which the step schedule divides the rate by ten."""
    warmup_steps: Number = 100
    momentum: Below1 = 0.9
    weight_decay: NotNegative = 1e-4
    """Of the kernels."""
    decay_all: bool = False
    """Decay biases and the scales of norms as well."""
    clip_norm: Positive | None = None
    """Largest norm of the gradient of all parameters; None clips nothing."""
    freeze: tuple[Pattern, ...] = ()
    """Regular expressions of parameter paths that do not train, such as "backbone/(conv1|bn1|layer1)"; "(?!fc/)" is
    everything but the head of a ResNet. Statistics of batch norm move all the same."""
    ema_decay: Inside | None = None
    """Evaluate, keep and predict with a moving average of the parameters instead of the last ones."""

    def faults(self) -> Iterator[str]:
        if self.schedule == "step" and not self.milestones:
            yield f"{self.option('milestones')} is empty, but the step schedule falls at nothing else"
        if self.milestones and self.schedule != "step":
            yield f"{self.option('milestones')} is {shown(self.milestones)}, but is for --optimizer.schedule step"
        if self.milestones and self.milestones[0] <= self.warmup_steps:
            yield (
                f"{self.option('milestones')} is {shown(self.milestones)}, and must be above "
                f"{self.option('warmup_steps')}, which is {self.warmup_steps}"
            )


@dataclasses.dataclass(frozen=True)
class Distributed(Checked, prefix="--distributed."):
    """Several processes: start the same command in each, with its own number."""

    coordinator: Address | None = None
    """host:port of process 0, such as localhost:1234; "auto" asks JAX's environment variables or the cluster. None is
    one process alone."""
    processes: Count | None = None
    """How many there are."""
    process: Number | None = None
    """Which one this is, from 0."""

    def faults(self) -> Iterator[str]:
        missing = [self.option(name) for name in ("processes", "process") if getattr(self, name) is None]
        if self.coordinator is None and len(missing) < 2:
            yield f"{self.option('coordinator')} is not given, and several processes meet there"
        elif self.coordinator not in (None, "auto") and missing:
            yield f"{self.option('coordinator')} is {self.coordinator}, but not {' nor '.join(missing)}"
        elif not missing and self.process >= self.processes:
            yield f"{self.option('process')} is {self.process}, and must be below the {self.processes} processes"


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """One training run. The same command resumes it where it stopped."""

    data: DigitScenes | Digits | DigitCrops | Tfds | Coco | Voc | Folders | Cityscapes | Maps | Panoptic
    model: str
    """A name from jaxvision.list_models()."""
    model_options: dict[str, int | float | bool | str | tuple[float, ...]] = dataclasses.field(default_factory=dict)
    """Keyword arguments of the model's factory; those of a config go with its own model."""
    weights: Name | None = None
    """Weights to start from: the name of a record or a file; layers of another class count start afresh."""
    backbone_weights: Name | None = None
    """Weights of the backbone alone, such as "resnet50/IMAGENET1K_V2"."""
    mean: tuple[Finite, Finite, Finite] = (0.485, 0.456, 0.406)
    """What networks take is (value / 255 - mean) / std, in the order of the channels."""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    channels: Literal["RGB", "BGR"] = "RGB"
    image_size: Annotated[tuple[tuple[Side, Side], ...], SOME, ONCE] = ((800, 1344), (1344, 800))
    """Height and width of the shapes that images are shrunk to fit and padded to, each the one whose aspect is nearest;
    a batch has one shape, and each compiles once. Classifiers take one."""
    resize: Annotated[tuple[Side, Side], RISING] | None = None
    """Shorter and longest side that detection images are first resized to; None only shrinks what does not fit."""
    eval_crop: Area = 1.0
    """Classifiers validate on the middle of the image, this share of its shorter side: 0.875 for 224 pixels of 256."""
    max_objects: Count = 100
    """Objects an image at most; of more the largest stay, and the number dropped is logged."""
    mask_side: MaskSide | None = 112
    """Cells a side of the masks that train, each on its object's own box; None for planes of the whole image."""
    selective_search: SelectiveSearch = SelectiveSearch()
    augmentation: Augmentation = Augmentation()
    label_smoothing: Below1 = 0.0
    """Share of the uniform distribution in the labels of classifiers."""
    pixel_losses: Annotated[tuple[PixelLoss, ...], SOME, ONCE] = ("cross_entropy",)
    """What segmenters minimise the sum of."""
    class_weights: tuple[Positive, ...] = ()
    """Of the classes in the cross-entropy of segmenters, in label order; all 1 by default. Probabilities do not show
    them."""
    hard_share: Area = 0.25
    """The share of each image's pixels that hard_pixels takes, those with the largest cross-entropy."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in while it trains; parameters, losses and evaluation are float32 in any case."""
    batch_size: Count = 16
    """Images a step, over all devices and processes."""
    accumulate: Count = 1
    """Split each batch in so many parts, one after the other, to save memory."""
    steps: Count = 90_000
    optimizer: Optimizer = Optimizer()
    eval_every: Count = 5_000
    eval_images: Count | None = None
    """Validate on the first so many images while training; the end always takes all."""
    eval_batch_size: Count = 8
    """Images a device at a time in validation."""
    best_metric: Name | None = None
    """The validation figure by which the best checkpoint is kept, such as "bbox/AP"."""
    checkpoint_every: Count = 1_000
    log_every: Count = 20
    parallel: Literal["jit", "pmap"] = "jit"
    devices: Count | None = None
    """Use the first so many devices; all by default, and with several processes."""
    distributed: Distributed = Distributed()
    workers: Number = 2
    """Threads that read data, in each process that reads."""
    worker_processes: Number = 0
    """Processes that read data besides this one, where threads do not keep the devices busy; 0 reads in this one."""
    output: Path = Path("runs/default")
    seed: Seed = 0
    pictures: Number = 8
    """Validation images to draw at the end."""

    def faults(self) -> Iterator[str]:
        warmup, parts = self.optimizer.option("warmup_steps"), self.distributed.processes or 1
        if self.optimizer.warmup_steps >= self.steps:
            yield f"{warmup} is {self.optimizer.warmup_steps}, and must be below --steps, which is {self.steps}"
        if self.batch_size % (parts * self.accumulate):
            of_each = f" in each of {parts} processes" * (parts > 1)
            yield f"--batch-size is {self.batch_size}, and does not split into --accumulate {self.accumulate}{of_each}"
        try:
            task = model_task(self.model)
        except ValueError as error:
            yield f"--model: {error}"
            return
        yield from self._faults_of(task)
        if taken := {"num_classes", "axis_name"} & self.model_options.keys():
            yield f"--model-options {' '.join(sorted(taken))}: set by the data and by --parallel"
            return
        try:
            model = jv.get_model(self.model, **self.model_options)
        except (TypeError, ValueError) as error:
            yield f"--model-options: {error}"
            return
        yield from self._faults_of_weights(model)
        if getattr(model, "mask_head", None) is not None and isinstance(self.data, Voc | Tfds):
            yield f"--data: {type(self.data).__name__} has no masks, which {self.model} learns; take a model of boxes"
        wanted = self.selective_search.option("max_regions")
        if task == "detection" and bool(self.selective_search.max_regions) != takes_regions(model):
            needs = "is given its regions: say how many" if takes_regions(model) else "proposes its own: leave it at 0"
            yield f"{wanted} is {self.selective_search.max_regions}, but {self.model} {needs}"

    def _faults_of_weights(self, model: Any) -> Iterator[str]:
        """Names of records that there are not, and images unlike theirs; nothing is read or downloaded."""
        if self.weights is not None and not is_file(self.weights):
            yield from self._faults_of_record("--weights", self.model, self.weights)
        if self.backbone_weights is not None:
            yield from self._faults_of_record("--backbone-weights", *self.backbone_weights.split("/", 1))
            if not hasattr(model, "backbone"):
                yield f"--backbone-weights is {self.backbone_weights}, but {self.model} has no backbone"

    def _faults_of_record(self, option: str, *name: str) -> Iterator[str]:
        try:
            wanted = jv.get_record(*name).preprocessing
        except ValueError as error:
            yield f"{option}: {error}"
            return
        mean, std = (
            tuple(round(value / wanted.scale / 255, 5) for value in values) for values in (wanted.mean, wanted.std)
        )
        alike = np.allclose((*self.mean, *self.std), (*mean, *std), rtol=1e-3)
        if self.channels != wanted.channels or not alike:
            yield (
                f"{option} were trained with --channels {wanted.channels} --mean {shown(mean)} --std {shown(std)}; "
                "give images alike"
            )

    def _faults_of(self, task: str) -> Iterator[str]:
        """Options that another task has."""
        if task != "segmentation" and self.augmentation.elastic:
            option = self.augmentation.option("elastic")
            yield f"{option} is {self.augmentation.elastic}, but is for segmenters, and {self.model} is for {task}"
        if task == "classification":
            if len(self.image_size) > 1:
                yield f"--image-size is {shown(self.image_size)}, but a classifier ({self.model}) takes one shape"
            if self.resize is not None:
                yield f"--resize is {shown(self.resize)}, but is for detectors, and {self.model} is a classifier"
            return
        mixes = {self.augmentation.option(name): getattr(self.augmentation, name) for name in ("mixup", "cutmix")}
        for option, value in {**mixes, "--label-smoothing": self.label_smoothing}.items():
            if value:
                yield f"{option} is {value}, but is for classifiers, and {self.model} is for {task}"
        if task == "segmentation" and isinstance(self.data, Digits | DigitCrops | Folders | Coco | Tfds):
            yield f"--data: {type(self.data).__name__} has no maps of classes, which {self.model} learns"
        if self.eval_crop != 1:
            yield f"--eval-crop is {self.eval_crop}, but is for classifiers, and {self.model} is for {task}"


def is_file(weights: str) -> bool:
    """Whether a file of weights is named, and not a record of published ones."""
    return Path(weights).suffix != "" or Path(weights).exists()


def takes_regions(model: Any) -> bool:
    """Whether a detector is given the places to look at, such as those of selective search."""
    return getattr(model, "proposals", True) is None


DATA = {
    "digit_scenes": DigitScenes,
    "digits": Digits,
    "digit_crops": DigitCrops,
    "tfds": Tfds,
    "coco": Coco,
    "voc": Voc,
    "folders": Folders,
    "cityscapes": Cityscapes,
    "maps": Maps,
    "panoptic": Panoptic,
}


def parse(description: str, arguments: Sequence[str] | None = None) -> Config:
    """The config that the command line, or ``arguments``, name and change: CONFIG [--data KIND] [overrides].

    Paths of data are made absolute, so that the run finds them from everywhere.
    Raises: ValueError naming each option that breaks a rule; SystemExit for what tyro refuses.
    """
    arguments, kind = without(sys.argv[1:] if arguments is None else arguments, "--data")
    _, model = without(arguments, "--model")
    replaced = "--model-options" in arguments
    changed = any(argument.startswith("--model-options.") for argument in arguments)
    with aside():  # not all configs go with the kind of data and the model
        configs = available()
        for name, (text, config) in configs.items():
            changes = {} if kind is None else {"data": fresh(kind)}
            if replaced or not (changed or model in (None, config.model)):
                changes["model_options"] = {}
            configs[name] = text, dataclasses.replace(config, **changes)
    with checked_after():
        kinds = f"With --data KIND it takes another kind of data, and its options: {', '.join(DATA)}."
        if arguments and arguments[0] in configs:  # whose own help it is then
            text, config = configs[arguments[0]]
            configs[arguments[0]] = f"{text}\n\n{kinds}", config
        text = f"{inspect.cleandoc(description)}\n\n{kinds} {ABOUT_ERRORS}"
        found = tyro.extras.overridable_config_cli(configs, description=text, args=arguments)
    return dataclasses.replace(found, data=_absolute(found.data), selective_search=_absolute(found.selective_search))


def without(arguments: Sequence[str], option: str) -> tuple[list[str], str | None]:
    """The arguments without an option and its value, and the value."""
    left, value, rest = [], None, iter(arguments)
    for argument in rest:
        if argument == option:
            value = next(rest, "")
        elif argument.startswith(f"{option}="):
            value = argument.partition("=")[2]
        else:
            left.append(argument)
    return left, value


def fresh(kind: str) -> Any:
    """Data of a kind, whose paths and names are still to be given.

    Raises: ValueError for another kind.
    """
    if kind not in DATA:
        raise ValueError(f"--data is {kind or 'empty'}, and must be one of {', '.join(DATA)}")
    fields = dataclasses.fields(DATA[kind])
    return DATA[kind](**{field.name: tyro.MISSING for field in fields if field.default is dataclasses.MISSING})


def data_of(given: Any, arguments: Sequence[str]) -> Any:
    """Data as the arguments, [--data KIND] [--data.FIELD VALUE ...], change what is given.

    Raises: as ``parse``.
    """
    arguments, kind = without(arguments, "--data")
    with checked_after():
        default = Data(given if kind is None else fresh(kind))
        found = tyro.cli(tyro.conf.AvoidSubcommands[Data], default=default, args=arguments)
    return _absolute(found.data)


def to_validate(data: Any) -> Any:
    """The same data with the validation part for both, so that the other is neither needed nor read."""
    match data:
        case Coco(val_images=Path() as images, val_annotations=Path() as annotations):
            return Coco(images, annotations, on_error=data.on_error)
        case Tfds():
            return dataclasses.replace(data, train_split=data.val_split)
        case Voc() | Folders() | Cityscapes():
            return dataclasses.replace(data, train=data.val)
        case Maps():
            return dataclasses.replace(data, train_images=data.val_images, train_maps=data.val_maps)
        case Panoptic():
            same = {f"train_{name}": getattr(data, f"val_{name}") for name in ("images", "annotations", "maps")}
            return dataclasses.replace(data, **same)
    return data


def _absolute(part: Any) -> Any:
    """The dataclass with absolute paths, in the user's home for ``~``."""
    paths = {name: value for name, value in vars(part).items() if isinstance(value, Path)}
    return dataclasses.replace(part, **{name: path.expanduser().absolute() for name, path in paths.items()})


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
    parts = (Config, *DATA.values(), SelectiveSearch, Augmentation, Optimizer, Distributed)
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
