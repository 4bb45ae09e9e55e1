"""Every config builds and runs one step on made-up data, and the run folder is complete."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import classification, data_check, evaluate, predict, rcnn_svm, segmentation, train
from experiments.config import (
    Augmentation,
    Cityscapes,
    Coco,
    Config,
    Digits,
    DigitScenes,
    Folders,
    Tfds,
    Voc,
    available,
    from_json,
    parse,
    to_json,
)
from experiments.evaluate import load_run
from experiments.reading import Preprocessing, normalized, transforms
from experiments.tasks import task_of
from jaxvision import losses, registry
from jaxvision.data import digit_scenes as digit_scenes_module
from jaxvision.data import read_map
from tests.test_scripts import called, script

ROOT = Path(__file__).parent.parent
ONE_SIZE = ("yolo_small", "multibox_small")  # networks with fully connected layers over the whole map


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
def voc(tmp_path_factory):
    """Two images of a VOC2007, a dog in the first; by their maps both are full of dogs."""
    devkit = tmp_path_factory.mktemp("VOCdevkit")
    for part in ("Annotations", "JPEGImages", "SegmentationClass", "ImageSets/Main", "ImageSets/Segmentation"):
        (devkit / "VOC2007" / part).mkdir(parents=True)
    box = "<bndbox><xmin>11</xmin><ymin>11</ymin><xmax>50</xmax><ymax>40</ymax></bndbox>"
    for name, item in (("a", f"<object><name>dog</name><difficult>0</difficult>{box}</object>"), ("b", "")):
        Image.new("RGB", (80, 60)).save(devkit / "VOC2007" / "JPEGImages" / f"{name}.jpg")
        size = "<size><width>80</width><height>60</height></size>"
        (devkit / "VOC2007" / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{item}</annotation>")
        Image.new("L", (80, 60), 12).save(devkit / "VOC2007" / "SegmentationClass" / f"{name}.png")
    for task in ("Main", "Segmentation"):
        (devkit / "VOC2007" / "ImageSets" / task / "all.txt").write_text("a\nb\n")
    return Voc(devkit, train=("VOC2007/all",), val=("VOC2007/all",))


@pytest.fixture(scope="session")
def cityscapes(tmp_path_factory):
    """An image of a city, which is its own validation."""
    root = tmp_path_factory.mktemp("cityscapes")
    for part, mode, value, name in (
        ("leftImg8bit", "RGB", (9, 9, 9), "leftImg8bit"),
        ("gtFine", "L", 7, "gtFine_labelIds"),
    ):
        (root / part / "val" / "bonn").mkdir(parents=True)
        Image.new(mode, (80, 60), value).save(root / part / "val" / "bonn" / f"bonn_0_1_{name}.png")
    return Cityscapes(root, train="val")


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("folders"), np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for index in range(2):
            Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(folder / name / f"{index}.png")
    return Folders(folder, folder)


class Headed(nn.Module):
    """Logits, and two auxiliary heads in training, all linear in the mean colour."""

    num_classes: int = 4
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, *, train=False):
        x = jnp.mean(images, axis=(1, 2))
        logits = {name: nn.Dense(self.num_classes, name=name, dtype=x.dtype)(x) for name in ("fc", "aux1", "aux2")}
        return logits.pop("fc"), logits if train else {}


def smoke(config, data, output):
    """The config at its smallest: one step of two small images."""
    model, options = config.model, config.model_options
    if registry.model_task(model) == "segmentation":
        model, options = (model, options) if isinstance(data, DigitScenes) else ("patchwise_small", {})
    elif isinstance(data, Coco | Voc):  # the full-size model is compiled in the parity tests, masks by digit_scenes
        model, options = "ssd_small", {}
    elif not isinstance(config.data, Folders | DigitScenes):  # one ResNet is enough
        model, options = "headed", {}
    return dataclasses.replace(
        config, data=data, model=model, model_options=options, weights=None, backbone_weights=None, resize=None,
        image_size=config.image_size if model in ONE_SIZE else ((64, 64),), batch_size=2, steps=1, eval_every=1,
        eval_images=2, eval_batch_size=2, pictures=1,
        optimizer=dataclasses.replace(config.optimizer, warmup_steps=0, freeze=()), output=output, devices=1,
        augmentation=dataclasses.replace(config.augmentation, flip=0.5, colour=0.1),
        selective_search=dataclasses.replace(
            config.selective_search, max_regions=min(config.selective_search.max_regions, 40), directory=output
        ),
    )  # fmt: skip


# One a task, a kind of data and a way of evaluation; what differs in the others is tested where they build.
RUN = {
    "digits",
    "folder_resnet18",
    "digit_scenes_maskrcnn",
    "digit_scenes_multibox",
    "coco_overfit",
}


@pytest.mark.parametrize("name", sorted(available()))
def test_config_builds(name):
    """The model of the full config takes its images, and its loss or logits come out, in shapes."""
    config = available()[name][1]
    model = registry.get_model(config.model, num_classes=10, **config.model_options)
    images = jax.ShapeDtypeStruct((config.batch_size, *config.image_size[0], 3), jnp.float32)
    (outputs, _), variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert jax.tree.leaves(outputs)[0].shape[0] == config.batch_size and variables["params"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in RUN else pytest.mark.slow) for name in sorted(available())]
)
def test_config_runs(name, request, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(registry._MODELS, "headed", registry.Entry(Headed, "classification"))
    config = available()[name][1]
    made_up = {DigitScenes: "digit_scenes", Coco: "coco", Voc: "voc", Folders: "folders", Tfds: "folders"}
    made_up = made_up.get(type(config.data), "cityscapes" if isinstance(config.data, Cityscapes) else None)
    data = config.data if made_up is None else request.getfixturevalue(made_up)
    config = smoke(config, data, tmp_path / "run")
    figures = train.run(config)
    assert figures and all(isinstance(value, float) for value in figures.values())
    assert json.loads((config.output / "results.json").read_text()).keys() == figures.keys()
    assert len(list((config.output / "pictures").glob("*.png"))) == 1
    assert (config.output / "metrics.jsonl").read_text()
    assert load_run(config.output)[0] == config
    train.run(config)  # the same command again has nothing left to do
    assert "nothing to train" in capsys.readouterr().out


def test_rcnn_gets_its_machines(digit_scenes, tmp_path):
    config = smoke(available()["digit_scenes_rcnn"][1], digit_scenes, tmp_path / "run")
    train.run(config)
    figures = rcnn_svm.run(rcnn_svm.Options(config.output), tmp_path / "machines")
    assert json.loads((tmp_path / "machines" / "results.json").read_text()).keys() == figures.keys()
    before, after = (load_run(folder)[2]["params"]["box_head"] for folder in (config.output, tmp_path / "machines"))
    assert load_run(tmp_path / "machines")[1].scores == "one_vs_rest"
    np.testing.assert_array_equal(before["fc7"]["kernel"], after["fc7"]["kernel"])
    assert np.abs(np.asarray(before["cls_score"]["kernel"] - after["cls_score"]["kernel"])).max() > 0
    np.testing.assert_array_equal(after["cls_score"]["kernel"][:, 0], 0)
    with pytest.raises(ValueError, match="the run itself"):
        rcnn_svm.run(rcnn_svm.Options(config.output), config.output)


def test_a_class_without_objects_keeps_its_margin_over_the_background():
    rng = np.random.default_rng(0)
    seen = rcnn_svm.Seen(
        objects=rng.normal(size=(5, 4)),
        labels=np.zeros(5, int),
        regions=rng.normal(size=(30, 4)),
        overlaps=np.zeros((30, 2)),
        maps=rng.normal(size=(6, 7)),
        offsets=rng.normal(size=(6, 4)),
        classes=np.zeros(6, int),
    )
    params = {
        "cls_score": {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)},
        "bbox_pred": {"kernel": rng.normal(size=(7, 12)), "bias": rng.normal(size=12)},
    }
    fitted = rcnn_svm.fit(seen, params, weights=(10, 10, 5, 5), options=rcnn_svm.Options(Path("run")))
    for name in ("kernel", "bias"):
        old, new = params["cls_score"][name], fitted["cls_score"][name]
        np.testing.assert_allclose(new[..., [0, 2]], (old - old[..., :1])[..., [0, 2]])
        assert np.abs(new[..., 1] - (old[..., 1] - old[..., 0])).max() > 1e-3
        old, new = (values["bbox_pred"][name].reshape(-1, 3, 4) for values in (params, fitted))
        np.testing.assert_array_equal(new[:, [0, 2]], old[:, [0, 2]])
        assert (new[:, 1] != old[:, 1]).any()


def test_a_machine_finds_the_hard_negatives():
    """Most negatives are far away, and a few are near the objects: without these the border would let them pass."""
    rng = np.random.default_rng(0)
    positives = rng.normal([4, 0], 0.3, (40, 2))
    negatives = np.concatenate([rng.normal([-30, 0], 1, (20_000, 2)), rng.normal([2, 0], 0.3, (20, 2))])
    once, mined = (
        rcnn_svm.fit_machine(positives, negatives, cost=1.0, rng=np.random.default_rng(0), rounds=rounds)
        for rounds in (1, 10)
    )
    hard = [negatives[-20:] @ weights + bias for weights, bias in (once, mined)]
    assert (hard[0] > 0).any() and (hard[1] < 0).all()
    assert (positives @ mined[0] + mined[1] > 0).mean() > 0.95


def test_the_last_validation_is_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setitem(registry._MODELS, "headed", registry.Entry(Headed, "classification"))
    calls = []
    monkeypatch.setattr(classification, "evaluator", lambda *_: lambda *call: calls.append(call) or {"top1": 0.5})
    config = smoke(available()["digits"][1], Digits(), tmp_path)
    finished = dataclasses.replace(config, eval_images=None)
    assert train.run(finished) == {"top1": 0.5}
    assert [images for _, images in calls] == [1, None]  # one image before the first step
    assert train.run(finished) == {"top1": 0.5} and len(calls) == 2
    train.run(dataclasses.replace(config, eval_images=2, steps=2))  # that was on two images only
    assert len(calls) == 5


def test_results_of_a_finished_run_stay_those_of_its_options(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(registry._MODELS, "headed", registry.Entry(Headed, "classification"))
    figures = iter([{"top1": 0.1}, {"top1": 0.5}, {"top1": 0.1}, {"top1": 0.7}])
    monkeypatch.setattr(classification, "evaluator", lambda *_: lambda *call: next(figures))
    config = dataclasses.replace(smoke(available()["digits"][1], Digits(), tmp_path), eval_images=None)
    train.run(config)
    before = {name: (config.output / name).read_bytes() for name in ("config.json", "results.json", "metrics.jsonl")}
    rate = dataclasses.replace(config.optimizer, learning_rate=0.5)
    with pytest.raises(ValueError, match=r"at step 1,(?s:.*)optimizer.learning_rate was .*, is 0.5 now\n  seed"):
        train.run(dataclasses.replace(config, optimizer=rate, seed=7))
    train.run(dataclasses.replace(config, log_every=3, pictures=0))
    assert {name: (config.output / name).read_bytes() for name in before} == before
    assert "already at step 1 of 1: nothing to train" in capsys.readouterr().out
    assert train.run(dataclasses.replace(config, steps=2)) == {"top1": 0.7}  # more steps go on
    assert json.loads((config.output / "results.json").read_text()) == {"top1": 0.7}
    assert json.loads((config.output / "config.json").read_text())["steps"] == 2


def test_a_second_start_touches_nothing(tmp_path):
    """While a run writes to a folder, one that is started there is told so and ends."""
    with train.train.locked(tmp_path):
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        result = script("train.py", "digits", "--output", tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert result.returncode == 1 and not result.stdout
    (line,) = result.stderr.splitlines()
    assert f"{tmp_path} is in use: process {os.getpid()} on " in line


@pytest.mark.parametrize("name", ["coco_overfit", "folder_resnet18"])
def test_training_sees_what_validation_and_prediction_see(name):
    """But for the random part: a large image is brought to the network's size before it is enlarged and cropped."""
    config = dataclasses.replace(
        available()[name][1], image_size=((64, 64),), augmentation=Augmentation(flip=0.0, scale=(1.0, 1.0000001))
    )
    image = np.tile(np.linspace(0, 255, 800, dtype=np.uint8)[None, :, None], (600, 1, 3))
    example, rows = {"image": image}, task_of(config.model).rows(config)
    for step in transforms(config, rows, train=True):
        example = step(0, example)
    pixels = Preprocessing(config, rows).pixels(image)
    assert example["image"].shape == pixels.shape
    np.testing.assert_allclose(example["image"].astype(int), pixels, atol=2)


