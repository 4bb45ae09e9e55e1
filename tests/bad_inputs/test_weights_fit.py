"""Weights that do not fit, are no weights, or are asked for by options that make no sense."""

import inspect
import struct
from unittest import mock

import flax.linen as nn
import numpy as np
from safetensors.numpy import save_file

import jaxvision as jv
from jaxvision import registry
from jaxvision.models.yolo import YOLO
from jaxvision.weights.convert import torch_shapes
from tests.bad_inputs.case import Case, by_name, check

ARRAY = np.arange(6, dtype=np.float32)
load_weights = inspect.unwrap(jv.load_weights)  # without the checks of types that the tests add
get_model = inspect.unwrap(jv.get_model)


class Model(nn.Module):
    """A stem, a middle layer and a head."""

    num_classes: int = 3
    in_channels: int = 3
    width: int = 4

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (1, 1), name="stem")(x).mean((1, 2))
        return nn.Dense(self.num_classes, name="head")(nn.Dense(5, name="middle")(x))


YOLO_SMALL = YOLO((((4, 3, 2),), ((6, 3, 1),)), hidden=0, grid=16, image_size=64, num_classes=2)


def weights(name, state, *words, model=None, file="model.safetensors", **options):
    """A checkpoint for Model with these arrays in place of its own (None leaves one out)."""

    def run(folder):
        made = {key: np.ones(shape, np.float32) for key, shape in torch_shapes(Model()).items()} | state
        save_file({key: value for key, value in made.items() if value is not None}, folder / file)
        with mock.patch.object(registry, "list_models", list):  # which it would fit is tried below
            return load_weights(model or Model(), folder / file, **options)

    return Case(name, run, (file, *words))


def with_value(value):
    return {"head.bias": np.array([0, value, 0], np.float32)}


def shapes_of(name, options, into, *words):
    """The keys and shapes of one model for another; nothing is computed."""

    def run(folder):
        shapes = torch_shapes(jv.get_model(name, **options))
        return jv.from_torch(into, {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()})

    return Case(f"{name} {options} into {into}", run, words)


def prefixed(folder):
    state = {f"module.{key}": np.ones(shape, np.float32) for key, shape in torch_shapes(Model()).items()}
    state["loss.weight"] = ARRAY
    save_file(state, folder / "mixed.safetensors")
    return load_weights(Model(), folder / "mixed.safetensors")


FIVE = Model(num_classes=5)
FITS = (
    weights("missing", {"middle.bias": None}, "missing: middle.bias (for params/middle/bias)"),
    weights("unused", {"extra": ARRAY}, "unused: extra"),
    weights("many unused", {f"extra.{n}": ARRAY for n in range(50)}, "unused: extra.0", "unused: 44 more"),
    weights("transposed", {"middle.weight": np.ones((4, 5), np.float32)}, "shape: middle.weight is (5, 4)", "(4, 5)"),
    weights("another rank", {"middle.weight": np.ones((5, 4, 1), np.float32)}, "shape: middle.weight"),
    weights("other classes", {}, "number of outputs of head differs", "num_classes=...", model=FIVE),
    weights(
        "middle layer of another width",
        {"middle.weight": np.ones((6, 4), np.float32), "middle.bias": np.ones(6, np.float32)},
        "middle.bias is (6,), expected (5,)",
        model=FIVE,
        num_classes=5,
    ),
    weights(
        "head with other inputs",
        {"head.weight": np.ones((3, 6), np.float32)},
        "head.weight is (6, 3)",
        model=FIVE,
        num_classes=5,
    ),
    weights(
        "other channels", {}, "number of input channels of stem differs", "in_channels=...", model=Model(in_channels=1)
    ),
    weights(
        "stem of 2000 channels",
        {"stem.weight": np.ones((4, 2000, 1, 1), np.float32)},
        "stem.weight",
        "2000",
        in_channels=3,
    ),
    weights("NaN", with_value(np.nan), "head.bias holds 1 of 3 numbers that are NaN", "allow_nonfinite=True"),
    weights("infinite", with_value(np.inf), "head.bias holds 1 of 3 numbers"),
    weights("minus infinite", with_value(-np.inf), "head.bias holds 1 of 3 numbers"),
    weights("all NaN", {"stem.weight": np.full((4, 3, 1, 1), np.nan, np.float32)}, "stem.weight holds 12 of 12"),
    weights("NaN in half", {"head.bias": np.full(3, np.nan, np.float16)}, "head.bias holds 3 of 3"),
    weights(
        "NaN in an adapted stem",
        {"stem.weight": np.full((4, 3, 1, 1), np.nan, np.float32)},
        "stem.weight holds",
        model=Model(in_channels=1),
        in_channels=1,
    ),
    weights("too large for float32", {"head.bias": np.array([0, 1e300, 0])}, "head.bias holds 1 of 3", "too large"),
    weights("int8", {"head.bias": np.ones(3, np.int8)}, "head.bias is int8", "float32"),
    weights("uint8", {"head.bias": np.ones(3, np.uint8)}, "head.bias is uint8"),
    weights("int64", {"head.bias": np.ones(3, np.int64)}, "head.bias is int64"),
    weights("bool", {"head.bias": np.ones(3, bool)}, "head.bias is bool"),
    weights("complex", {"head.bias": np.ones(3, np.complex64)}, "head.bias is complex64"),
    weights("int8, nonfinite allowed", {"head.bias": np.ones(3, np.int8)}, "head.bias is int8", allow_nonfinite=True),
    Case(
        "keys of which some have a prefix", prefixed, ("mixed.safetensors", "unused: loss.weight", "missing: stem.bias")
    ),
    shapes_of(
        "resnet18", {}, "resnet34", "missing: layer1.2.bn1.running_mean", "missing: 74 more", "it would fit resnet18."
    ),
    shapes_of("alexnet", {"num_classes": 7}, "vgg11", "with its num_classes it would fit alexnet."),
    shapes_of("resnet18", {"in_channels": 2}, "squeezenet1_1", "None of the"),
)


