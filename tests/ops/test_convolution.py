import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxvision.ops.convolution import conv, conv_transpose

CASES = {
    "1x1": dict(window=(1, 1)),
    "1x1 strided": dict(window=(1, 1), strides=2),
    "1x1 padded": dict(window=(1, 1), padding=1),
    "3x3": dict(window=(3, 3), padding=1),
    "oblong": dict(window=(3, 2), strides=(1, 2), padding=(2, 0), dilation=(2, 1)),
    "mostly padding": dict(window=(3, 3), padding=3, dilation=3),
    "mostly padding, oblong": dict(window=(3, 2), padding=(4, 1), dilation=(4, 3)),
    "nothing but padding around": dict(window=(3, 3), padding=7, dilation=7),
    "grouped": dict(window=(3, 3), strides=2, padding=1, groups=2),
    "depthwise": dict(window=(3, 3), strides=2, padding=1, groups=4, out=4),
    "depthwise dilated": dict(window=(3, 3), padding=2, dilation=2, groups=4, out=4),
    "depthwise doubled": dict(window=(3, 3), padding=1, groups=4, out=8),
}
TRANSPOSED = {
    "no overlap": dict(window=(2, 2), strides=2),
    "oblong, no overlap": dict(window=(2, 3), strides=(2, 3)),
    "overlap": dict(window=(4, 4), strides=2, padding=1),
    "gaps": dict(window=(2, 2), strides=3, output_padding=1),
    "output padding": dict(window=(3, 3), strides=2, padding=1, output_padding=1),
    "dilated": dict(window=(3, 2), strides=2, padding=(1, 0), dilation=2),
}


def pair(value):
    return (value, value) if isinstance(value, int) else value


def conv_by_loops(x, kernel, *, strides=1, padding=0, dilation=1, groups=1):
    strides, padding, dilation = pair(strides), pair(padding), pair(dilation)
    x = np.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))
    kh, kw, per_group, out = kernel.shape
    size = [(x.shape[1 + a] - dilation[a] * (kernel.shape[a] - 1) - 1) // strides[a] + 1 for a in (0, 1)]
    y = np.zeros((x.shape[0], *size, out))
    for b, r, c, o in itertools.product(*map(range, y.shape)):
        first = o // (out // groups) * per_group
        for i, j in itertools.product(range(kh), range(kw)):
            cell = x[b, r * strides[0] + i * dilation[0], c * strides[1] + j * dilation[1], first : first + per_group]
            y[b, r, c, o] += cell @ kernel[i, j, :, o]
    return y


def conv_transpose_by_loops(x, kernel, *, strides=1, padding=0, output_padding=0, dilation=1):
    strides, padding, dilation, extra = pair(strides), pair(padding), pair(dilation), pair(output_padding)
    (b, h, w, _), (kh, kw, _, out) = x.shape, kernel.shape
    full = [(n - 1) * s + d * (k - 1) + 1 + e for n, s, d, k, e in zip((h, w), strides, dilation, (kh, kw), extra)]
    y = np.zeros((b, *full, out))
    for r, c, i, j in itertools.product(range(h), range(w), range(kh), range(kw)):
        y[:, r * strides[0] + i * dilation[0], c * strides[1] + j * dilation[1]] += x[:, r, c] @ kernel[i, j]
    return y[:, padding[0] : full[0] - padding[0], padding[1] : full[1] - padding[1]]


def inputs(case, dtype=np.float32):
    options = dict(case)
    window, groups, out = options.pop("window"), options.get("groups", 1), options.pop("out", 6)
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 6, 5, 4)), rng.normal(size=(*window, 4 // groups, out))
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype), options


@pytest.mark.parametrize("name", CASES)
def test_conv(name):
    x, kernel, options = inputs(CASES[name])
    want = conv_by_loops(np.asarray(x), np.asarray(kernel), **options)
    np.testing.assert_allclose(conv(x, kernel, **options), want, atol=2e-5)
    np.testing.assert_allclose(jax.jit(lambda x, k: conv(x, k, **options))(x, kernel), want, atol=2e-5)
    stacked = jax.vmap(lambda k: conv(x, k, **options))(jnp.stack([kernel, 2 * kernel]))
    np.testing.assert_allclose(stacked, np.stack([want, 2 * want]), atol=5e-5)


@pytest.mark.parametrize("name", CASES)
def test_conv_gradients(name, x64):
    x, kernel, options = inputs(CASES[name], np.float64)
    check_grads(lambda x, k: conv(x, k, **options), (x, kernel), order=2, modes=("fwd", "rev"))


@pytest.mark.parametrize("name", TRANSPOSED)
def test_conv_transpose(name):
    x, kernel, options = inputs(TRANSPOSED[name])
    want = conv_transpose_by_loops(np.asarray(x), np.asarray(kernel), **options)
    np.testing.assert_allclose(conv_transpose(x, kernel, **options), want, atol=2e-5)
    np.testing.assert_allclose(jax.jit(lambda x, k: conv_transpose(x, k, **options))(x, kernel), want, atol=2e-5)


@pytest.mark.parametrize("name", TRANSPOSED)
def test_conv_transpose_gradients(name, x64):
    x, kernel, options = inputs(TRANSPOSED[name], np.float64)
    check_grads(lambda x, k: conv_transpose(x, k, **options), (x, kernel), order=2, modes=("fwd", "rev"))


@settings(max_examples=20, deadline=None)
@given(window=st.integers(1, 3), strides=st.integers(1, 3), padding=st.integers(0, 1), seed=st.integers(0, 99))
def test_transposed_is_the_adjoint(window, strides, padding, seed):
    """<conv(x), y> = <x, conv_transpose(y)>, with the kernel's channels exchanged."""
    rng = np.random.default_rng(seed)
    padding = min(padding, window - 1)
    kernel = jnp.asarray(rng.normal(size=(window, window, 2, 3)), jnp.float32)
    x = jnp.asarray(rng.normal(size=(1, 7, 7, 2)), jnp.float32)
    y = conv(x, kernel, strides=strides, padding=padding)
    back = conv_transpose(
        y, jnp.swapaxes(kernel, 2, 3), strides=strides, padding=padding,
        output_padding=(7 + 2 * padding - window) % strides,
    )  # fmt: skip
    assert back.shape == x.shape
    np.testing.assert_allclose(jnp.vdot(y, y), jnp.vdot(x, back), rtol=1e-4)


def test_empty_batch():
    x, kernel, _ = inputs(CASES["3x3"])
    assert conv(x[:0], kernel, padding=1).shape == (0, 6, 5, 6)


def test_bfloat16_stays():
    for case in CASES.values():
        x, kernel, options = inputs(case, jnp.bfloat16)
        assert conv(x, kernel, **options).dtype == jnp.bfloat16


def test_errors():
    x, kernel, _ = inputs(CASES["3x3"])
    with pytest.raises(ValueError, match="groups"):
        conv(x[..., :3], kernel)
    with pytest.raises(ValueError, match="does not fit an image"):
        conv(x[:, :2], kernel)
    with pytest.raises(ValueError, match="output_padding"):
        conv_transpose(x, kernel, strides=2, output_padding=2)