@pytest.mark.parametrize("name", sorted(available()))
def test_config_survives_json(name):
    config = available()[name][1]
    assert from_json(to_json(config)) == config


def test_unknown_field_of_a_saved_config():
    with pytest.raises(ValueError, match=r"Optimizer has no fields \['lr'\]"):
        from_json({"type": "Optimizer", "lr": 0.1})


def test_data_check_lists_what_is_wrong(coco, tmp_path):
    content = json.loads(coco.train_annotations.read_text())
    content["annotations"][0]["bbox"] = [10, 10, -5, 30]
    (tmp_path / "bad.json").write_text(json.dumps(content))
    paths = ("--data.train-images", coco.train_images, "--data.train-annotations")
    result = script("data_check.py", "coco_overfit", *paths, tmp_path / "bad.json")
    assert result.returncode == 1 and "3 images, 2 of them without objects, 1 problems" in result.stdout, result.stderr
    assert "bad.json: annotation 1: " in result.stdout and "cat 0, dog 1" in result.stdout
    result = script("data_check.py", "coco_overfit", *paths, coco.train_annotations)
    assert result.returncode == 0 and "0 problems" in result.stdout, result.stderr


def test_unwritable_output_folder(digit_scenes, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    config = smoke(available()["digit_scenes_maskrcnn"][1], digit_scenes, blocker / "run")
    with pytest.raises(OSError, match="cannot write to the output folder"):
        train.run(config)


def test_validation_sees_the_configured_middle():
    """224 of 256: the shorter side is resized to 256, and the middle 224 pixels of both are taken."""
    config = dataclasses.replace(available()["imagenet_resnet50"][1], image_size=((28, 28),), eval_crop=28 / 32)
    image = np.zeros((64, 96, 3), np.uint8)
    image[4:60, 20:76] = 255  # 56 x 56 of the 64 x 64 in the middle
    pixels = Preprocessing(config, classification.rows(config)).pixels(image)
    assert pixels.shape == (28, 28, 3)
    assert (pixels[1:-1, 1:-1] > 252).all() and (pixels[0] > 127).all()


def headed(**options):
    """The configured loss function of ``Headed``, its parameters and a batch."""
    config = Config(data=Digits(), model=options.pop("model", "googlenet"), image_size=((6, 6),), **options)
    images = jax.random.randint(jax.random.key(1), (4, 6, 6, 3), 0, 256).astype(jnp.uint8)
    batch = {"images": images, "labels": jnp.array([3, 0, 1, 1])}
    params = Headed().init(jax.random.key(0), normalized(config, batch), train=True)["params"]
    return classification.loss_of(config, Headed()), params, batch


@pytest.mark.parametrize(("model", "weight"), [("googlenet", 0.3), ("inception_v3", 0.4)])
def test_loss_of_a_classifier_by_hand(model, weight):
    loss_fn, params, batch = headed(model=model, label_smoothing=0.1)
    loss, (metrics, _) = loss_fn(params, {}, batch, jax.random.key(2))
    images = normalized(Config(data=Digits(), model=model, image_size=((6, 6),)), batch)
    logits, auxiliary = Headed().apply({"params": params}, images, train=True)

    def mean(logits):
        return losses.cross_entropy(logits, batch["labels"], label_smoothing=0.1).mean()

    want = mean(logits) + weight * (mean(auxiliary["aux1"]) + mean(auxiliary["aux2"]))
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss_aux2"], mean(auxiliary["aux2"]), rtol=1e-6)


def test_mixup_and_cutmix_take_turns():
    """Mixup fades all pixels, cutmix swaps some of them and leaves the others as they are."""
    images, labels = jax.random.normal(jax.random.key(1), (2, 8, 8, 3)), jnp.eye(2)
    mix, kinds = jax.jit(classification.mixing(1.0, 1.0)), []
    for seed in range(40):
        mixed, soft = mix(jax.random.key(seed), images, labels)
        swapped = np.isclose(mixed, images[::-1]) | np.isclose(mixed, images)
        kinds.append("cutmix" if swapped.all() else "mixup")
        np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-6)
    assert 8 <= kinds.count("mixup") <= 32
    assert classification.mixing(0.0, 0.0) is None
    loss_fn, params, batch = headed(augmentation=Augmentation(mixup=1.0, cutmix=1.0))
    mixed, _ = jax.jit(loss_fn)(params, {}, batch, jax.random.key(0))
    assert np.isfinite(mixed) and mixed != headed()[0](params, {}, batch, jax.random.key(0))[0]


