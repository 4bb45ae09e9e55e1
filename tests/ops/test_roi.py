"""RoIAlign, RoIPool and levels against loops over samples written from their definitions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxvision.ops.roi import assign_levels, multilevel_roi_align, roi_align, roi_pool

BOXES = np.asarray(
    [
        [2.3, 1.7, 21.4, 15.2],
        [-9.0, -5.5, 12.0, 40.0],  # over the border
        [4.0, 8.0, 32.0, 36.0],  # a whole number of cells a bin
        [7.0, 7.0, 7.0, 7.0],  # no area
        [300.0, 300.0, 400.0, 350.0],  # outside
        [-500.0, -500.0, 500.0, 500.0],  # far larger than the map
        [3.1, 2.2, 3.3, 30.0],  # narrower than a cell
    ],
    np.float32,
)


def random_map(h=9, w=11, c=3, seed=0):
    return np.random.default_rng(seed).normal(size=(h, w, c)).astype(np.float32)


def bilinear(features, y, x):
    h, w, _ = features.shape
    if y < -1 or y > h or x < -1 or x > w:
        return 0.0
    y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
    top = features[y0, x0] * (1 - (x - x0)) + features[y0, x1] * (x - x0)
    bottom = features[y1, x0] * (1 - (x - x0)) + features[y1, x1] * (x - x0)
    return top * (1 - (y - y0)) + bottom * (y - y0)


def slow_roi_align(features, boxes, size, spatial_scale, sampling_ratio, aligned):
    out = np.zeros((len(boxes), *size, features.shape[2]))
    for n, box in enumerate(np.asarray(boxes, np.float64) * spatial_scale):
        left, top, right, bottom = box - (0.5 if aligned else 0)
        sides = (bottom - top, right - left) if aligned else (max(bottom - top, 1), max(right - left, 1))
        bins = [side / count for side, count in zip(sides, size)]
        counts = [sampling_ratio if sampling_ratio > 0 else math.ceil(length) for length in bins]
        for p, q in np.ndindex(*size):
            for i, j in np.ndindex(*counts):
                y = top + p * bins[0] + (i + 0.5) * bins[0] / counts[0]
                x = left + q * bins[1] + (j + 0.5) * bins[1] / counts[1]
                out[n, p, q] += bilinear(features, y, x) / (counts[0] * counts[1])
    return out


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [2, 3, -1])
@pytest.mark.parametrize("size", [(7, 7), (2, 3)])
def test_roi_align_is_the_loop(size, sampling_ratio, aligned):
    features, options = random_map(), dict(spatial_scale=0.25, sampling_ratio=sampling_ratio, aligned=aligned)
    slow = slow_roi_align(features, BOXES, size, **options)
    fast = jax.jit(lambda f, b: roi_align(f, b, size=size, **options))(features, BOXES)
    np.testing.assert_allclose(fast, slow, atol=1e-5)
    np.testing.assert_allclose(fast, roi_align(features, BOXES, size=size, **options), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-80, 200), min_size=4, max_size=4), st.booleans(), st.sampled_from([2, 0]))
def test_roi_align_of_any_box(corners, aligned, sampling_ratio):
    """Quarter pixels are exact in float32, so that samples on the border fall on the same side as in the loop."""
    left, right = sorted(corners[:2])
    top, bottom = sorted(corners[2:])
    box = np.asarray([[left, top, right, bottom]], np.float32) / 4
    options = dict(size=(4, 2), spatial_scale=0.5, sampling_ratio=sampling_ratio, aligned=aligned)
    features = random_map(5, 6)
    slow = slow_roi_align(features, box, *[options[k] for k in ("size", "spatial_scale", "sampling_ratio", "aligned")])
    np.testing.assert_allclose(roi_align(features, box, **options), slow, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1)])
def test_roi_align_of_a_thin_map(shape):
    features = random_map(*shape)
    for sampling_ratio in (2, -1):
        fast = roi_align(features, BOXES, size=(3, 3), spatial_scale=0.25, sampling_ratio=sampling_ratio)
        np.testing.assert_allclose(
            fast, slow_roi_align(features, BOXES, (3, 3), 0.25, sampling_ratio, False), atol=1e-5
        )


@pytest.mark.parametrize("sampling_ratio", [2, -1])
def test_roi_align_is_exact_on_a_linear_map(sampling_ratio):
    """The mean of a linear function over a bin is its value at the bin's centre."""
    y, x = np.mgrid[:20, :30].astype(np.float32)
    features = np.stack([2 * y - x, x], axis=-1)
    box = np.asarray([[3.0, 2.0, 24.0, 16.0]], np.float32)
    pooled = roi_align(features, box, size=(2, 3), sampling_ratio=sampling_ratio)[0]
    centre_y, centre_x = np.asarray([5.5, 12.5])[:, None], np.asarray([6.5, 13.5, 20.5])[None]
    np.testing.assert_allclose(pooled[..., 0], 2 * centre_y - centre_x, rtol=1e-5)
    np.testing.assert_allclose(pooled[..., 1], np.broadcast_to(centre_x, (2, 3)), rtol=1e-5)


