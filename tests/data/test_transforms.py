"""The law: transform then draw = draw then transform."""

import copy
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvision.data.masks import on_boxes
from jaxvision.data.transforms import (
    central_crop,
    colour_jitter,
    crop,
    flip_horizontal,
    random_crop,
    random_resized_crop,
    resize,
    scale_jitter,
)

COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


def draw(size, boxes):
    """A picture of filled boxes of whole coordinates, each in a colour and channel of its own."""
    image = np.zeros((*size, 3), np.uint8)
    for box, colour in zip(boxes.astype(int), COLOURS):
        image[box[1] : box[3], box[0] : box[2]] += colour
    return image


def example_of(size, boxes):
    """An example whose image, masks, semantic map and keypoints (corners) all follow from its boxes."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    image = draw(size, boxes)
    masks = np.moveaxis(image[..., : len(boxes)] > 0, -1, 0)
    seen = np.full((len(boxes), 1), 2, np.float32)
    points = [np.concatenate([boxes[:, :2], seen], -1), np.concatenate([boxes[:, 2:], seen], -1)]
    return {
        "image": image,
        "image_id": 3,
        "boxes": boxes,
        "labels": np.arange(len(boxes), dtype=np.int32),
        "masks": masks,
        "semantic": masks[0].astype(np.uint8),
        "keypoints": np.stack(points, axis=1),
        "iscrowd": np.zeros(len(boxes), bool),
    }


@pytest.fixture
def example():
    return example_of((24, 36), [[2, 4, 14, 20], [8, 8, 34, 12], [20, 16, 22, 24]])


def check(result, boxes, size):
    """The result is the drawing of ``boxes``, which is what its image, masks, boxes and keypoints say."""
    expected = example_of(size, boxes)
    for name in ("image", "masks", "boxes", "semantic"):
        np.testing.assert_array_equal(result[name], expected[name], err_msg=name)
        assert result[name].dtype == expected[name].dtype, name
    np.testing.assert_array_equal(np.sort(result["keypoints"], axis=1), np.sort(expected["keypoints"], axis=1))
    assert result["keypoints"].dtype == np.float32


def test_flip(example):
    check(flip_horizontal(0, example, probability=1.0), [[22, 4, 34, 20], [2, 8, 28, 12], [14, 16, 16, 24]], (24, 36))
    check(flip_horizontal(0, example, probability=0.0), example["boxes"], (24, 36))
    twice = flip_horizontal(1, flip_horizontal(0, example, probability=1.0), probability=1.0)
    check(twice, example["boxes"], (24, 36))


def test_flip_happens_as_often_as_said(example):
    flips = [(flip_horizontal(key, example)["boxes"] != example["boxes"]).any() for key in range(200)]
    assert 75 < sum(flips) < 125


def test_flip_swaps_pairs_of_keypoints_and_leaves_unlabelled_ones(example):
    points = np.array([[[1, 2, 2], [5, 6, 1], [0, 0, 0]]] * 3, np.float32)
    flipped = flip_horizontal(0, example | {"keypoints": points}, probability=1.0, keypoint_pairs=((0, 1),))
    assert flipped["keypoints"][0].tolist() == [[31, 6, 1], [35, 2, 2], [0, 0, 0]]


@pytest.mark.parametrize(
    ("size", "boxes"),
    [
        ((72, 108), [[6, 12, 42, 60], [24, 24, 102, 36], [60, 48, 66, 72]]),
        ((24, 36), [[2, 4, 14, 20], [8, 8, 34, 12], [20, 16, 22, 24]]),
        ((12, 18), [[1, 2, 7, 10], [4, 4, 17, 6], [10, 8, 11, 12]]),
    ],
)
def test_resize(example, size, boxes):
    result = resize(example, size=size)
    expected = example_of(size, boxes)
    for name in ("masks", "semantic", "boxes", "keypoints"):
        np.testing.assert_array_equal(result[name], expected[name])
    # Interpolated three times as large, corner pixels are (2/3)² bright and pixels beside an edge 1/3.
    np.testing.assert_array_equal(result["image"] > 100, expected["image"] > 100)
    np.testing.assert_allclose(result["image"].mean(), expected["image"].mean(), rtol=0.03)


def test_resize_of_the_aspect_too(example):
    result = resize(example, size=(48, 36))
    check_boxes = example["boxes"] * [1, 2, 1, 2]
    np.testing.assert_array_equal(result["boxes"], check_boxes)
    np.testing.assert_array_equal(result["masks"], example_of((48, 36), check_boxes)["masks"])


@settings(deadline=None, max_examples=40)
@given(h=st.integers(5, 60), w=st.integers(5, 60))
def test_resized_mask_fills_the_resized_box(h, w):
    box = np.array([4, 6, 31, 22], np.float32)
    result = resize(example_of((24, 36), box), size=(h, w))
    rows, columns = np.nonzero(result["masks"][0])
    tight = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert np.abs(tight - result["boxes"][0]).max() <= 0.5 + 1e-4  # to the nearest pixel border


@pytest.mark.parametrize("factor", [0.35, 0.8, 1.7])
def test_image_and_mask_do_not_shift_against_each_other(factor):
    """Centres of discs move with the factor; single masks are off by the pixel grid, which averages out."""
    height, width = 81, 101  # odd, so that no output pixel's centre falls on a border between input pixels
    y, x = np.mgrid[:height, :width] + 0.5
    errors = []
    for cx, cy in np.random.default_rng(0).uniform(25, 55, (200, 2)):
        disc = (x - cx) ** 2 + (y - cy) ** 2 < 20**2
        example = {"image": np.repeat(disc[..., None] * np.uint8(255), 3, axis=-1), "masks": disc[None]}
        result = resize(example, size=(round(height * factor), round(width * factor)))
        scale = np.array(result["image"].shape[1::-1]) / (width, height)
        for plane in (result["masks"][0], result["image"][..., 0]):
            rows, columns = np.indices(plane.shape) + 0.5
            weight = plane / plane.sum()
            errors.append([(weight * columns).sum(), (weight * rows).sum()] - np.array([cx, cy]) * scale)
    errors = np.array(errors).reshape(-1, 2, 2)
    # Corner-aligned sampling would shift by (1 - factor) / 2, at least 0.1 here.
    assert np.abs(errors.mean(0)).max() < 0.03


def test_resize_by_sides(example):
    assert resize(example, shorter_side=48)["image"].shape == (48, 72, 3)
    assert resize(example, longest_side=18)["image"].shape == (12, 18, 3)
    assert resize(example, shorter_side=48, longest_side=54)["image"].shape == (36, 54, 3)
    for options in ({}, {"size": (3, 3), "longest_side": 4}):
        with pytest.raises(ValueError, match="either size, or"):
            resize(example, **options)


def test_crop(example):
    result = crop(example, top=2, left=4, size=(16, 20))
    # The third box, [20, 16, 22, 24] in the whole picture, keeps two of its eight rows.
    assert result["boxes"].tolist() == [[0, 2, 10, 16], [4, 6, 20, 10], [16, 14, 18, 16]]
    expected = example_of((16, 20), result["boxes"])
    for name in ("image", "masks", "semantic"):
        np.testing.assert_array_equal(result[name], expected[name])
    # Only corners inside the window stay labelled.
    assert result["keypoints"].tolist() == [
        [[0, 0, 0], [0, 0, 0]],
        [[4, 6, 2], [0, 0, 0]],
        [[16, 14, 2], [0, 0, 0]],
    ]


def test_objects_outside_the_crop_are_dropped(example):
    result = crop(example, top=0, left=0, size=(10, 12))
    assert result["labels"].tolist() == [0, 1]
    assert {len(result[name]) for name in ("boxes", "labels", "masks", "keypoints", "iscrowd")} == {2}
    hollow = example | {"masks": example["masks"] & (np.arange(36) >= 13)}
    assert crop(hollow, top=0, left=0, size=(10, 12))["labels"].tolist() == []  # boxes reach in, masks do not
    empty = crop(example, top=0, left=30, size=(4, 4))
    assert empty["boxes"].shape == (0, 4) and empty["masks"].shape == (0, 4, 4)


def test_random_crop_reaches_every_place(example):
    corners = set()
    for key in range(300):
        result = random_crop(key, example, size=(20, 30))
        assert result["image"].shape == (20, 30, 3)
        inside = [
            (top, left)
            for top in range(5)
            for left in range(7)
            if np.array_equal(example["image"][top : top + 20, left : left + 30], result["image"])
        ]
        assert len(inside) == 1
        corners |= set(inside)
    assert len(corners) == 5 * 7
    check(random_crop(0, example, size=(50, 50)), example["boxes"], (24, 36))


def test_crop_outside_the_image_is_refused(example):
    with pytest.raises(ValueError, match="leaves the image of"):
        crop(example, top=20, left=0, size=(5, 5))


def test_scale_jitter(example):
    sizes = []
    for key in range(60):
        result = scale_jitter(key, example, range=(0.5, 2.0))
        h, w = result["image"].shape[:2]
        np.testing.assert_allclose(result["boxes"], example["boxes"] * ([w / 36, h / 24] * 2), rtol=1e-6)
        sizes.append(h)
    assert min(sizes) >= 12 and max(sizes) <= 48 and min(sizes) < 15 and max(sizes) > 42
    with pytest.raises(ValueError, match="two positive factors"):
        scale_jitter(0, example, range=(2.0, 0.5))


def test_colour_jitter_against_a_loop(example):
    image = np.random.default_rng(1).integers(0, 256, (6, 7, 3), np.uint8)
    result = colour_jitter(5, {"image": image}, brightness=0.4, contrast=0.3, saturation=0.9)["image"]
    rng = np.random.default_rng(5)
    bright, steep, vivid = rng.uniform(0.6, 1.4), rng.uniform(0.7, 1.3), rng.uniform(0.1, 1.9)

    def grey(pixel):
        return 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]

    lit = np.array([[[min(255, c * bright) for c in pixel] for pixel in row] for row in image.tolist()])
    mean = np.mean([grey(pixel) for row in lit for pixel in row])
    for i in range(6):
        for j in range(7):
            pixel = np.clip(mean + steep * (lit[i, j] - mean), 0, 255)
            pixel = np.clip(grey(pixel) + vivid * (pixel - grey(pixel)), 0, 255)
            assert np.abs(result[i, j] - pixel).max() <= 0.51
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(colour_jitter(0, {"image": image})["image"], image)
    changed = colour_jitter(0, example, brightness=0.5)
    assert all(changed[name] is example[name] for name in example if name != "image")


TRANSFORMS = {
    "flip": lambda key, e: flip_horizontal(key, e, probability=1.0, keypoint_pairs=((0, 1),)),
    "scale": lambda key, e: scale_jitter(key, e),
    "crop": lambda key, e: random_crop(key, e, size=(11, 13)),
    "colour": lambda key, e: colour_jitter(key, e, brightness=0.5, contrast=0.5, saturation=0.5),
    "resize": lambda key, e: resize(e, longest_side=20),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_pure(transform, example):
    before = copy.deepcopy(example)
    for value in example.values():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False  # sources may hand out what they keep
    results = [transform(key, example) for key in (9, 9, (1, 2, 3))]
    for name in example:
        np.testing.assert_array_equal(example[name], before[name])
        np.testing.assert_array_equal(results[0][name], results[1][name])


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_no_objects_and_images_alone(transform):
    nothing = example_of((24, 36), [[0, 0, 1, 1]])
    nothing = {k: v[:0] if k in ("boxes", "labels", "masks", "keypoints", "iscrowd") else v for k, v in nothing.items()}
    result = transform(0, nothing)
    assert result["boxes"].shape == (0, 4) and result["masks"].shape == (0, *result["image"].shape[:2])
    alone = transform(0, {"image": nothing["image"], "label": 4})
    assert alone["label"] == 4
    np.testing.assert_array_equal(alone["image"], result["image"])


def test_the_data_of_a_jax_key_is_a_key(example):
    data = np.asarray(jax.random.key_data(jax.random.key(3)))
    one, two = (random_crop(data, example, size=(9, 9)) for _ in range(2))
    np.testing.assert_array_equal(one["image"], two["image"])


def test_random_resized_crop_covers_its_range():
    image = np.zeros((60, 90, 3), np.uint8)
    image[..., 0] = np.arange(60)[:, None] * 4
    image[..., 1] = np.arange(90)[None, :] * 2
    shares, aspects, lefts = [], [], []
    for key in range(300):
        window = random_resized_crop(key, {"image": image, "label": 3}, size=(30, 20), area=(0.2, 0.6))
        assert window["image"].shape == (30, 20, 3) and window["label"] == 3
        # How far the colours change from the first to the last pixel's centre tells the window's size.
        rows, columns = window["image"][:, 10, 0].astype(float) / 4, window["image"][15, :, 1].astype(float) / 2
        height, width = (rows[-3] - rows[2]) / 25 * 30, (columns[-3] - columns[2]) / 15 * 20
        shares.append(height * width / (60 * 90))
        aspects.append(width / height)
        lefts.append(columns[0])
    assert 0.17 < min(shares) < 0.24 and 0.5 < max(shares) < 0.65 and abs(np.mean(shares) - 0.4) < 0.03
    assert 0.68 < min(aspects) < 0.85 and 1.2 < max(aspects) < 1.45 and abs(np.mean(np.log(aspects))) < 0.05
    assert min(lefts) < 3 and max(lefts) > 40


def test_random_resized_crop_moves_the_objects():
    """A bright square and its box stay together."""
    image, mask = np.zeros((40, 40, 3), np.uint8), np.zeros((1, 40, 40), bool)
    image[10:30, 12:28], mask[0, 10:30, 12:28] = 255, True
    example = {
        "image": image,
        "boxes": np.array([[12, 10, 28, 30]], np.float32),
        "labels": np.array([2]),
        "masks": mask,
    }
    for key in range(20):
        moved = random_resized_crop(key, example, size=(80, 80), area=(0.7, 1.0), aspect=(1.0, 1.0))
        ys, xs = np.nonzero(moved["image"][..., 0] > 127)
        found = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        np.testing.assert_allclose(moved["boxes"][0], found, atol=1.01)
        ys, xs = np.nonzero(moved["masks"][0])
        np.testing.assert_allclose([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], found, atol=2.01)


def test_random_resized_crop_of_a_strip_is_its_middle():
    """No window of an allowed aspect has enough area: the largest one in the middle."""
    image = np.zeros((10, 100, 3), np.uint8)
    image[:, 43:56] = 255
    window = random_resized_crop(0, {"image": image}, size=(9, 12), area=(0.9, 1.0))["image"]
    assert (window == 255).all()
    with pytest.raises(ValueError, match="more than the image's area"):
        random_resized_crop(0, {"image": image}, size=(9, 9), area=(0.5, 2.0))
    with pytest.raises(ValueError, match="aspect must be"):
        random_resized_crop(0, {"image": image}, size=(9, 9), aspect=(2.0, 1.0))


def test_central_crop():
    image = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    np.testing.assert_array_equal(central_crop({"image": image}, size=(3, 3))["image"], image[1:4, 2:5])
    np.testing.assert_array_equal(central_crop({"image": image}, size=(9, 3))["image"], image[:, 2:5])


def with_grids(side):
    """An example with planes of masks whose boxes are whole pixels, and the same with masks on their boxes."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (24, 36, 3), np.uint8)
    boxes = np.array([[3, 2, 15, 14], [12, 6, 36, 18], [0, 0, 36, 24]], np.float32)
    planes = np.zeros((3, 24, 36), bool)
    for plane, (left, top, right, bottom) in zip(planes, boxes.astype(int)):
        plane[top:bottom, left:right] = rng.random((bottom - top, right - left)) < 0.5
    example = {
        "image": image, "boxes": boxes, "masks": planes,
        "labels": np.arange(3, dtype=np.int32), "iscrowd": np.zeros(3, bool),
    }  # fmt: skip
    return example, on_boxes(example, side)