def test_bfloat16_network_has_float32_losses_and_gradients():
    loss_fn, params, batch = headed()
    (want, _), exact = jax.value_and_grad(loss_fn, has_aux=True)(params, {}, batch, jax.random.key(0))
    coarse_fn, _, _ = headed(compute_dtype="bfloat16")
    (loss, (metrics, _)), grads = jax.value_and_grad(coarse_fn, has_aux=True)(params, {}, batch, jax.random.key(0))
    for leaf in jax.tree.leaves((loss, metrics, grads)):
        assert leaf.dtype == jnp.float32
    np.testing.assert_allclose(loss, want, rtol=1e-2)
    assert loss != want
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(exact)):
        np.testing.assert_allclose(one, other, atol=1e-2)


def test_any_config_takes_any_data_of_its_task(coco, voc):
    paths = ("--data.train-images", str(coco.train_images), "--data.train-annotations", str(coco.train_annotations))
    for name in ("digit_scenes_ssd", "voc_ssd300", "coco_overfit"):
        assert parse("", [name, "--data", "coco", *paths]).data == coco  # and no limit of coco_overfit's
    found = parse("", ["coco_retinanet", "--data=voc", "--data.devkit", str(voc.devkit), "--data.categories", "dog"])
    assert found.data == Voc(voc.devkit, categories=("dog",)) and found.model == "retinanet_resnet50_fpn"
    config = dataclasses.replace(found, data=dataclasses.replace(voc, categories=("dog",)))
    assert [source.categories for source in task_of(config.model).sources(config)] == [("dog",)] * 2
    assert parse("", ["coco_overfit", *paths]).data == dataclasses.replace(coco, limit=20)


