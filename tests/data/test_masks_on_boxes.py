"""Masks on their own boxes: shares of cells against a slow sum, however the mask was given."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxvision.data.masks import coverage, frames_of, on_boxes, runs_of


def slow_coverage(mask, box, side):
    """The share of each cell, as the sum over pixels of what they have in common with it."""
    left, top, right, bottom = box

    def shares(low, high, length):
        lines = np.linspace(low, high, side + 1)
        pixel = np.arange(length)
        common = np.minimum(pixel + 1, lines[1:, None]) - np.maximum(pixel, lines[:-1, None])
        return np.clip(common, 0, None) / ((high - low) / side)

    return shares(top, bottom, mask.shape[0]) @ mask @ shares(left, right, mask.shape[1]).T


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), side=st.integers(1, 9))
def test_shares_are_exact(seed, side):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 30, 2)
    mask = rng.random((height, width)) < rng.random()
    left, right = np.sort(rng.uniform(-3, width + 3, 2))
    top, bottom = np.sort(rng.uniform(-3, height + 3, 2))
    box = np.array([left, top, right, bottom])
    got = coverage(runs_of(mask), (int(height), int(width)), box, side=side)
    np.testing.assert_allclose(got, 255 * slow_coverage(mask, box, side), atol=0.5 + 1e-6)


def test_whole_pixels_are_kept_exactly():
    mask = np.random.default_rng(0).random((6, 6)) < 0.5
    grid = coverage(runs_of(mask), (6, 6), np.array([0.0, 0, 6, 6]), side=6)
    np.testing.assert_array_equal(grid, 255 * mask)
    finer = coverage(runs_of(mask), (6, 6), np.array([0.0, 0, 6, 6]), side=18)
    np.testing.assert_array_equal(finer, 255 * np.kron(mask, np.ones((3, 3), bool)))


def test_frames_give_each_pixel_whole_cells():
    boxes = np.array([[3.2, 4, 9.1, 30], [0, 0, 8, 8], [2, 2, 40, 5], [5.5, 5.5, 5.6, 5.6]], np.float32)
    frames = frames_of(boxes, 28)
    np.testing.assert_allclose(frames, [[3, 4, 10, 32], [0, 0, 28 / 3, 28 / 3], [2, 2, 40, 2 + 28 / 9], [5, 5, 6, 6]])
    mask = np.random.default_rng(0).random((40, 40)) < 0.5
    grid = coverage(runs_of(mask), mask.shape, frames[0], side=28)
    np.testing.assert_array_equal(grid, 255 * np.kron(mask[4:32, 3:10], np.ones((1, 4), bool)))


@pytest.mark.parametrize(
    "box", [(3, 3, 3, 5), (3, 3, 5, 3), (4, 4, 2, 2), (-4, 1, -1, 5), (9, 1, 12, 5), (1, 9, 5, 12)]
)
def test_boxes_without_area_or_outside_give_zeros(box):
    assert not coverage(runs_of(np.ones((8, 8), bool)), (8, 8), np.array(box, np.float64), side=4).any()


def test_planes_move_to_their_boxes_once():
    planes = np.zeros((2, 8, 8), bool)
    planes[0, 2:6, 1:5] = planes[1, :, :4] = True
    boxes = np.array([[1, 2, 5, 6], [0, 0, 8, 8]], np.float32)  # of four pixels, and of more than there are cells
    example = {"image": np.zeros((8, 8, 3), np.uint8), "boxes": boxes, "masks": planes}
    moved = on_boxes(example, 4)
    np.testing.assert_array_equal(moved["masks"][0], np.full((4, 4), 255))
    np.testing.assert_array_equal(moved["masks"][1], np.repeat([[255, 255, 0, 0]], 4, axis=0))
    np.testing.assert_array_equal(moved["mask_boxes"], boxes)
    assert on_boxes(moved, 4) is moved
    with pytest.raises(ValueError, match="4 cells a side, but 7"):
        on_boxes(moved, 7)
    nothing = on_boxes(example | {"boxes": boxes[:0], "masks": planes[:0]}, 4)
    assert nothing["masks"].shape == (0, 4, 4)
