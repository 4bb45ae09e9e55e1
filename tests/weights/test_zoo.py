"""Files and records of real models: what does not fit says why, and fine-tuning knows every head."""

import functools
import logging
import os
import pickle
import zipfile

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxvision as jv
from jaxvision.registry import example_images
from jaxvision.weights.torch_pickle import UnsafePickleError

OTHERS = {"squeezenet1_1": "mnasnet0_5", "mnasnet0_5": "squeezenet1_1", "mnasnet0_75": "mnasnet0_5"}
SMALL = ("squeezenet1_1", "mnasnet0_5")
HEADS = {
    "squeezenet1_1": {"classifier.1"},
    "googlenet": {"aux1.fc2", "aux2.fc2", "fc"},
    "inception_v3": {"AuxLogits.fc", "fc"},
    "alexnet": {"classifier.6"},
    "densenet121": {"classifier"},
    "mnasnet0_5": {"classifier.1"},
    "mobilenet_v2": {"classifier.1"},
    "resnet18": {"fc"},
    "shufflenet_v2_x0_5": {"fc"},
    "vgg11": {"classifier.6"},
}
QUICK = ("squeezenet1_1", "googlenet")
DETECTOR_HEADS = {
    "retinanet_small": {"head.classification_head.cls_logits"},
    "ssd_small": {f"head.classification_head.module_list.{index}" for index in range(4)},
    "fasterrcnn_resnet50_fpn_v2": {"roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"},
    "retinanet_resnet50_fpn": {"head.classification_head.cls_logits"},
    "ssd300_vgg16": {f"head.classification_head.module_list.{index}" for index in range(6)},
}


def ones(name):
    """A model's variables; they take no memory."""
    model = jv.get_model(name)
    shapes = jax.eval_shape(model.init, jax.random.key(0), example_images(model))
    return jax.tree.map(lambda leaf: np.broadcast_to(np.float32(1), leaf.shape), shapes)


@functools.cache
def state(name):
    return {key: np.ascontiguousarray(value) for key, value in jv.to_torch(name, ones(name)).items()}


def write_pth(path, arrays):
    """A file as torch.save writes it, with the table of contents pickled by hand."""

    def ints(values):
        return "(" + "".join(f"I{value}\n" for value in values) + "t"

    entries = "".join(
        f"S'{key}'\nctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\nFloatStorage\nS'{place}'\nS'cpu'\n"
        f"I{value.size}\ntQI0\n{ints(value.shape)}{ints(step // 4 for step in value.strides)}I00\n(dtR"
        for place, (key, value) in enumerate(arrays.items())
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", f"({entries}d.")
        for place, value in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{place}", value.tobytes())
    return path


def good(name, folder):
    return write_pth(folder / f"{name}.pth", state(name))


def truncated(name, folder):
    path = good(name, folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path, rf"{name}\.pth cannot be read.*truncated, damaged"


def truncated_safetensors(name, folder):
    path = folder / f"{name}.safetensors"
    save_file(state(name), path)
    path.write_bytes(path.read_bytes()[:-1])
    return path, rf"{name}\.safetensors is truncated"


def hostile(name, folder):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {folder / 'mark'}",)

    path = folder / f"{name}.pth"
    path.write_bytes(pickle.dumps({**state(name), "extra": Attack()}))
    return path, rf"{name}\.pth asks for 'posix\.system'"


@pytest.mark.parametrize("classes", [None, 7])  # fine-tuning forgives nothing of this
@pytest.mark.parametrize("fault", [truncated, truncated_safetensors, hostile])
@pytest.mark.parametrize("name", SMALL)
def test_what_is_wrong_with_a_file(tmp_path, name, fault, classes):
    path, message = fault(name, tmp_path)
    with pytest.raises(UnsafePickleError if fault is hostile else ValueError, match=message):
        jv.load_weights(name, path, num_classes=classes)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(("name", "other"), OTHERS.items())
def test_a_file_of_another_architecture(tmp_path, name, other):
    with pytest.raises(ValueError, match=r"(?s)does not fit \w+:.*(missing|unused|shape): .*another model"):
        jv.load_weights(name, good(other, tmp_path), num_classes=7)


@pytest.mark.parametrize("name", jv.list_models(task="classification"))
def test_a_record_whose_file_is_not_what_was_published(tmp_path, monkeypatch, name):
    monkeypatch.setenv("JAXVISION_CACHE", str(tmp_path))
    for weights in jv.list_weights(name):
        record = jv.get_record(name, weights)
        if record.url.startswith("https://"):
            (tmp_path / record.url.rpartition("/")[2]).write_bytes(b"x")
            with pytest.raises(ValueError, match=rf"not what was published.*expected {record.sha256}.*delete it"):
                jv.load_weights(name, weights)


@pytest.mark.parametrize("name", SMALL)
def test_torch_files_load(tmp_path, name):
    variables = jv.load_weights(name, good(name, tmp_path))
    assert all(np.all(np.asarray(leaf) == 1) for leaf in jax.tree.leaves(variables))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == sum(value.size for value in state(name).values())


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in HEADS]
)
def test_fine_tuning_starts_every_head_anew(tmp_path, caplog, name):
    save_file(state(name), tmp_path / "model.safetensors")
    with caplog.at_level(logging.WARNING, logger="jaxvision"):
        variables = jv.load_weights(name, tmp_path / "model.safetensors", num_classes=7, in_channels=4)
    found = jv.to_torch(jv.get_model(name, num_classes=7, in_channels=4), variables)
    anew = {key for head in HEADS[name] for key in (f"{head}.weight", f"{head}.bias")}
    assert f"not loaded: {', '.join(sorted(anew))} start anew" in caplog.text
    (stem,) = (key for key in found if f"{key} is adapted from 3 input channels to 4" in caplog.text)
    np.testing.assert_array_equal(found[stem], np.float32(3 / 4))
    for key, value in found.items():
        if key in anew:
            assert len(value) == 7 and not np.all(value == 1)
        elif key != stem:
            assert np.all(value == 1), key


@pytest.mark.parametrize(
    "name",
    [name if name.endswith("small") else pytest.param(name, marks=pytest.mark.slow) for name in DETECTOR_HEADS],
)
def test_fine_tuning_a_detector(tmp_path, caplog, name):
    """Heads have outputs for each anchor or box of a cell and each class; those of boxes alone stay."""
    save_file(state(name), tmp_path / "model.safetensors")
    with caplog.at_level(logging.WARNING, logger="jaxvision"):
        variables = jv.load_weights(name, tmp_path / "model.safetensors", num_classes=7)
    anew = {key for head in DETECTOR_HEADS[name] for key in (f"{head}.weight", f"{head}.bias")}
    assert f"not loaded: {', '.join(sorted(anew))} start anew" in caplog.text
    for key, value in jv.to_torch(jv.get_model(name, num_classes=7), variables).items():
        assert np.all(value == 1) == (key not in anew), key
