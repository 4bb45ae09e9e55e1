import subprocess
import sys

import numpy as np
import pytest
from pycocotools import mask as rle

from jaxvision.data import digit_scenes
from jaxvision.data.digit_scenes import (
    MAX_DIGITS,
    MIN_VISIBLE,
    DigitScenesSource,
    enlarge,
    handwriting,
    load_digit_scenes,
    paint,
    photographs,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept:DeprecationWarning"
)  # pycocotools


@pytest.fixture(scope="module")
def photos():
    return photographs()


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(digit_scenes, "SCENES", {"train": 12, "test": 4})


def scene(photos, seed, split="train"):
    return paint(np.random.default_rng(seed), photos, *handwriting(split))


def test_handwriting_of_the_splits_is_disjoint():
    train, test = handwriting("train")[0], handwriting("test")[0]
    assert (len(train), len(test)) == (1437, 360)
    assert not np.shares_memory(train, test)


def test_enlarged_digit():
    digit = np.zeros((8, 8), np.float32)
    digit[2:6, 3:5] = 16
    large = enlarge(digit, 32)
    assert large.shape == (40, 40) and large.max() == 1 and large.min() == 0
    rows, columns = np.nonzero(large > 0.5)  # cell i of the digit covers 4 (i + 1) ... 4 (i + 2)
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (12, 28, 16, 24)


def test_scene_is_consistent(photos):
    counts = set()
    for seed in range(40):
        image, instances, semantic, boxes, labels = scene(photos, seed)
        assert image.shape == (128, 128, 3) and image.dtype == np.uint8
        counts.add(len(labels))
        for number, (box, label) in enumerate(zip(boxes.astype(int), labels), start=1):
            mask = instances == number
            left, top, right, bottom = box
            assert mask.sum() == mask[top:bottom, left:right].sum() > 0
            assert mask[top].any() and mask[bottom - 1].any() and mask[:, left].any() and mask[:, right - 1].any()
            assert set(np.unique(semantic[mask])) == {label + 1}
        assert (semantic > 0).sum() == (instances > 0).sum()
        assert instances.max() == len(labels)
    assert counts == set(range(1, MAX_DIGITS + 1))


def test_pixels_outside_the_masks_far_from_digits_are_the_photograph(photos):
    painted = scene(photos, 3)
    rng = np.random.default_rng(3)
    untouched = digit_scenes.background(rng, photos)
    changed = (painted.image != untouched).any(-1)
    assert changed[painted.instances > 0].mean() > 0.99
    assert changed.mean() < 0.9


def test_digits_stay_visible(photos, monkeypatch):
    """Painting again without overlap tells how large each digit was before it was covered."""
    full = []
    place = digit_scenes.place

    def spy(rng, mask, instances, areas):
        corner = place(rng, mask, instances, areas)
        if corner is not None:
            full.append(mask.sum())
        return corner

    monkeypatch.setattr(digit_scenes, "place", spy)
    covered = 0
    for seed in range(30):
        full.clear()
        painted = scene(photos, seed)
        visible = np.bincount(painted.instances.ravel(), minlength=len(full) + 1)[1:]
        assert (visible >= MIN_VISIBLE * np.array(full)).all()
        covered += (visible < full).sum()
    assert covered > 5


def test_prepared_scenes(few, tmp_path):
    train, test = (load_digit_scenes(split, data_dir=tmp_path) for split in ("train", "test"))
    assert (len(train), len(test)) == (12, 4)
    photos = photographs()
    for split, source in enumerate((train, test)):
        for index in range(len(source)):
            example = source[index]
            painted = scene(photos, (split, index), ("train", "test")[split])
            assert example["image_id"] == index
            np.testing.assert_array_equal(example["image"], painted.image)
            np.testing.assert_array_equal(example["semantic"], painted.semantic)
            np.testing.assert_array_equal(example["boxes"], painted.boxes)
            np.testing.assert_array_equal(example["labels"], painted.labels)
            for number, mask in enumerate(example["masks"], start=1):
                np.testing.assert_array_equal(mask, painted.instances == number)
            assert example["image"].dtype == np.uint8 and example["boxes"].dtype == np.float32
            assert example["labels"].dtype == np.int32 and example["masks"].dtype == bool


def test_ground_truth(few, tmp_path):
    source = load_digit_scenes("test", data_dir=tmp_path)
    truth = source.ground_truth([1, 3])
    assert [image["id"] for image in truth["images"]] == [1, 3]
    assert [c["name"] for c in truth["categories"]] == list("0123456789")
    annotations = iter(truth["annotations"])
    for index in (1, 3):
        example = source[index]
        for box, label, mask in zip(example["boxes"], example["labels"], example["masks"]):
            annotation = next(annotations)
            assert annotation["category_id"] == label + 1 and annotation["image_id"] == index
            np.testing.assert_array_equal(annotation["bbox"], [*box[:2], *(box[2:] - box[:2])])
            np.testing.assert_array_equal(rle.decode(annotation["segmentation"]), mask)
            assert annotation["area"] == mask.sum() and annotation["iscrowd"] == 0
    assert next(annotations, None) is None
    assert len(source.ground_truth()["images"]) == 4


def test_interrupted_preparation_starts_again(few, tmp_path, monkeypatch):
    calls = []

    def breaks(*args):
        calls.append(args)
        if len(calls) == 14:  # in the middle of the second split
            raise KeyboardInterrupt
        return paint(*args)

    monkeypatch.setattr(digit_scenes, "paint", breaks)
    with pytest.raises(KeyboardInterrupt):
        load_digit_scenes("train", data_dir=tmp_path)
    assert not (tmp_path / "digit_scenes" / "1.0.0").exists()
    assert isinstance(load_digit_scenes("train", data_dir=tmp_path), DigitScenesSource)
    assert len(calls) == 14 + 16


def test_two_processes_prepare_at_once(few, tmp_path, monkeypatch):
    def overtaken(*args):
        monkeypatch.setattr(digit_scenes, "paint", paint)
        load_digit_scenes("test", data_dir=tmp_path)  # another process begins later and is done first
        return paint(*args)

    monkeypatch.setattr(digit_scenes, "paint", overtaken)
    source = load_digit_scenes("train", data_dir=tmp_path)
    assert len(source) == 12 and source[11]["image_id"] == 11
    assert [path.name for path in (tmp_path / "digit_scenes").iterdir()] == ["1.0.0"]


def test_default_folder(few, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVISION_DATASETS", str(tmp_path / "elsewhere"))
    load_digit_scenes("test")
    assert (tmp_path / "elsewhere" / "digit_scenes" / "1.0.0" / "dataset_info.json").exists()


def test_unknown_split(tmp_path):
    with pytest.raises(ValueError, match="train, test, not 'val'"):
        load_digit_scenes("val", data_dir=tmp_path)


def test_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxvision-flax\[demo\]'"):
        load_digit_scenes("train", data_dir=tmp_path)


def test_tensorflow_is_never_imported(tmp_path):
    code = (
        "import sys\n"
        "from jaxvision.data import digit_scenes\n"
        "digit_scenes.SCENES.update(train=2, test=2)\n"
        f"digit_scenes.load_digit_scenes('train', data_dir={str(tmp_path)!r})[0]\n"
        "from jaxvision.data import pipeline\n"
        "assert not {'tensorflow', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