def test_a_run_is_evaluated_on_other_data(folders, tmp_path, monkeypatch, capsys):
    """Whose classes are compared, and which may have moved."""
    monkeypatch.setitem(registry._MODELS, "headed", registry.Entry(Headed, "classification"))
    data = tmp_path / "data"
    shutil.copytree(folders.train, data)
    config = smoke(available()["digits"][1], Folders(data, data), tmp_path / "run")
    train.run(config)
    assert [path.name for path in (config.output / "pictures").iterdir()] == ["cat_0.png"]
    assert called(evaluate, config.output) is None and "top1" in capsys.readouterr().out
    data.rename(tmp_path / "moved")
    told = called(evaluate, config.output)
    assert told.startswith(f"error: {data}") and "say where they are" in told
    assert called(evaluate, config.output, "--data.val", tmp_path / "moved") is None
    assert called(evaluate, config.output, "--data", "folders", "--data.train", data, "--data.val", folders.val) is None
    (tmp_path / "moved" / "dog").rename(tmp_path / "moved" / "hound")
    told = called(evaluate, config.output, "--data.val", tmp_path / "moved")
    assert "class 1 is 'dog' in the checkpoint" in told and "'hound' in the validation data" in told

    Image.new("RGB", (30, 20)).save(tmp_path / "black.png")
    (tmp_path / "broken.png").write_bytes(b"")
    arguments = (tmp_path / "broken.png", tmp_path / "none.png", tmp_path / "black.png")
    code = called(predict, *arguments, "--run", config.output, "--output", tmp_path / "out")
    said = capsys.readouterr()
    assert code == 1 and sorted(path.name for path in (tmp_path / "out").iterdir()) == ["black.json", "black.png"]
    (first, *_) = json.loads((tmp_path / "out" / "black.json").read_text())["classes"]
    assert first["class"] in ("cat", "dog") and 0.5 <= first["probability"] <= 1
    assert "broken.png: not a readable image" in said.err and "none.png: no such image" in said.err
    assert "black.png →" in said.out and "dog" in said.out


