"""Selective search, and regions on their way from a source to a batch."""

import numpy as np
import pytest

from jaxvision import data


class Squares:
    """Three images of a bright square on dark ground."""

    categories, category_ids = ("square",), (1,)
    corners = ((10, 12), (2, 40), (30, 5))

    def __len__(self):
        return len(self.corners)

    def size(self, index):
        return 60, 80

    def __getitem__(self, index):
        if self.corners[index] is None:
            return None
        left, top = self.corners[index]
        image = np.full((60, 80, 3), 30, np.uint8)
        image[top : top + 20, left : left + 24] = 220
        return {
            "image": image,
            "image_id": index,
            "boxes": np.array([[left, top, left + 24, top + 20]], np.float32),
            "labels": np.zeros(1, np.int32),
            "iscrowd": np.zeros(1, bool),
        }

    def ground_truth(self, indices=None):
        return {"images": list(range(3) if indices is None else indices)}


def test_the_object_is_among_the_regions():
    example = Squares()[0]
    found = data.selective_search(example["image"])
    assert found.dtype == np.float32 and len(np.unique(found, axis=0)) == len(found)
    assert (np.abs(found - example["boxes"]).max(1) <= 2).any()
    height, width = example["image"].shape[:2]
    assert (found >= 0).all() and (found <= [width, height, width, height]).all()
    area = (found[:, 2:] - found[:, :2]).prod(1)
    assert (np.diff(area) <= 0).all()
    np.testing.assert_array_equal(found, data.selective_search(example["image"]))


def test_small_and_supernumerary_regions_are_left_out():
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    everything = data.selective_search(image)
    few = data.selective_search(image, max_regions=5, min_side=8)
    assert len(everything) > 5 == len(few)
    assert (few[:, 2:] - few[:, :2] >= 8).all()
    assert {tuple(box) for box in few} <= {tuple(box) for box in everything}


@pytest.mark.parametrize("image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)])
def test_other_images_are_refused(image):
    with pytest.raises(ValueError, match="uint8"):
        data.selective_search(image)
    with pytest.raises(ValueError, match="'fast' and 'quality'"):
        data.selective_search(np.zeros((8, 8, 3), np.uint8), mode="slow")


def test_regions_of_a_source_are_searched_once(tmp_path, monkeypatch):
    cache = tmp_path / "deep" / "regions.npz"
    searched = data.with_selective_search(Squares(), cache, max_regions=50)
    assert len(searched) == 3
    assert [path.name for path in cache.parent.iterdir()] == ["regions.npz"]
    monkeypatch.setattr("jaxvision.data.regions.selective_search", None)
    again = data.with_selective_search(Squares(), cache, max_regions=50)
    for index in range(3):
        np.testing.assert_array_equal(again[index]["regions"], searched[index]["regions"])
    assert again.ground_truth([0]) == {"images": [0]}
    with pytest.raises(ValueError, match="remove it to search anew"):
        data.with_selective_search(Squares(), cache, max_regions=51)
    with pytest.raises(ValueError, match="regions for 1"):
        data.WithRegions(Squares(), [np.zeros((0, 4))])
    cache.write_bytes(cache.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"regions\.npz is no file of regions .*: remove it"):
        data.with_selective_search(Squares(), cache, max_regions=50)


def test_a_mended_file_is_searched_again(tmp_path, monkeypatch):
    cache = tmp_path / "regions.npz"
    monkeypatch.setattr(Squares, "corners", ((10, 12), None, (30, 5)))  # the second cannot be read
    searched = data.with_selective_search(Squares(), cache)
    assert searched[1] is None and len(searched[2]["regions"]) and not cache.exists()
    monkeypatch.undo()
    assert len(data.with_selective_search(Squares(), cache)[1]["regions"]) and cache.exists()


def test_an_interrupted_search_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(np, "savez_compressed", lambda file, **_: file.write_bytes(b"half") and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        data.with_selective_search(Squares(), tmp_path / "regions.npz")
    assert not list(tmp_path.iterdir())


def test_regions_move_with_the_image():
    example = Squares()[0]
    example["regions"] = np.array([[0, 0, 80, 60], [10, 12, 34, 32], [70, 50, 80, 60]], np.float32)
    flipped = data.flip_horizontal(0, example, probability=1.0)
    np.testing.assert_array_equal(flipped["regions"][1], flipped["boxes"][0])
    larger = data.resize(example, size=(120, 240))
    np.testing.assert_allclose(larger["regions"][1], larger["boxes"][0])
    cropped = data.random_crop(0, example, size=(30, 40))
    assert cropped["regions"].shape[0] < 3  # the last lies outside
    inside = (cropped["regions"] == cropped["boxes"][0]).all(1)
    assert inside.any()


def test_regions_follow_the_scale_of_decoding(tmp_path):
    """They are kept in pixels of the whole image, so that a file of them serves whatever the images are decoded at."""

    class Halves(Squares):
        def __getitem__(self, index):
            whole = super().__getitem__(index)
            return {**whole, "image": whole["image"][::2, ::2], "size": (60, 80), "boxes": whole["boxes"] / 2}

    cache = tmp_path / "regions.npz"
    halves, whole = (data.with_selective_search(source, cache) for source in (Halves(), Squares()))
    for index in range(3):
        np.testing.assert_array_equal(whole[index]["regions"], 2 * halves[index]["regions"])
        assert (np.abs(halves[index]["regions"] - halves[index]["boxes"]).max(1) <= 2).any()


def test_batches_hold_regions_padded():
    regions = [np.array([[0, 0, 9, 9], [1, 2, 3, 4]], np.float32), np.zeros((0, 4)), np.zeros((0, 4))]
    options = dict(batch_size=4, shapes=((60, 80),))
    without, rows = (data.DetectionRows(max_objects=2, with_masks=False, max_regions=count) for count in (0, 4))
    batch = next(data.batches(data.WithRegions(Squares(), regions), rows, **options))
    assert batch["regions"].boxes.shape == (4, 4, 4) and batch["valid"].tolist() == [True, True, True, False]
    assert batch["regions"].valid.tolist() == [[True, True, False, False], [False] * 4, [False] * 4, [False] * 4]
    np.testing.assert_array_equal(batch["regions"].boxes[0, :2], regions[0])
    assert "regions" not in next(data.batches(Squares(), without, **options))
    with pytest.raises(ValueError, match="with_selective_search"):
        next(data.batches(Squares(), rows, workers=0, **options))


def test_too_many_regions_are_thinned_and_counted(caplog):
    regions = [np.arange(5)[:, None] + np.array([[0, 0, 8, 9]], np.float32)] * 3
    rows = data.DetectionRows(max_objects=2, with_masks=False, max_regions=3)
    batches = data.batches(data.WithRegions(Squares(), regions), rows, batch_size=3, shapes=((60, 80),), workers=0)
    batch = next(batches)
    np.testing.assert_array_equal(batch["regions"].boxes, [regions[0][[0, 2, 4]]] * 3)
    assert batches.dropped == {"more than max_regions=3": 6} and "2 boxes of image 0 left out" in caplog.text
