import json
import logging
import pathlib
import re

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from jaxvision.data import DetectionRows, batches
from jaxvision.data.coco import CocoDetection
from jaxvision.data.masks import run_lengths
from jaxvision.data.source import DetectionSource, Subset

# pycocotools 2.0.11 under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

SQUARE = [[2, 3, 10, 3, 10, 8, 2, 8]]  # polygon of the box [2, 3, 8, 5]


def content():
    blob = np.zeros((20, 30), np.uint8)
    blob[4:9, 5:25] = 1
    packed = rle.encode(np.asfortranarray(blob))
    packed["counts"] = packed["counts"].decode()
    column = {"size": [20, 30], "counts": [60, 20, 520]}  # the column x = 3
    box = {"iscrowd": 0, "image_id": 7}
    return {
        "images": [
            {"id": 7, "file_name": "a.jpg", "height": 20, "width": 30},
            {"id": 3, "file_name": "deep/b.png", "height": 16, "width": 16},
        ],
        "annotations": [
            box | {"id": 1, "category_id": 90, "bbox": [2, 3, 8, 5], "segmentation": SQUARE, "area": 40},
            box | {"id": 2, "category_id": 5, "bbox": [5, 4, 20, 5], "segmentation": packed},
            box | {"id": 9, "category_id": 90, "bbox": [3, 0, 1, 20], "segmentation": column, "iscrowd": 1},
        ],
        "categories": [{"id": 90, "name": "tooth"}, {"id": 5, "name": "bus"}, {"id": 44, "name": "nothing"}],
    }


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "deep").mkdir()
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "a.jpg")
    Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(tmp_path / "deep" / "b.png")
    return tmp_path


def write(folder, data) -> pathlib.Path:
    path = folder / "instances.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def read(folder, data=None, **options):
    return CocoDetection(folder, write(folder, content() if data is None else data), **options)


def test_reads_every_kind_of_annotation(folder):
    source = read(folder)
    assert isinstance(source, DetectionSource)
    assert source.categories == ("bus", "nothing", "tooth") and source.category_ids == (5, 44, 90)
    example = source[0]
    assert example["image"].shape == (20, 30, 3) and example["image"].dtype == np.uint8 and example["image_id"] == 7
    assert example["boxes"].tolist() == [[2, 3, 10, 8], [5, 4, 25, 9], [3, 0, 4, 20]]
    assert example["labels"].tolist() == [2, 0, 2] and example["iscrowd"].tolist() == [False, False, True]
    masks = np.zeros((3, 20, 30), bool)
    masks[0, 3:8, 2:10] = masks[1, 4:9, 5:25] = masks[2, :, 3] = True
    np.testing.assert_array_equal(example["masks"], masks)
    assert {name: example[name].dtype for name in ("boxes", "labels", "masks", "iscrowd")} == {
        "boxes": np.float32,
        "labels": np.int32,
        "masks": bool,
        "iscrowd": bool,
    }


def test_image_without_objects_and_grey_image(folder):
    example = read(folder)[1]
    assert example["image"].shape == (16, 16, 3)
    assert example["boxes"].shape == (0, 4) and example["masks"].shape == (0, 16, 16)
    assert example["labels"].shape == example["iscrowd"].shape == (0,)


def test_without_masks_the_segmentation_may_be_missing(folder):
    data = content()
    for annotation in data["annotations"]:
        del annotation["segmentation"]
    assert "masks" not in read(folder, data, with_masks=False)[0]
    with pytest.raises(ValueError, match=r"lacks \['segmentation'\]; or read with with_masks=False"):
        read(folder, data)


def test_keypoints(folder):
    data = content()
    data["annotations"][0]["keypoints"] = [1, 2, 2, 4, 5, 1]
    points = read(folder, data)[0]["keypoints"]
    assert points.tolist() == [[[1, 2, 2], [4, 5, 1]], [[0] * 3] * 2, [[0] * 3] * 2] and points.dtype == np.float32


def test_boxes_are_clipped_to_the_image(folder):
    data = content()
    data["annotations"][0]["bbox"] = [-1.5, 3, 8, 30]
    source = read(folder, data)
    assert source[0]["boxes"][0].tolist() == [0, 3, 6.5, 20]
    assert source.ground_truth()["annotations"][0]["bbox"] == [-1.5, 3, 8, 30]


def test_ground_truth_is_the_file_with_masks_as_rle(folder):
    source = read(folder)
    truth = source.ground_truth()
    assert [a["id"] for a in truth["annotations"]] == [1, 2, 3] and [i["id"] for i in truth["images"]] == [7, 3]
    assert [a["category_id"] for a in truth["annotations"]] == [90, 5, 90]
    assert [a["area"] for a in truth["annotations"]] == [40, 100, 20]
    assert [a["iscrowd"] for a in truth["annotations"]] == [0, 0, 1]
    for annotation, mask in zip(truth["annotations"], source[0]["masks"]):
        np.testing.assert_array_equal(rle.decode(annotation["segmentation"]), mask)
    json.dumps(truth)
    assert source.ground_truth([1])["annotations"] == []