@pytest.fixture(scope="module")
def segmenter_run(digit_scenes, tmp_path_factory):
    """Two steps of every loss on a few scenes."""
    config = smoke(available()["digit_scenes_patchwise"][1], digit_scenes, tmp_path_factory.mktemp("segmenter") / "run")
    every = ("cross_entropy", "focal", "hard_pixels", "dice", "lovasz", "boundary")
    config = dataclasses.replace(config, steps=2, pixel_losses=every, class_weights=(0.5,) + (1.0,) * 10)
    return config, train.run(config)


def test_a_segmenter_trains_and_is_evaluated(segmenter_run, capsys):
    config, figures = segmenter_run
    assert set(figures) >= {"mIoU", "pixel_accuracy", "fwIoU", "border_F", "val_loss", "IoU/background", "IoU/9"}
    assert 0 <= figures["mIoU"] <= figures["pixel_accuracy"] <= 1 and figures["val_loss"] > 0
    logged = (config.output / "metrics.jsonl").read_text()
    assert all(f'"loss_{name}"' in logged for name in config.pixel_losses)
    assert len(list((config.output / "pictures").glob("*.png"))) == 1
    train.run(config)
    assert "nothing to train" in capsys.readouterr().out
    source = task_of(config.model).sources(config)[1]
    model, variables = load_run(config.output)[1:3]
    for devices in (1, 2, 3):  # each takes its share, and the sums are those of one
        again = task_of(config.model).evaluator(config, model, source, jax.devices()[:devices])(variables)
        np.testing.assert_equal({**again, "val_loss": 0}, {**figures, "val_loss": 0})
        np.testing.assert_allclose(again["val_loss"], figures["val_loss"], rtol=1e-5)


