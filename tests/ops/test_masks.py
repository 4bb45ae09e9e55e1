"""Pasting and cropping masks against loops over pixels; polygons and RLE."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxvision.ops import masks as ops
from jaxvision.ops.roi import roi_align

# pycocotools' own decode warns under numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

BOXES = np.asarray(
    [
        [2.3, 1.7, 14.4, 9.2],
        [-4.5, -3.2, 6.1, 7.7],
        [8, 8, 8, 8],
        [0, 0, 20, 12],
        [40, 40, 60, 50],
        [3.2, 2.9, 4.1, 11],
    ],
    np.float32,
)
SIZE = (12, 20)


def probabilities(n=6, m=5):
    return np.random.default_rng(0).uniform(size=(n, m, m)).astype(np.float32)


def bilinear(mask, y, x, clamp):
    """Value between pixel centres at whole positions; outside the border value if clamp, else zero."""
    total = 0.0
    for i, j in np.ndindex(2, 2):
        y0, x0 = int(np.floor(y)) + i, int(np.floor(x)) + j
        weight = (1 - abs(y - y0)) * (1 - abs(x - x0))
        if clamp:
            y0, x0 = np.clip(y0, 0, mask.shape[0] - 1), np.clip(x0, 0, mask.shape[1] - 1)
        if 0 <= y0 < mask.shape[0] and 0 <= x0 < mask.shape[1]:
            total += weight * mask[y0, x0]
    return total


def slow_paste_snapped(mask, box):
    m = len(mask)
    padded, out = np.pad(mask, 1), np.zeros(SIZE)
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * (m + 2) / m
    (x0, y0), (x1, y1) = np.trunc(centre - half).astype(int), np.trunc(centre + half).astype(int)
    w, h = max(x1 - x0 + 1, 1), max(y1 - y0 + 1, 1)
    for y, x in np.ndindex(h, w):
        if 0 <= y0 + y < SIZE[0] and 0 <= x0 + x < SIZE[1]:
            source = [max((i + 0.5) * (m + 2) / n - 0.5, 0) for i, n in ((y, h), (x, w))]
            out[y0 + y, x0 + x] = bilinear(padded, *source, clamp=True)
    return out


def slow_paste_continuous(mask, box):
    out, (w, h) = np.zeros(SIZE), box[2:] - box[:2]
    for y, x in np.ndindex(*SIZE):
        if w > 0 and h > 0:
            source = (y + 0.5 - box[1]) / h * len(mask) - 0.5, (x + 0.5 - box[0]) / w * len(mask) - 0.5
            out[y, x] = bilinear(mask, *source, clamp=False)
    return out


@pytest.mark.parametrize("snap", [True, False])
def test_paste_is_the_loop(snap):
    masks = probabilities()
    loop = slow_paste_snapped if snap else slow_paste_continuous
    paste = jax.jit(lambda m, b: ops.paste(m, b, image_size=SIZE, snap=snap))
    expected = np.stack([loop(m, b) for m, b in zip(masks, BOXES.astype(np.float64), strict=True)])
    np.testing.assert_allclose(paste(masks, BOXES), expected, atol=2e-6)
    np.testing.assert_allclose(jax.vmap(paste)(masks[None], BOXES[None])[0], expected, atol=2e-6)
    assert ops.paste(masks[:0], BOXES[:0], image_size=SIZE, snap=snap).shape == (0, *SIZE)


def test_paste_of_a_full_box():
    """A mask of ones fills the pixels of its box, and little else."""
    inside = ops.paste(np.ones((1, 28, 28), np.float32), np.asarray([[3.0, 2, 15, 10]], np.float32), image_size=SIZE)
    expected = np.zeros(SIZE, bool)
    expected[2:10, 3:15] = True
    soft = ops.paste(
        np.ones((1, 28, 28), np.float32), np.asarray([[3.0, 2, 15, 10]], np.float32), image_size=SIZE, snap=False
    )
    np.testing.assert_array_equal(soft[0] > 0.5, expected)
    assert (np.asarray(inside[0] > 0.5) | ~expected).all()


def test_paste_gradients(x64):
    masks, boxes = probabilities(2).astype(np.float64), BOXES[:2].astype(np.float64) + 0.0137
    check_grads(jax.jit(lambda m, b: ops.paste(m, b, image_size=SIZE, snap=False)), (masks, boxes), order=1, eps=1e-6)
    check_grads(jax.jit(lambda m: ops.paste(m, boxes, image_size=SIZE)), (masks,), order=1)
    to_boxes = jax.grad(lambda b: ops.paste(masks, b, image_size=SIZE).sum())(boxes)
    np.testing.assert_array_equal(to_boxes, 0)
    finite = jax.grad(lambda b: ops.paste(probabilities(), b, image_size=SIZE, snap=False).sum())(BOXES)
    assert np.isfinite(finite).all()


def random_masks(g=3, shape=SIZE):
    return np.random.default_rng(1).uniform(size=(g, *shape)) > 0.5


def test_crop_is_roi_align_of_the_chosen_mask():
    masks, indices = random_masks(), np.asarray([0, 2, 1, 1, 0, 2], np.int32)
    crop = jax.jit(lambda m, b, i: ops.crop(m, b, i, size=7))
    pooled = crop(masks, BOXES, indices)
    for box, index, got in zip(BOXES, indices, pooled, strict=True):
        expected = roi_align(masks[index][..., None].astype(np.float32), box[None], size=(7, 7))[0, ..., 0]
        np.testing.assert_allclose(got, expected, atol=1e-6)
    batched = jax.vmap(crop)(np.stack([masks, ~masks]), np.stack([BOXES, BOXES]), np.stack([indices, indices]))
    np.testing.assert_allclose(batched[0], pooled, atol=1e-6)
    np.testing.assert_allclose(batched[1], crop(~masks, BOXES, indices), atol=1e-6)


def test_crop_of_masks_that_are_a_constant_of_the_program():
    """XLA's CPU backend miscompiles some fusions with constants (see ``roi._bin_weights``)."""
    full, boxes = jnp.ones((4, 6, 128, 128), bool), np.asarray([[8.0, 10, 40, 50], [90, 90, 120, 120]], np.float32)
    crop = jax.vmap(lambda masks, boxes, indices: ops.crop(masks, boxes, indices, size=28))
    indices, boxes = np.zeros((4, 2), np.int32), np.tile(boxes[None], (4, 1, 1))
    np.testing.assert_allclose(jax.jit(lambda b, i: crop(full, b, i))(boxes, indices), 1, atol=1e-6)


