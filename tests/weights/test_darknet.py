"""Darknet's ``.weights``: a file in its layout gives darknet's detections, and what does not fit says why."""

import struct

import jax
import numpy as np
import pytest

import jaxvision as jv
from jaxvision.models.yolo import YOLO
from jaxvision.weights import read_state_dict
from tests.models import darknet

PLAIN = YOLO(
    (((4, 7, 2),), ((6, 3, 1), (8, 1, 1)), ((5, 3, 2),)), hidden=16, grid=3, image_size=64, num_classes=4
)  # fmt: skip
NORMED = PLAIN.clone(batch_norm=True, per_cell=3)
MODELS = {"plain": PLAIN, "batch norm": NORMED, "convolutions": NORMED.clone(hidden=0, grid=4)}
SEEN = 123_456


def random_layers(model, seed=0):
    """The layers as darknet holds them, made from the model's options and not from its variables."""
    rng = np.random.default_rng(seed)
    convs = [conv for stage in model.stages for conv in stage]
    outputs, layers, inputs = model.num_classes + 5 * model.per_cell, [], model.in_channels

    def layer(out, *shape):
        fan_in = np.prod(shape)
        return {"biases": rng.normal(0, 0.2, out), "weights": rng.normal(0, 1.5 / fan_in**0.5, (out, *shape))}

    for channels, size, _ in convs:
        layers.append(layer(channels, inputs, size, size))
        if model.batch_norm:
            layers[-1] |= {"scales": rng.uniform(0.5, 1.5, channels), "mean": rng.normal(0, 0.5, channels)}
            layers[-1] |= {"variance": rng.uniform(0.5, 1.5, channels)}
        inputs = channels
    if not model.hidden:
        return [*layers, layer(outputs, inputs, 1, 1)]
    side = 4
    return [*layers, layer(model.hidden, inputs * side**2), layer(model.grid**2 * outputs, model.hidden)]


def write(path, layers, *, version=(0, 2, 0)):
    """As darknet's save_weights does it."""
    with open(path, "wb") as file:
        file.write(struct.pack("<iii", *version) + struct.pack("<i" if version < (0, 2) else "<Q", SEEN))
        for layer in layers:
            for name in ("biases", "scales", "mean", "variance", "weights"):
                if name in layer:
                    file.write(layer[name].astype("<f4").tobytes())
    return path


def forward(model, layers, image):
    """The output vector of one image [h, w, c], by darknet's layers."""
    x, left = image.transpose(2, 0, 1).astype(np.float64), iter(layers)
    for index, stage in enumerate(model.stages):
        x = darknet.maxpool(x) if index else x
        for _, _, stride in stage:
            x = darknet.convolutional(x, next(left), stride=stride)
    if not model.hidden:
        x = darknet.convolutional(x, next(left), stride=1, activate=lambda x: x)
        parts = np.split(x, [model.num_classes, model.num_classes + model.per_cell])
        return np.concatenate([part.transpose(1, 2, 0).reshape(-1) for part in parts])
    return darknet.connected(darknet.connected(x, next(left), darknet.leaky), next(left), lambda x: x)


@pytest.mark.parametrize("version", [(0, 1, 0), (0, 2, 5)])
@pytest.mark.parametrize("name", MODELS)
def test_detections_are_darknets(tmp_path, name, version):
    model, layers = MODELS[name], random_layers(MODELS[name])
    variables = jv.load_weights(model, write(tmp_path / "yolo.weights", layers, version=version))
    images = np.random.default_rng(1).normal(size=(3, 64, 64, 3)).astype(np.float32)
    found = jax.jit(lambda variables: model.apply(variables, images, method="detect"))(variables)
    for index, image in enumerate(images):
        wanted = darknet.detections(forward(model, layers, image), model)
        assert len(wanted) > 10
        darknet.assert_same_detections(jax.tree.map(lambda leaf, index=index: leaf[index], found), wanted)


def test_by_the_name_of_the_model(tmp_path):
    """As a string with a suffix, which is a file and no record."""
    with pytest.raises(ValueError, match=r"yolov1\.weights ends within conv5\.weight of YOLO"):
        path = write(tmp_path / "yolov1.weights", [{"biases": np.zeros(500_000)}])
        jv.load_weights("yolo_v1", str(path))
    with pytest.raises(FileNotFoundError):
        jv.load_weights("yolo_v1", "missing.weights")