def test_weights_of_classes_do_not_show_in_probabilities(segmenter_run):
    """Where the network says what is true of each class, no weights pull it elsewhere."""
    config = dataclasses.replace(segmenter_run[0], pixel_losses=("cross_entropy",), class_weights=(0.01, 1.0))
    labels = np.array([[[0] * 9 + [1]]])
    logits = jnp.log(jnp.tile(jnp.array([0.9, 0.1]), (1, 1, 10, 1)))

    def loss(config, logits):
        return segmentation.terms_of(config, logits, labels)["loss_cross_entropy"]

    push = jax.grad(loss, 1)(config, logits).sum((0, 1, 2))
    np.testing.assert_allclose(push, 0, atol=1e-6)
    plain = dataclasses.replace(config, class_weights=())
    np.testing.assert_allclose(jax.grad(loss, 1)(plain, logits).sum((0, 1, 2)), 0, atol=1e-6)
    with pytest.raises(ValueError, match="--class-weights has 2 numbers, but there are 11 classes"):
        segmentation.loss_of(config, registry.get_model(config.model, num_classes=11))


def test_a_segmenter_predicts_maps(segmenter_run, tmp_path, capsys):
    """The blend with its legend, the numbers of the classes as a PNG that can be read back, and shares as JSON."""
    config, _ = segmenter_run
    photograph = np.random.default_rng(0).integers(0, 255, (90, 70, 3), np.uint8)
    Image.fromarray(photograph).save(tmp_path / "photo.png")
    for tile in ((), ("--tile", "64", "64")):
        out = tmp_path / f"out{len(tile)}"
        code = called(predict, tmp_path / "photo.png", "--run", config.output, "--output", out, *tile)
        assert not code and "photo.png →" in capsys.readouterr().out
        assert sorted(path.name for path in out.iterdir()) == ["photo.json", "photo.labels.png", "photo.png"]
        labels = read_map(out / "photo.labels.png", num_classes=11)
        assert labels.shape == (90, 70)
        rows = json.loads((out / "photo.json").read_text())["classes"]
        names = ("background", *map(str, range(10)))
        assert {row["class"]: round(row["share"] * 6300) for row in rows} == {
            names[label]: int((labels == label).sum()) for label in np.unique(labels)
        }