@pytest.mark.parametrize("sampling_ratio", [2, -1])
def test_features_that_are_a_constant_of_the_program(sampling_ratio):
    """XLA's CPU backend miscompiles some fusions with constants (see ``_bin_weights``)."""
    ones = jnp.ones((8, 32, 32, 64))
    boxes = np.tile(np.asarray([[2.0, 2.5, 10, 12], [15, 5, 25, 15], [0, 0, 31, 31]], np.float32)[None], (8, 1, 1))
    pool = jax.vmap(lambda f, b: roi_align(f, b, size=(7, 7), sampling_ratio=sampling_ratio))
    np.testing.assert_allclose(jax.jit(lambda boxes: pool(ones, boxes))(boxes), 1, atol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda: pool(ones, boxes))(), 1, atol=1e-6)


@pytest.mark.parametrize("sampling_ratio", [2, -1])
def test_levels(sampling_ratio):
    """Each box comes from its own level; under vmap over images and with gradients too."""
    shapes, scales = [(16, 20), (8, 10), (4, 5)], (0.5, 0.25, 0.125)
    pyramids = [np.stack([random_map(*shape, seed=i) for i in range(2)]) for shape in shapes]
    boxes = np.stack([BOXES, BOXES[::-1]])
    levels = np.stack([np.arange(len(BOXES)) % 3, np.full(len(BOXES), 2)]).astype(np.int32)
    options = dict(size=(3, 3), sampling_ratio=sampling_ratio, aligned=True)

    def pool(features, boxes, levels):
        return multilevel_roi_align(features, boxes, levels, spatial_scales=scales, **options)

    def one_by_one(features):
        """Every level for every box, then the one that is wanted."""
        pooled = [
            jax.vmap(lambda f, b, scale=scale: roi_align(f, b, spatial_scale=scale, **options))(level, boxes)
            for level, scale in zip(features, scales, strict=True)
        ]
        return jnp.stack(pooled)[levels, np.arange(2)[:, None], np.arange(len(BOXES))[None, :]]

    weights = np.random.default_rng(1).normal(size=(2, len(BOXES), 3, 3, 3)).astype(np.float32)
    batched = jax.vmap(pool)
    np.testing.assert_allclose(batched(pyramids, boxes, levels), one_by_one(pyramids), atol=1e-5)
    got = jax.jit(jax.grad(lambda f: (batched(f, boxes, levels) * weights).sum()))(pyramids)
    for a, b in zip(got, jax.jit(jax.grad(lambda f: (one_by_one(f) * weights).sum()))(pyramids), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [2, -1])
def test_gradients_to_features_and_boxes(x64, sampling_ratio, aligned):
    """Away from kinks: no sample on a cell's centre or on the border, no bin of a whole number of cells."""
    features = random_map(8, 9, 2).astype(np.float64)
    boxes = np.asarray([[2.31, 1.73, 21.47, 15.26], [-6.13, 3.37, 20.71, 40.19]])
    options = dict(size=(3, 2), spatial_scale=0.25, sampling_ratio=sampling_ratio, aligned=aligned)
    check_grads(jax.jit(lambda f, b: roi_align(f, b, **options)), (features, boxes), order=1, eps=1e-6)


@pytest.mark.parametrize("sampling_ratio", [2, -1])
def test_degenerate_boxes_have_finite_values_and_gradients(sampling_ratio):
    boxes = np.concatenate([BOXES[3:], [[9, 9, 1, 1]]]).astype(np.float32)

    def total(f, b):
        return roi_align(f, b, size=(3, 3), sampling_ratio=sampling_ratio, aligned=True).sum()

    value, grads = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(random_map(), boxes)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in grads)
    np.testing.assert_array_equal(grads[1][1], 0)  # outside