def test_crop_without_masks_or_boxes():
    zero = np.zeros(2, np.int32)
    np.testing.assert_array_equal(ops.crop(random_masks(0), BOXES[:2], zero, size=4), np.zeros((2, 4, 4)))
    assert ops.crop(random_masks(), BOXES[:0], zero[:0], size=4).shape == (0, 4, 4)
    beyond = ops.crop(random_masks(), BOXES[:1], np.asarray([99], np.int32), size=4)
    np.testing.assert_array_equal(beyond, ops.crop(random_masks(), BOXES[:1], zero[:1] + 2, size=4))


def test_crop_gradients(x64):
    masks, boxes = probabilities(2, 9).astype(np.float64), BOXES[:2].astype(np.float64) * 0.5 + 0.0137
    crop = jax.jit(lambda m, b: ops.crop(m, b, np.asarray([1, 0], np.int32), size=3))
    check_grads(crop, (masks, boxes), order=1, eps=1e-6)


def test_to_boxes():
    masks = np.zeros((4, 6, 9), bool)
    masks[0, 2, 3] = True
    masks[1, 1:5, 2:9] = True
    masks[2, 0, 0] = masks[2, 5, 8] = True
    expected = [[3, 2, 4, 3], [2, 1, 9, 5], [0, 0, 9, 6], [0, 0, 0, 0]]
    boxes = jax.jit(ops.to_boxes)(masks)
    np.testing.assert_array_equal(boxes, expected)
    np.testing.assert_array_equal(ops.to_boxes(jnp.asarray(masks, jnp.float32) * 0.1), expected)
    assert boxes.dtype == jnp.float32 and ops.to_boxes(masks[:0]).shape == (0, 4)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6), st.floats(0, 1))
def test_rle_there_and_back(h, w, seed, density):
    mask = np.random.default_rng(seed).uniform(size=(h, w)) < density
    rle = json.loads(json.dumps(ops.to_rle(mask)))
    np.testing.assert_array_equal(ops.from_rle(rle, size=(h, w)), mask)
    columns = mask.T.ravel()  # uncompressed counts run down the columns and start with zeros
    edges = np.flatnonzero(np.diff(np.concatenate([[False], columns])))
    counts = np.diff(np.concatenate([[0], edges, [h * w]])).tolist()
    np.testing.assert_array_equal(ops.from_rle({"size": [h, w], "counts": counts}, size=(h, w)), mask)


def test_polygons():
    square = [2, 1, 6, 1, 6, 4, 2, 4]
    expected = np.zeros((8, 9), bool)
    expected[1:4, 2:6] = True
    np.testing.assert_array_equal(ops.from_polygons([square], size=(8, 9)), expected)
    expected[5:7, 7:9] = True
    both = ops.from_polygons([square, [7.0, 5.0, 9.0, 5.0, 9.0, 7.0, 7.0, 7.0]], size=(8, 9))
    np.testing.assert_array_equal(both, expected)
    assert not ops.from_polygons([], size=(8, 9)).any()


