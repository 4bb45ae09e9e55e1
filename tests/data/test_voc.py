"""VOC folders that the tests write: what is read, and what is said about what is wrong."""

import numpy as np
import pytest
from PIL import Image

from jaxvision import data

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
<bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox></object>"""
DOG = dict(name="dog", difficult=0, xmin=1, ymin=2, xmax=10, ymax=20)


def write(folder, images, *, size=(40, 30)):
    """images: objects by name of the image. Returns the folder."""
    devkit, folder = folder, folder / "VOC2007"
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name, objects in images.items():
        Image.new("RGB", size).save(folder / "JPEGImages" / f"{name}.jpg")
        items = "".join(OBJECT.format(**item) for item in objects)
        text = f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{items}</annotation>"
        (folder / "Annotations" / f"{name}.xml").write_text(text)
    (folder / "ImageSets" / "Main" / "val.txt").write_text("\n".join(images) + "\n")
    return devkit


def test_pixels_counted_from_one_become_continuous_boxes(tmp_path):
    cat = DOG | dict(name="cat", difficult=1, xmin=31, ymin=11, xmax=45, ymax=30)  # wider than the image
    source = data.VocDetection(write(tmp_path, {"000001": [DOG, cat], "000002": []}), ["VOC2007/val"])
    example = source[0]
    np.testing.assert_array_equal(example["boxes"], [[0, 1, 10, 20], [30, 10, 40, 30]])
    assert [source.categories[label] for label in example["labels"]] == ["dog", "cat"]
    np.testing.assert_array_equal(example["iscrowd"], [False, True])
    assert example["image"].shape == (30, 40, 3) and source[1]["boxes"].shape == (0, 4)
    assert isinstance(source, data.DetectionSource) and len(source) == 2


def test_ground_truth_is_cocos(tmp_path):
    truth = data.VocDetection(write(tmp_path, {"a": [DOG], "b": []}), ["VOC2007/val"]).ground_truth()
    (annotation,) = truth["annotations"]
    assert annotation["bbox"] == [0, 1, 10, 19] and annotation["area"] == 190 and annotation["category_id"] == 12
    assert truth["images"] == [{"id": 0, "height": 30, "width": 40}, {"id": 1, "height": 30, "width": 40}]
    assert {"id": 12, "name": "dog"} in truth["categories"]


def test_batches_of_it_train_a_detector(tmp_path):
    source = data.VocDetection(write(tmp_path, {"a": [DOG], "b": [DOG | dict(difficult=1)]}), ["VOC2007/val"])
    rows = data.DetectionRows(max_objects=3, with_masks=False)
    batch = next(data.batches(source, rows, batch_size=2, shapes=((32, 48),)))
    np.testing.assert_array_equal(batch["targets"].valid, [[True, False, False], [False] * 3])


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(name="unicorn"), "object 0: name 'unicorn' is none of the 20 categories"),
        (dict(xmax="wide"), "object 0: bndbox/xmax is 'wide'"),
        (dict(xmax=-5), r"object 0: bndbox 1 2 -5 20 \(xmin ymin xmax ymax\) is empty"),
    ],
)
def test_a_bad_object_is_named_or_skipped(tmp_path, change, said):
    folder = write(tmp_path, {"a": [DOG | change, DOG]})
    with pytest.raises(ValueError, match=rf"a\.xml: {said}"):
        data.VocDetection(folder, ["VOC2007/val"])
    source = data.VocDetection(folder, ["VOC2007/val"], on_error="skip")
    assert len(source[0]["boxes"]) == 1 and len(source.problems) == 1


def test_a_bad_file_is_named_or_skipped(tmp_path):
    folder = write(tmp_path, {"good": [DOG], "broken": [DOG], "missing": [DOG]})
    (folder / "VOC2007" / "Annotations" / "broken.xml").write_text("<annotation><size>")
    (folder / "VOC2007" / "JPEGImages" / "missing.jpg").unlink()
    with pytest.raises(ValueError, match=r"(?s)missing\.jpg: no such image file.*broken\.xml"):
        data.VocDetection(folder, ["VOC2007/val"])
    assert len(data.VocDetection(folder, ["VOC2007/val"], on_error="skip")) == 1


def test_lists_follow_each_other(tmp_path):
    folder = write(tmp_path, {"a": [DOG], "b": []})
    source = data.VocDetection(folder, ["VOC2007/val", "VOC2007/val"])
    assert len(source) == 4 and [image["id"] for image in source.ground_truth()["images"]] == [0, 1, 2, 3]
    assert [len(example["boxes"]) for example in source] == [1, 0, 1, 0]


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Main/val\.txt: no such list"):
        data.VocDetection(tmp_path, ["VOC2007/val"])