@pytest.mark.parametrize("side", [None, 14])
def test_masks_are_those_of_pycocotools(tmp_path, side):
    """Polygons in several parts, and RLE of both kinds, of random objects; planes bit by bit, grids by their area."""
    rng = np.random.default_rng(0)
    height, width, data = 40, 50, content()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(tmp_path / "a.png")
    data["images"] = [{"id": 7, "file_name": "a.png", "height": height, "width": width}]
    data["annotations"], wanted = [], []
    for number in range(30):
        if number % 3:
            blob = np.zeros((height, width), np.uint8)
            (top, left), sides = rng.integers(0, 30, 2), rng.integers(1, 20, 2)
            window = blob[top : top + sides[0], left : left + sides[1]]
            window[:] = rng.random(window.shape) < 0.7
            code = rle.encode(np.asfortranarray(blob))
            counts = code["counts"].decode() if number % 3 == 1 else run_lengths(code["counts"]).tolist()
            segmentation = {"size": [height, width], "counts": counts}
        else:
            segmentation = [
                (rng.random((6, 2)) * [width, height]).round(2).ravel().tolist() for _ in range(1 + number % 2)
            ]
            code = rle.merge(rle.frPyObjects(segmentation, height, width))
        box = [0, 0, width, height]
        record = {"id": number, "image_id": 7, "category_id": 5, "bbox": box, "segmentation": segmentation}
        data["annotations"].append(record)
        wanted.append(rle.decode(code))
    example = CocoDetection(tmp_path, write(tmp_path, data), mask_side=side)[0]
    if side is None:
        np.testing.assert_array_equal(example["masks"], np.array(wanted, bool))
    else:
        left, top, right, bottom = example["mask_boxes"].T
        areas = example["masks"].sum((1, 2)) / 255 * (right - left) * (bottom - top) / side**2
        # each of the cells is rounded by at most half of 1/255
        np.testing.assert_allclose(areas, np.sum(wanted, axis=(1, 2)), atol=height * width / 510)


def test_subset(folder):
    chosen = Subset(read(folder), [1])
    assert len(chosen) == 1 and chosen[0]["image_id"] == 3 and chosen.category_ids == (5, 44, 90)
    assert (
        [i["id"] for i in chosen.ground_truth()["images"]]
        == [3]
        == [i["id"] for i in chosen.ground_truth([0])["images"]]
    )
    with pytest.raises(ValueError, match=r"indices \[2\] are outside a source of 2"):
        Subset(read(folder), [2])


def test_run_lengths_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for density in (0.0, 0.01, 0.5, 1.0):
        mask = np.asfortranarray(rng.random((37, 91)) < density, dtype=np.uint8)
        flat = mask.ravel(order="F")
        edges = np.flatnonzero(np.diff(flat)) + 1
        expected = np.diff([0, *edges, flat.size]).tolist()
        expected = expected if flat[0] == 0 else [0, *expected]
        assert run_lengths(rle.encode(mask)["counts"]).tolist() == expected
    assert run_lengths(b"") is run_lengths(b"P") is run_lengths("é!".encode()) is run_lengths(b"PPPPPPPP0") is None


ANNOTATION_FAULTS = {
    "no box": ({"bbox": None}, r"lacks \['bbox'\]"),
    "no image id": ({"image_id": None}, r"lacks \['image_id'\]"),
    "no category": ({"category_id": None}, r"lacks \['category_id'\]"),
    "negative width": ({"bbox": [2, 3, -8, 5]}, r"bbox \[2, 3, -8, 5\] has a negative width or height"),
    "no area": ({"bbox": [2, 3, 8, 0]}, "has no area"),
    "not finite": ({"bbox": [2, 3, 8, float("nan")]}, "four finite numbers"),
    "three numbers": ({"bbox": [2, 3, 8]}, "four finite numbers"),
    "outside": ({"bbox": [30, 3, 8, 5]}, "outside its image of 20×30"),
    "unknown category": ({"category_id": 6}, "category_id 6 is not in the list 'categories'"),
    "unknown image": ({"image_id": 8}, "image_id 8 is not in the list 'images'"),
    "list as image": ({"image_id": [7]}, r"image_id \[7\] is not in the list"),
    "empty segmentation": ({"segmentation": []}, "segmentation is empty"),
    "two points": ({"segmentation": [[1, 2, 3, 4]]}, "at least three points"),
    "text": ({"segmentation": "abc"}, "must be polygons, or an RLE"),
    "rle of another size": ({"segmentation": {"size": [30, 20], "counts": [600]}}, r"is for an image of \[30, 20\]"),
    "rle too short": ({"segmentation": {"size": [20, 30], "counts": [20]}}, "do not add up to the 600 pixels"),
    "rle negative": ({"segmentation": {"size": [20, 30], "counts": [700, -100]}}, "do not add up"),
    "rle text too short": ({"segmentation": {"size": [20, 30], "counts": "PPYo0"}}, "do not add up"),
    "rle garbage": ({"segmentation": {"size": [20, 30], "counts": "ÿÿ"}}, "do not add up"),
    "keypoints": ({"keypoints": [1, 2]}, "keypoints must be 0 finite numbers"),
}


