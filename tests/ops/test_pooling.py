"""Pools against loops over windows written from torch's rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxvision.ops.pooling import (
    adaptive_avg_pool,
    avg_pool,
    local_response_norm,
    max_pool,
    max_pool_with_indices,
    max_unpool,
    soft_max_pool_with_indices,
)

OPTIONS = [  # window, strides, padding, ceil_mode
    (3, 2, 1, False),
    (3, 2, 0, True),
    (2, None, 0, True),
    (3, 3, 1, True),
    (2, 3, 1, True),
    ((3, 2), (2, 1), (1, 0), True),
    ((3, 2), (1, 3), (1, 1), False),
]


def with_ties(*shape, seed=0):
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(np.float32)


def distinct(*shape, dtype=np.float64):
    return np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape).astype(dtype) / 7


def windows(length, window, stride, padding, ceil_mode):
    """(start, end) of each window, beyond the input too."""
    count = (length + 2 * padding - window + (stride - 1 if ceil_mode else 0)) // stride + 1
    if ceil_mode and (count - 1) * stride >= length + padding:
        count -= 1
    return [(i * stride - padding, i * stride - padding + window) for i in range(count)]


def slow(x, window, strides, padding, ceil_mode, reduce):
    """``reduce(plane, rows, columns)`` of each window of x [h, w, c]; rows and columns are (start, end)."""
    pairs = [(v, v) if isinstance(v, int) else v for v in (window, strides or window, padding)]
    rows, columns = (windows(x.shape[i], *(p[i] for p in pairs), ceil_mode) for i in (0, 1))
    return np.asarray([[[reduce(x[..., c], r, q) for c in range(x.shape[2])] for q in columns] for r in rows])


def first_maximum(plane, rows, columns):
    cells = [
        (-plane[i, j], i * plane.shape[1] + j)
        for i in range(max(rows[0], 0), min(rows[1], plane.shape[0]))
        for j in range(max(columns[0], 0), min(columns[1], plane.shape[1]))
    ]
    return min(cells)[1]


def mean(margin):
    def reduce(plane, rows, columns):
        clipped = [np.clip(s, -margin[i], plane.shape[i] + margin[i]) for i, s in enumerate((rows, columns))]
        (y0, y1), (x0, x1) = clipped
        return plane[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)].sum() / ((y1 - y0) * (x1 - x0))

    return reduce


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_max_pool_is_the_loop(options):
    window, strides, padding, ceil_mode = options
    x = with_ties(2, 7, 8, 2)
    indices = np.stack([slow(image, *options, first_maximum) for image in x])
    flat = x.reshape(2, -1, 2)
    values = np.take_along_axis(flat, indices.reshape(2, -1, 2), axis=1).reshape(indices.shape)
    keywords = dict(window=window, strides=strides, padding=padding)
    pool = jax.jit(lambda x: max_pool(x, ceil_mode=ceil_mode, **keywords))
    np.testing.assert_array_equal(pool(x), values)
    np.testing.assert_array_equal(jax.vmap(pool)(x), values)
    weights = np.random.default_rng(1).integers(1, 9, values.shape).astype(np.float32)
    expected = np.zeros_like(flat)  # the whole gradient of a window goes to its first maximum
    np.add.at(
        expected, (np.arange(2)[:, None, None], indices.reshape(2, -1, 2), np.arange(2)), weights.reshape(2, -1, 2)
    )
    gradient = jax.grad(lambda x: (pool(x) * weights).sum())(x)
    np.testing.assert_array_equal(gradient, expected.reshape(x.shape))
    got_values, got_indices = max_pool_with_indices(x, ceil_mode=ceil_mode, **keywords)
    np.testing.assert_array_equal(got_values, values)
    np.testing.assert_array_equal(got_indices, indices)
    assert got_indices.dtype == jnp.int32


@pytest.mark.parametrize(
    "options",  # window, strides, padding, dilation, ceil_mode
    [(2, 1, 0, 4, False), (3, 2, 2, 3, False), ((2, 3), (3, 1), (1, 2), (3, 2), True), (3, 2, 0, 2, True)],
    ids=str,
)
def test_max_pool_with_gaps_is_the_loop(options):
    keywords = dict(zip(("window", "strides", "padding", "dilation", "ceil_mode"), options, strict=True))
    pairs = [(v, v) if isinstance(v, int) else v for v in options[:4]]
    x, weights = distinct(9, 11, dtype=np.float32), np.random.default_rng(1).integers(1, 9, (9, 11))
    starts = [
        [s for s, _ in windows(x.shape[i], gap[i] * (size[i] - 1) + 1, step[i], pad[i], options[4])]
        for size, step, pad, gap in [pairs]
        for i in (0, 1)
    ]
    wanted, gradient = np.empty([len(s) for s in starts], np.float32), np.zeros(x.shape)
    for place in np.ndindex(*wanted.shape):
        cells = [tuple(starts[i][place[i]] + pairs[3][i] * tap[i] for i in (0, 1)) for tap in np.ndindex(*pairs[0])]
        best = max((c for c in cells if 0 <= c[0] < 9 and 0 <= c[1] < 11), key=x.__getitem__)
        wanted[place] = x[best]
        gradient[best] += weights[place]
    pool = jax.jit(lambda x: max_pool(x[..., None], **keywords)[..., 0])
    np.testing.assert_array_equal(pool(x), wanted)
    cut = weights[: wanted.shape[0], : wanted.shape[1]]
    np.testing.assert_array_equal(jax.grad(lambda x: (pool(x) * cut).sum())(x), gradient)


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_avg_pool_is_the_loop(options, count_include_pad):
    window, strides, padding, ceil_mode = options
    margin = (padding, padding) if isinstance(padding, int) else padding
    x = with_ties(2, 7, 8, 2)
    expected = [slow(image, *options, mean(margin if count_include_pad else (0, 0))) for image in x]
    keywords = dict(window=window, strides=strides, padding=padding, ceil_mode=ceil_mode)
    pooled = jax.jit(lambda x: avg_pool(x, count_include_pad=count_include_pad, **keywords))(x)
    np.testing.assert_allclose(pooled, np.stack(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (7, 4), (3, 3), (9, 20)])
def test_adaptive_avg_pool_is_the_loop(size):
    x = with_ties(7, 8, 2)
    edges = [
        [(i * n // out, -(-(i + 1) * n // out)) for i in range(out)] for n, out in zip(x.shape[:2], size, strict=True)
    ]
    expected = [[x[y0:y1, x0:x1].mean((0, 1)) for x0, x1 in edges[1]] for y0, y1 in edges[0]]
    np.testing.assert_allclose(adaptive_avg_pool(x, size=size), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_local_response_norm_is_the_loop(size):
    x = with_ties(2, 3, 3, 6)
    expected = np.empty_like(x)
    for c in range(6):
        near = x[..., max(c - size // 2, 0) : c - size // 2 + size]
        expected[..., c] = x[..., c] / (2 + 0.5 / size * np.square(near).sum(-1)) ** 0.75
    np.testing.assert_allclose(local_response_norm(x, size=size, alpha=0.5, beta=0.75, k=2.0), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [(2, 2, 0, False), (2, 2, 0, True), (3, 2, 1, False), (3, 2, 1, True), (3, 1, 1, False), ((2, 3), (1, 2), 0, True)],
    ids=str,
)
def test_unpooling_puts_each_maximum_back_once(options):
    keywords = dict(zip(("window", "strides", "padding", "ceil_mode"), options, strict=True))
    x = distinct(2, 6, 7, 3, dtype=np.float32) + 1
    values, indices = max_pool_with_indices(x, **keywords)
    restored = jax.jit(lambda v, i: max_unpool(v, i, output_size=(6, 7)))(values, indices)
    chosen = np.zeros(x.shape, bool).reshape(2, -1, 3)
    np.put_along_axis(chosen, np.asarray(indices).reshape(2, -1, 3), True, axis=1)
    np.testing.assert_array_equal(restored, np.where(chosen.reshape(x.shape), x, 0))
    again = jax.vmap(lambda v, i: max_unpool(v, i, output_size=(6, 7)))(values, indices)
    np.testing.assert_array_equal(again, restored)
    # The maximum stands in the plane once, so that its derivative is one, however many windows chose it.
    gradient = jax.grad(lambda x: max_unpool(*max_pool_with_indices(x, **keywords), output_size=(6, 7)).sum())(x)
    np.testing.assert_array_equal(gradient, chosen.reshape(x.shape))


def test_unpooling_gradient_is_a_gather():
    x = with_ties(1, 4, 6, 2)
    values, indices = max_pool_with_indices(x, window=2)
    weights = np.arange(48, dtype=np.float32).reshape(x.shape)
    gradient = jax.grad(lambda v: (max_unpool(v, indices, output_size=(4, 6)) * weights).sum())(values)
    gathered = np.take_along_axis(weights.reshape(1, 24, 2), np.asarray(indices).reshape(1, 6, 2), axis=1)
    np.testing.assert_array_equal(gradient, gathered.reshape(values.shape))
    dropped = max_unpool(values, np.full(values.shape, -1, np.int32), output_size=(4, 6))
    np.testing.assert_array_equal(dropped, 0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(2, 2, 0), (3, 2, 1), (3, 1, 0)]))
def test_soft_pool_tends_to_the_hard_one(seed, options):
    keywords = dict(zip(("window", "strides", "padding"), options, strict=True))
    x = np.random.default_rng(seed).permutation(60).reshape(1, 5, 6, 2).astype(np.float32)
    values, indices = max_pool_with_indices(x, **keywords)
    soft, where = soft_max_pool_with_indices(x, temperature=0.02, **keywords)
    np.testing.assert_allclose(soft, values, atol=1e-4)
    np.testing.assert_allclose(where, np.stack(np.divmod(indices, 6), axis=-1), atol=1e-4)
    flat, middle = soft_max_pool_with_indices(x, temperature=1e6, **keywords)
    np.testing.assert_allclose(flat, avg_pool(x, count_include_pad=False, **keywords), atol=1e-2)
    assert (soft >= flat - 1e-3).all() and (middle >= 0).all() and (middle <= 5).all()


def test_soft_pool_with_all_values_equal():
    values, where = soft_max_pool_with_indices(np.ones((4, 4, 1), np.float32), window=2, temperature=0.1)
    np.testing.assert_allclose(values, 1)
    np.testing.assert_allclose(where[0, 1, 0], [0.5, 2.5])


def test_gradients(x64):
    x = distinct(1, 5, 6, 2)
    keywords = dict(window=3, strides=2, padding=1)
    for pool in (
        lambda x: max_pool(x, ceil_mode=True, **keywords),
        lambda x: max_unpool(*max_pool_with_indices(x, **keywords), output_size=(5, 6)),
        lambda x: avg_pool(x, ceil_mode=True, count_include_pad=False, **keywords),
        lambda x: adaptive_avg_pool(x, size=(2, 4)),
        lambda x: local_response_norm(x, size=2, alpha=0.1),
        lambda x: soft_max_pool_with_indices(x, temperature=3.0, **keywords),
    ):
        check_grads(jax.jit(pool), (x,), order=1, eps=1e-6)
    check_grads(lambda t: soft_max_pool_with_indices(x, temperature=t, **keywords), (jnp.asarray(3.0),), order=1)


def test_nan_spreads_and_empty_batches_pass():
    x = with_ties(1, 4, 4, 1)
    x[0, 1, 1, 0] = np.nan
    for pooled in (max_pool(x, window=2), max_pool_with_indices(x, window=2)[0]):
        assert np.isnan(pooled[0, 0, 0, 0]) and np.isfinite(np.delete(np.ravel(pooled), 0)).all()
    assert max_pool(np.zeros((0, 4, 4, 1), np.float32), window=2).shape == (0, 2, 2, 1)
    lowest, indices = max_pool_with_indices(np.full((2, 2, 1), -np.inf, np.float32), window=2, padding=1)
    np.testing.assert_array_equal(indices.ravel(), [0, 1, 2, 3])  # a cell of the input, never of the padding
    assert (lowest == -np.inf).all()


def test_bad_options():
    x = np.zeros((4, 4, 1), np.float32)
    for keywords, message in (
        (dict(window=0), "window"),
        (dict(window=2, strides=0), "strides"),
        (dict(window=2, dilation=0), "dilation"),
        (dict(window=3, padding=2), "padding"),
        (dict(window=5), "does not fit"),
        (dict(window=2, dilation=4), "does not fit"),
    ):
        with pytest.raises(ValueError, match=message):
            max_pool(x, **keywords)
    with pytest.raises(ValueError, match="temperature"):
        soft_max_pool_with_indices(x, window=2, temperature=0.0)
    with pytest.raises(ValueError, match="size"):
        adaptive_avg_pool(x, size=(0, 1))
    with pytest.raises(ValueError, match="size"):
        local_response_norm(x, size=0)