def test_data_of_segmenters(cityscapes, voc, tmp_path, capsys):
    """Any segmenter takes any data with maps, which are checked; data without are refused by name."""
    assert called(data_check, "cityscapes_gridnet", "--data.root", cityscapes.root, "--data.train", "val") == 0
    said = capsys.readouterr().out
    assert "training: 1 images" in said and "road 1, sidewalk 0" in said
    listed = "VOC2007/all"
    options = ("--data.devkit", voc.devkit, "--data.train", listed, "--data.val", listed, "--data.maps")
    assert called(data_check, "voc_deeplabv3", *options, "SegmentationClass") == 0
    assert "dog 2" in capsys.readouterr().out
    (tmp_path / "names.txt").write_text("road\nrest\n")
    pictures, maps = (next((cityscapes.root / part).glob("*/bonn")) for part in ("leftImg8bit", "gtFine"))
    options = [f"--data.{part}-images={pictures}" for part in ("train", "val")]
    options += [f"--data.{part}-maps={maps}" for part in ("train", "val")]
    told = called(data_check, "digit_scenes_unet", "--data", "maps", *options, f"--data.classes={tmp_path}/names.txt")
    assert "no such image file" in told  # its maps have other names
    with pytest.raises(ValueError, match="--data: Digits has no maps of classes, which unet_small learns"):
        dataclasses.replace(available()["digit_scenes_unet"][1], data=Digits())


@pytest.mark.slow
def test_two_processes_run_the_script(tmp_path):
    """The command of the README with another number in each; the first one alone speaks and writes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    options = (
        "--weights None --steps 2 --image-size 32 32 --batch-size 4 --eval-images 4 --pictures 1 --eval-batch-size 60"
    )
    command = [sys.executable, str(ROOT / "experiments" / "train.py"), "digits_squeezenet", *options.split()]
    command += [
        "--optimizer.warmup-steps",
        "0",
        "--distributed.coordinator",
        coordinator,
        "--distributed.processes",
        "2",
    ]
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    processes = [
        subprocess.Popen(
            [*command, "--output", str(tmp_path / "run"), "--distributed.process", str(process)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for process in range(2)
    ]
    (first, error), (second, _) = (process.communicate(timeout=240) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], error
    assert "top1" in first and "training 2 steps" in first and "top1" not in second
    assert json.loads((tmp_path / "run" / "results.json").read_text()).keys() == {"top1", "top5", "val_loss"}
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2  # training, evaluation
    assert len(list((tmp_path / "run" / "pictures").iterdir())) == 1