@pytest.mark.parametrize(
    ("polygons", "message"),
    [
        ([[1, 2, 3, 4]], "polygon 0 has 4 numbers"),
        ([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7]], "polygon 1 has 7 numbers"),
        ([[1, 2, 3, 4, 5, float("nan")]], "not finite"),
        ([[[1, 2], [3, 4], [5, 6]]], "shape"),
        ([["a", 2, 3, 4, 5, 6]], "numbers"),
    ],
)
def test_bad_polygons(polygons, message):
    with pytest.raises(ValueError, match=message):
        ops.from_polygons(polygons, size=(8, 8))


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"size": [4, 4]}, "without counts"),
        ({"size": [4, 5], "counts": [20]}, r"size \[4, 5\]"),
        ({"size": [4, 4], "counts": [3, 4]}, "sum to 7"),
        ({"size": [4, 4], "counts": [20, -4]}, "not negative"),
        ({"size": [4, 4], "counts": [8.0, 8.0]}, "integers"),
        ({"size": [4, 4], "counts": "zzzz9"}, "do not decode"),
        ({"size": [4, 4], "counts": "0"}, "end before"),
        ({"size": [4, 4], "counts": b"3"}, "end before"),
        ({"size": [4, 4], "counts": "ä"}, "do not decode"),
    ],
)
def test_bad_rle(rle, message):
    with pytest.raises(ValueError, match=message):
        ops.from_rle(rle, size=(4, 4))


def test_bad_sizes():
    for call in (
        lambda: ops.crop(random_masks(), BOXES[:1], np.zeros(1, np.int32), size=0),
        lambda: ops.from_polygons([], size=(0, 3)),
    ):
        with pytest.raises(ValueError, match="size"):
            call()


def on_frames(masks, boxes, side):
    """The masks' grids on whole-pixel boxes, as floats: each pixel is cut into equal cells."""
    grids = []
    for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int)):
        part = mask[top:bottom, left:right].astype(np.float32)
        rows, columns = side // part.shape[0], side // part.shape[1]
        grids.append(np.kron(part, np.ones((rows, columns), np.float32)))
    return np.array(grids)


def test_crop_of_grids_equals_that_of_their_planes():
    frames = np.array([[2, 3, 8, 7], [10, 1, 13, 13], [0, 0, 4, 2]], np.float32)
    planes = np.zeros((3, 16, 20), bool)
    rng = np.random.default_rng(0)
    for plane, (left, top, right, bottom) in zip(planes, frames.astype(int)):
        plane[top:bottom, left:right] = rng.random((bottom - top, right - left)) < 0.6
    boxes = np.array([[1, 2, 9, 9], [9.3, 0.2, 13.7, 12.1], [-3, -2, 6, 5], [3.5, 4.5, 4.5, 5.5]], np.float32)
    indices = np.array([0, 1, 2, 0], np.int32)
    grids = on_frames(planes, frames, 12)
    expected = ops.crop(planes, boxes, indices, size=7)
    options = dict(size=7, frames=frames, image_size=(16, 20))
    np.testing.assert_allclose(ops.crop(grids, boxes, indices, **options), expected, atol=1e-6)
    as_bytes = jax.jit(lambda g: ops.crop(g, boxes, indices, **options))(np.round(255 * grids).astype(np.uint8))
    np.testing.assert_allclose(as_bytes, expected, atol=1e-6)
    beyond = frames + np.array([-4, -5, -4, -5], np.float32)  # frames that reach out of a cropped image
    shifted = np.zeros_like(planes)
    shifted[:, :-5, :-4] = planes[:, 5:, 4:]
    options["frames"] = beyond
    np.testing.assert_allclose(
        ops.crop(grids, boxes, indices, **options), ops.crop(shifted, boxes, indices, size=7), atol=1e-6
    )
    with pytest.raises(ValueError, match="image_size"):
        ops.crop(grids, boxes, indices, size=7, frames=frames)


def test_crop_of_grids_gradients(x64):
    grids, boxes = probabilities(2, 6).astype(np.float64), BOXES[:2].astype(np.float64) * 0.5 + 0.0137
    frames = np.array([[1.31, 2.23, 9.47, 8.79], [3.17, 0.41, 7.73, 10.97]])
    crop = jax.jit(lambda g, b, f: ops.crop(g, b, np.asarray([1, 0], np.int32), size=3, frames=f, image_size=(16, 16)))
    check_grads(crop, (grids, boxes, frames), order=1, eps=1e-6)