def darknet(name, make, *words, model=YOLO_SMALL, **options):
    def run(folder):
        good = struct.pack("<iiiQ", 0, 2, 0, 1) + b"\0" * 4 * sum(map(np.prod, torch_shapes(YOLO_SMALL).values()))
        (folder / "yolo.weights").write_bytes(make(good))
        return load_weights(model, folder / "yolo.weights", **options)

    return Case(f"darknet, {name}", run, ("yolo.weights", *words))


DARKNET = (
    darknet("empty", lambda good: b"", "does not begin like a darknet"),
    darknet("header cut off", lambda good: good[:9], "does not begin like a darknet"),
    darknet("another version", lambda good: b"\x09" + good[1:], "does not begin like a darknet", "[9, 2, 0]"),
    darknet("a zip", lambda good: b"PK\x03\x04" + good, "its own suffix"),
    darknet("cut off", lambda good: good[:-4], "ends within", "cut off"),
    darknet("too long", lambda good: good + b"\0" * 4, "goes on after"),
    darknet("header only", lambda good: good[:20], "ends within conv1.bias"),
    darknet(
        "other classes", lambda good: good, "build the model with the cfg's", model=YOLO_SMALL.clone(num_classes=3)
    ),
    darknet(
        "no whole classes", lambda good: good[:-4], "ends within", model=YOLO_SMALL.clone(num_classes=3), num_classes=3
    ),
    darknet("NaN", lambda good: good[:20] + struct.pack("<f", np.nan) + good[24:], "conv1.bias holds 1 of 4"),
    darknet("a model without an order", lambda good: good, "the order of Model's layers", model=Model()),
)


def folder_of_weights(folder):
    (folder / "run").mkdir()
    (folder / "run" / "model.pth").write_bytes(b"")
    return load_weights("resnet18", folder / "run")


def folder_named(name):
    def run(folder):
        (folder / name).mkdir()
        return load_weights("yolo_small", folder / name)

    return Case(f"a folder named {name}", run, (name, "is a folder", "(none)"))


def option(name, call, *words):
    return Case(name, lambda folder: call(), words)