def planes_of(example):
    """The mean over each pixel of the grids of an example, [n, h, w]."""

    def shares(low, high, cells, length):
        lines = np.linspace(low, high, cells + 1)
        return np.diff(np.clip(lines - np.arange(length)[:, None], 0, 1), axis=1)

    height, width = example["image"].shape[:2]
    planes = [
        shares(top, bottom, len(grid), height) @ (grid / 255) @ shares(left, right, len(grid), width).T
        for grid, (left, top, right, bottom) in zip(example["masks"], example["mask_boxes"])
    ]
    return np.array(planes).reshape(-1, height, width)


MOVES = {
    "flip": partial(flip_horizontal, 0, probability=1.0),
    "crop": partial(crop, top=4, left=7, size=(15, 20)),
    "enlarge": partial(resize, size=(48, 72)),
    "crop, enlarge and flip": lambda example: flip_horizontal(
        0, resize(crop(example, top=1, left=5, size=(12, 30)), size=(36, 90)), probability=1.0
    ),
    "scale": partial(scale_jitter, 3, range=(2.0, 2.0)),
}


@pytest.mark.parametrize("move", MOVES)
def test_masks_on_boxes_move_exactly_as_planes(move):
    """Where planes can be moved exactly, whole pixels to whole pixels, and the grids' cells are parts of pixels."""
    full, grids = with_grids(side=72)
    wanted, moved = MOVES[move](full), MOVES[move](grids)
    np.testing.assert_array_equal(moved["boxes"], wanted["boxes"])
    np.testing.assert_array_equal(moved["labels"], wanted["labels"])
    np.testing.assert_allclose(planes_of(moved), wanted["masks"], atol=1e-4)


def test_objects_whose_mask_is_left_behind_are_dropped():
    full, _ = with_grids(side=24)
    full["masks"][1, :, 20:] = False  # what remains of object 1 is left of column 20
    grids = on_boxes(full, 24)
    window = dict(top=0, left=22, size=(24, 14))
    assert crop(full, **window)["labels"].tolist() == crop(grids, **window)["labels"].tolist() == [2]
    left = crop(grids, **window)
    assert left["masks"].shape == (1, 24, 24) and left["mask_boxes"].tolist() == [[-22, 0, 14, 24]]
    assert left["boxes"].tolist() == [[0, 0, 14, 24]]  # clipped, while the frame is not