@pytest.mark.parametrize(("change", "reason"), ANNOTATION_FAULTS.values(), ids=ANNOTATION_FAULTS)
def test_bad_annotation(folder, caplog, change, reason):
    data = content()
    data["annotations"][1].update(change)
    for key in [key for key, value in change.items() if value is None]:
        del data["annotations"][1][key]
    pattern = f"instances.json: annotation 2: .*{reason}"
    with pytest.raises(ValueError, match=pattern) as error:
        read(folder, data)
    assert "on_error='skip'" in str(error.value)
    with caplog.at_level(logging.WARNING, logger="jaxvision"):
        source = read(folder, data, on_error="skip")
    assert source[0]["labels"].tolist() == [2, 2] and len(source.ground_truth()["annotations"]) == 2
    assert len(source.problems) == len(caplog.records) == 1
    assert re.search(pattern, source.problems[0]) and re.search(pattern, caplog.text)


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_missing_list(folder, key):
    data = content()
    del data[key]
    for on_error in ("raise", "skip"):
        with pytest.raises(ValueError, match=rf"instances\.json: the key '{key}' is missing"):
            read(folder, data, on_error=on_error)


def test_broken_json(folder):
    with pytest.raises(ValueError, match=r"instances\.json: not valid JSON .*line 1 column"):
        read(folder, '{"images": [')
    with pytest.raises(ValueError, match="'images' must be a list"):
        read(folder, content() | {"images": 3})
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        CocoDetection(folder, folder / "none.json")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        CocoDetection(folder / "none", write(folder, content()))


def test_bad_categories(folder):
    with pytest.raises(ValueError, match=r"lacks \['name'\]"):
        read(folder, content() | {"categories": [{"id": 1}]})
    with pytest.raises(ValueError, match="share an id"):
        read(folder, content() | {"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]})
    with pytest.raises(ValueError, match="must be an integer"):
        read(folder, content() | {"categories": [{"id": "1", "name": "a"}]})
    with pytest.raises(ValueError, match="is empty"):
        read(folder, content() | {"categories": []})


IMAGE_FAULTS = {
    "no file name": ({"id": 3, "height": 16, "width": 16}, r"image at position 1: lacks \['file_name'\]"),
    "same id": ({"id": 7, "file_name": "deep/b.png", "height": 16, "width": 16}, r"the id 7 is taken by a\.jpg"),
    "text as id": ({"id": "b", "file_name": "deep/b.png", "height": 16, "width": 16}, "must be an integer"),
    "no height": ({"id": 3, "file_name": "deep/b.png", "height": 0, "width": 16}, "must be positive integers"),
    "no file": ({"id": 3, "file_name": "c.png", "height": 16, "width": 16}, r"c\.png: no such image file"),
}


@pytest.mark.parametrize(("record", "reason"), IMAGE_FAULTS.values(), ids=IMAGE_FAULTS)
def test_bad_image_record(folder, record, reason):
    data = content()
    data["images"][1] = record
    with pytest.raises(ValueError, match=reason):
        read(folder, data)
    source = read(folder, data, on_error="skip")
    assert len(source) == 1 and len(source.problems) == 1


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize("name", ["a.jpg", "deep/b.png"])
def test_truncated_image_is_found_before_training(folder, name):
    truncate(folder / name)
    with pytest.raises(ValueError, match=rf"{name}: not a readable image"):
        read(folder)
    source = read(folder, on_error="skip")
    assert len(source) == 1 and len(source.problems) == 1


def test_image_that_breaks_later(folder, caplog):
    strict, lenient = read(folder), read(folder, on_error="skip")
    truncate(folder / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg: not a readable image"):
        strict[0]
    with caplog.at_level(logging.WARNING, logger="jaxvision"):
        assert lenient[0] is lenient[0] is None
    assert len(lenient.problems) == len(caplog.records) == 1
    rows, options = DetectionRows(max_objects=2), {"shapes": ((32, 32),), "batch_size": 2}
    batch = next(batches(lenient, rows, repeat=True, **options))
    assert batch["image_ids"].tolist() == [3, 3]
    batch = next(batches(lenient, rows, **options))
    assert batch["image_ids"].tolist() == [-1, 3] and batch["valid"].tolist() == [False, True]


def test_image_of_another_size(folder):
    data = content()
    data["images"][1]["height"] = 17
    with pytest.raises(ValueError, match=r"b\.png: is 16×16, but the annotations say 17×16"):
        read(folder, data)[1]
    source = read(folder, data, on_error="skip")
    assert source[1] is None and "17×16" in source.problems[0]


def test_many_problems_are_listed_together(folder):
    data = content()
    data["annotations"] = [data["annotations"][0] | {"id": i, "bbox": [0, 0, -1, 1]} for i in range(15)]
    with pytest.raises(ValueError, match="15 problem") as error:
        read(folder, data)
    assert "annotation 9:" in str(error.value) and "and 5 more" in str(error.value)
    with pytest.raises((ValueError, TypeError), match="on_error"):  # the import hook is first here
        read(folder, on_error="ignore")