GOOD = {key: np.ones(shape, np.float32) for key, shape in torch_shapes(Model()).items()}
MASKS = jv.get_model("maskrcnn_small", num_classes=5)
OPTIONS = (
    Case("a folder", folder_of_weights, ("run", "is a folder", "model.pth")),
    folder_named("weights.pth"),
    folder_named("model.safetensors"),
    folder_named("yolo.weights"),
    Case("no such file", lambda folder: load_weights("resnet18", folder / "none.pth"), ("none.pth",)),
    Case("no such darknet file", lambda folder: load_weights("yolo_small", folder / "none.weights"), ("none.weights",)),
    Case(
        "saved under another suffix",
        lambda folder: jv.save_weights(folder / "m.pth", Model(), {}),
        ("m.pth", ".safetensors only"),
    ),
    Case(
        "saved variables of another model",
        lambda folder: jv.save_weights(folder / "m.safetensors", Model(), {"params": {}}),
        ("params/head/kernel",),
    ),
    Case(
        "saved into no folder",
        lambda folder: jv.save_weights(folder / "none" / "m.safetensors", Model(), jv.from_torch(Model(), GOOD)),
        ("none",),
    ),
    option("num_classes=-1", lambda: get_model("resnet18", num_classes=-1), "num_classes=-1", "at least 0"),
    option(
        "num_classes='7'", lambda: get_model("resnet18", num_classes="7"), "num_classes is an integer", "'7'", "str"
    ),
    option("num_classes=2.5", lambda: get_model("resnet18", num_classes=2.5), "num_classes", "2.5"),
    option("num_classes=True", lambda: get_model("resnet18", num_classes=True), "num_classes", "bool"),
    option("num_classes=None", lambda: get_model("resnet18", num_classes=None), "num_classes", "NoneType"),
    option(
        "num_classes=0 of a detector",
        lambda: get_model("ssd_small", num_classes=0),
        "ssd_small",
        "num_classes=0",
        "at least 1",
    ),
    option("in_channels=0", lambda: get_model("resnet18", in_channels=0), "in_channels=0", "at least 1"),
    option("in_channels=-3", lambda: get_model("resnet18", in_channels=-3), "in_channels=-3"),
    option("in_channels='3'", lambda: get_model("resnet18", in_channels="3"), "in_channels", "'3'"),
    option("unknown option", lambda: get_model("resnet18", classes=3), "resnet18", "classes"),
    option("unknown model", lambda: get_model("resnet5"), "resnet5", "did you mean"),
    option("a number for a model", lambda: get_model(18), "named by a string", "int"),
    option("unknown task", lambda: jv.list_models(task="detect"), "'detect'", "detection"),
    option("weights, num_classes=-1", lambda: load_weights("resnet18", "m.pth", num_classes=-1), "num_classes=-1"),
    option(
        "weights of a module, num_classes=-1", lambda: load_weights(Model(), "m.pth", num_classes=-1), "num_classes=-1"
    ),
    option(
        "weights of a module, num_classes='7'",
        lambda: load_weights(Model(), "m.pth", num_classes="7"),
        "num_classes is an integer",
        "'7'",
    ),
    option(
        "weights of a module, in_channels=0", lambda: load_weights(Model(), "m.pth", in_channels=0), "in_channels=0"
    ),
    option("a module of other classes", lambda: load_weights(Model(), "m.pth", num_classes=4), "num_classes=3, not 4"),
    option("a detector of other classes", lambda: load_weights(MASKS, "m.pth", num_classes=4), "num_classes=5, not 4"),
    option("a module of other channels", lambda: load_weights(Model(), "m.pth", in_channels=1), "in_channels=3, not 1"),
    option("weights of a number", lambda: load_weights(18, "m.pth"), "load_weights", "int"),
    option("weights None", lambda: load_weights("resnet18", None), "weights are the name of a record", "None"),
    option("weights without a name", lambda: load_weights("resnet18", ""), "weights are the name", "''"),
    option("unknown record", lambda: load_weights("resnet18", "IMAGENET1K_V9"), "IMAGENET1K_V9", "IMAGENET1K_V1"),
    option("a record for a module", lambda: load_weights(Model(), "IMAGENET1K_V1"), "A module has no name"),
    option("records of a model without any", lambda: jv.get_record("yolo_small"), "yolo_small"),
    option("state dict of another model's name", lambda: jv.from_torch("resnet5", {}), "resnet5"),
    option("NaN in a state dict", lambda: jv.from_torch(Model(), GOOD | with_value(np.nan)), "head.bias holds 1 of 3"),
    option("no state dict", lambda: jv.from_torch(Model(), {}), "missing: head.bias"),
)

CASES: tuple[Case, ...] = FITS + DARKNET + OPTIONS


@by_name(CASES)
def test_one_error_that_says_what_and_where(case, tmp_path):
    check(case, tmp_path)