@pytest.mark.parametrize("sampling_ratio", [2, -1])
def test_no_boxes(sampling_ratio):
    none = np.zeros((0, 4), np.float32)
    assert roi_align(random_map(), none, size=(7, 5), sampling_ratio=sampling_ratio).shape == (0, 7, 5, 3)
    assert roi_pool(random_map(), none, size=(7, 5)).shape == (0, 7, 5, 3)
    assert assign_levels(none, num_levels=4).shape == (0,)


def test_dtype_follows_features():
    for sampling_ratio in (2, -1):
        pooled = roi_align(jnp.asarray(random_map(), jnp.bfloat16), BOXES, size=(2, 2), sampling_ratio=sampling_ratio)
        assert pooled.dtype == jnp.bfloat16


def slow_roi_pool(features, boxes, size, spatial_scale):
    h, w, c = features.shape
    out = np.zeros((len(boxes), *size, c), np.float32)
    for n, box in enumerate(boxes):
        left, top, right, bottom = (math.copysign(math.floor(abs(v) + 0.5), v) for v in box * spatial_scale)
        sides = (max(bottom - top + 1, 1), max(right - left + 1, 1))
        bins = [np.float32(side) / np.float32(count) for side, count in zip(sides, size)]
        for p, q in np.ndindex(*size):
            y0, y1 = (top + f for f in (math.floor(p * bins[0]), math.ceil((p + 1) * bins[0])))
            x0, x1 = (left + f for f in (math.floor(q * bins[1]), math.ceil((q + 1) * bins[1])))
            (y0, y1), (x0, x1) = np.clip([y0, y1], 0, h).astype(int), np.clip([x0, x1], 0, w).astype(int)
            cells = features[y0:y1, x0:x1]
            if cells.size:
                out[n, p, q] = cells.max((0, 1))
    return out


def test_roi_pool_is_the_loop():
    features = random_map() - 3  # mostly negative: an empty bin must still give 0
    for size in ((7, 7), (2, 3)):
        slow = slow_roi_pool(features, BOXES, size, 0.25)
        np.testing.assert_array_equal(roi_pool(features, BOXES, size=size, spatial_scale=0.25), slow)
        batched = jax.jit(jax.vmap(lambda f, b, size=size: roi_pool(f, b, size=size, spatial_scale=0.25)))
        np.testing.assert_array_equal(
            batched(np.stack([features, -features]), np.stack([BOXES, BOXES]))[1],
            slow_roi_pool(-features, BOXES, size, 0.25),
        )


def test_roi_pool_gradients(x64):
    features, boxes = random_map(6, 7, 2).astype(np.float64), BOXES.astype(np.float64)
    check_grads(jax.jit(lambda f: roi_pool(f, boxes, size=(2, 2), spatial_scale=0.25)), (features,), order=1)
    to_boxes = jax.grad(lambda b: roi_pool(features, b, size=(2, 2), spatial_scale=0.25).sum())(boxes)
    np.testing.assert_array_equal(to_boxes, 0)
    constant = jax.grad(lambda f: roi_pool(f, boxes[:1] * 0 + [0, 0, 3, 3], size=(1, 1)).sum())(features * 0)
    assert constant[0, 0, 0] == 1 and constant.sum() == 2  # a tie goes to the first cell, once a channel


def test_assign_levels():
    sides = np.asarray([1, 111, 112, 223, 224, 447, 448, 895, 896, 5000, 0], np.float32)
    boxes = np.stack([sides * 0, sides * 0, sides, sides], axis=1)
    np.testing.assert_array_equal(assign_levels(boxes, num_levels=4), [0, 0, 1, 1, 2, 2, 3, 3, 3, 3, 0])
    np.testing.assert_array_equal(assign_levels(boxes[:5], num_levels=3, lowest_level=3), [0, 0, 0, 0, 1])
    small = assign_levels(boxes / 4, num_levels=4, canonical_size=56.0)
    np.testing.assert_array_equal(small, assign_levels(boxes, num_levels=4))


def test_bad_options():
    with pytest.raises(ValueError, match="size"):
        roi_align(random_map(), BOXES, size=(0, 7))
    with pytest.raises(ValueError, match="size"):
        roi_pool(random_map(), BOXES, size=(7, 0))
    with pytest.raises(ValueError, match="one scale a level"):
        multilevel_roi_align([random_map()], BOXES, np.zeros(7, np.int32), size=(1, 1), spatial_scales=(1.0, 0.5))
    with pytest.raises(ValueError, match="num_levels"):
        assign_levels(BOXES, num_levels=0)