@pytest.mark.parametrize("cut", [1, 4, 4 * 300])
def test_truncated(tmp_path, cut):
    path = write(tmp_path / "yolo.weights", random_layers(PLAIN))
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-cut])
    message = rf"yolo\.weights ends within fc2\.weight of YOLO.* of {size - cut}; all layers want {size} bytes.*cut off"
    with pytest.raises(ValueError, match=message):
        jv.load_weights(PLAIN, path)


def test_cut_off_in_the_header(tmp_path):
    for count in (0, 8, 12, 18):
        path = tmp_path / "yolo.weights"
        path.write_bytes(struct.pack("<iiiQ", 0, 2, 0, SEEN)[:count])
        with pytest.raises(ValueError, match=r"does not begin like a darknet|ends within conv1"):
            jv.load_weights(PLAIN, path)


@pytest.mark.parametrize("extra", [1, 4, 400])
def test_overlong(tmp_path, extra):
    path = write(tmp_path / "yolo.weights", random_layers(PLAIN))
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"\0" * extra)
    message = rf"goes on after YOLO's last layer, fc2\.weight: {size} bytes are wanted, {size + extra} found\..*cfg"
    with pytest.raises(ValueError, match=message):
        jv.load_weights(PLAIN, path)


@pytest.mark.parametrize(
    "changes", [{"num_classes": 5}, {"per_cell": 1}, {"batch_norm": True}, {"hidden": 15}, {"hidden": 0, "grid": 4}]
)
def test_another_cfg(tmp_path, changes):
    path = write(tmp_path / "yolo.weights", random_layers(PLAIN))
    with pytest.raises(ValueError, match=r"(ends within|goes on after).*bytes.*build the model with the cfg's"):
        jv.load_weights(PLAIN.clone(**changes), path)


@pytest.mark.parametrize("name", MODELS)
def test_fine_tuning_starts_the_last_layer_anew(tmp_path, caplog, name):
    model = MODELS[name]
    path = write(tmp_path / "yolo.weights", random_layers(model))
    wanted = jv.load_weights(model, path)["params"]
    (last, _) = model.darknet_layers[-1]
    for classes in (2, 9):
        found = jv.load_weights(model.clone(num_classes=classes), path, num_classes=classes)["params"]
        assert f"not loaded: {last}.bias, {last}.weight start anew" in caplog.text
        for layer in wanted.keys() - {last}:
            jax.tree.map(np.testing.assert_array_equal, found[layer], wanted[layer])
        caplog.clear()
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=rf"ends within {last}.weight"):
        jv.load_weights(model.clone(num_classes=9), path, num_classes=9)


@pytest.mark.parametrize("start", [b"PK\x03\x04" + b"\0" * 40, struct.pack("<iiii", 0, 3, 0, 0), b"\x80\x02}q\x00" * 9])
def test_a_foreign_header(tmp_path, start):
    (tmp_path / "yolo.weights").write_bytes(start)
    with pytest.raises(ValueError, match=r"yolo\.weights does not begin like a darknet.*three int32.*own suffix"):
        jv.load_weights(PLAIN, tmp_path / "yolo.weights")


def test_models_that_darknet_does_not_know(tmp_path):
    path = write(tmp_path / "resnet.weights", [])
    with pytest.raises(ValueError, match="the order of ResNet's layers in darknet is unknown"):
        jv.load_weights("resnet18", path)
    with pytest.raises(ValueError, match=r"\.weights in load_weights"):
        read_state_dict(path)


@pytest.mark.slow
def test_full_size(tmp_path):
    """271,703,550 numbers, 1.1 GB."""
    model = jv.get_model("yolo_v1")
    rng, layers, inputs = np.random.default_rng(0), [], 3
    for channels, size, _ in (conv for stage in model.stages for conv in stage):
        weights = rng.standard_normal((channels, inputs, size, size), np.float32) * (2 / (inputs * size**2)) ** 0.5
        layers.append({"biases": rng.normal(0, 0.1, channels), "weights": weights})
        inputs = channels
    for out, into in ((4096, 7 * 7 * 1024), (1470, 4096)):
        weights = rng.standard_normal((out, into), np.float32) * np.float32(into**-0.5)
        layers.append({"biases": rng.normal(0, 0.1, out), "weights": weights})
    path = write(tmp_path / "yolov1.weights", layers)
    assert path.stat().st_size == 20 + 4 * 271_703_550
    variables = jv.load_weights("yolo_v1", path)
    image = rng.normal(size=(448, 448, 3)).astype(np.float32)
    found = jax.jit(lambda v: model.apply(v, image[None], method="detect"))(variables)
    wanted = darknet.detections(forward(model, layers, image), model)
    darknet.assert_same_detections(jax.tree.map(lambda leaf: leaf[0], found), wanted)
