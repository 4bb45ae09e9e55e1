"""The experiment of sixty photographs, on two."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from experiments import coco100_unet


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """Four of 48 x 64 pixels with three classes, of which the third has the fewest pixels; two are for training."""
    monkeypatch.setattr(coco100_unet, "TRAIN", 2)
    monkeypatch.setattr(coco100_unet, "CLASSES", 2)
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    (folder / "panoptic").mkdir()
    areas = {1: 30, 5: 18, 9: 16}  # columns
    segments = [{"id": i, "category_id": i, "area": 48 * columns} for i, columns in areas.items()]
    content = {"images": [], "annotations": [], "categories": [{"id": i, "name": f"class {i}"} for i in (1, 5, 9)]}
    for number in (4, 3, 2, 1):
        rng = np.random.default_rng(number)
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(folder / "images" / f"{number}.jpg")
        numbers = np.zeros((48, 64, 3), np.uint8)
        numbers[..., 0] = np.repeat(list(areas), list(areas.values()))
        Image.fromarray(numbers).save(folder / "panoptic" / f"{number}.png")
        content["images"].append({"id": number, "file_name": f"{number}.jpg", "height": 48, "width": 64})
        content["annotations"].append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
    (folder / "panoptic.json").write_text(json.dumps(content))
    return folder


def test_split(photographs, tmp_path, monkeypatch):
    assert coco100_unet.split(photographs, tmp_path) == (1, 5)
    parts = [json.loads((tmp_path / name).read_text()) for name in ("train.json", "val.json")]
    assert [[image["id"] for image in part["images"]] for part in parts] == [[1, 2], [3, 4]]
    assert [sorted(each["image_id"] for each in part["annotations"]) for part in parts] == [[1, 2], [3, 4]]
    monkeypatch.setattr(coco100_unet, "TRAIN", 4)
    with pytest.raises(ValueError, match=r"panoptic\.json: has 4 images, and 4 are for training alone"):
        coco100_unet.split(photographs, tmp_path)


def test_a_run(photographs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(coco100_unet, "WEIGHTS", {"scratch": None})
    output = tmp_path / "out"
    command = [str(photographs), "--output", str(output), "--seeds", "3", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["coco100_unet.py", *command])
    coco100_unet.main()
    (score,) = json.loads((output / "results.json").read_text())["mIoU"]["scratch"]
    assert capsys.readouterr().out.endswith(f"| scratch | {score:.3f} | {score:.3f} | 0.000 |\n")
    known = json.loads((output / "scratch_3" / "results.json").read_text())
    assert known["mIoU"] == score and {"IoU/class 1", "IoU/class 5"} < known.keys() and "IoU/class 9" not in known


def test_starts_differ_in_the_encoder_alone(photographs, tmp_path):
    options = coco100_unet.Options(photographs, output=tmp_path)
    ours, other = (coco100_unet.config_of(options, (1, 5), start, 0) for start in coco100_unet.WEIGHTS)
    differ = {name for name in vars(ours) if getattr(ours, name) != getattr(other, name)}
    assert differ == {"backbone_weights", "output"}
