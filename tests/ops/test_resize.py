"""Bilinear resizing against a loop over pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxvision.ops.resize import resize


def slow_axis(x, out, antialias):
    """Resize the first axis: the triangle at each output pixel's position, renormalised inside the image."""
    length = len(x)
    rows = []
    for i in range(out):
        centre = (i + 0.5) * length / out
        width = max(length / out, 1.0) if antialias else 1.0
        if not antialias:  # the border value holds beyond the outer centres
            centre = min(max(centre, 0.5), length - 0.5)
        weights = np.asarray([max(0.0, 1 - abs(j + 0.5 - centre) / width) for j in range(length)])
        rows.append(np.tensordot(weights / weights.sum(), x, 1))
    return np.stack(rows)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(14, 18), (7, 9), (3, 4), (1, 1), (20, 5), (8, 10)])
def test_resize_is_the_loop(size, antialias):
    x = np.random.default_rng(0).normal(size=(2, 7, 9, 3)).astype(np.float32)
    slow = np.stack(
        [
            slow_axis(slow_axis(image, size[0], antialias).swapaxes(0, 1), size[1], antialias).swapaxes(0, 1)
            for image in x
        ]
    )
    fast = jax.jit(lambda x: resize(x, size=size, antialias=antialias))(x)
    np.testing.assert_allclose(fast, slow, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(lambda x: resize(x, size=size, antialias=antialias))(x), fast, atol=1e-6)


def test_by_hand():
    """torch.nn.functional.interpolate([0, 1, 2, 3], size=8 and 2), typed in."""
    ramp = np.arange(4, dtype=np.float32)[None, :, None]
    up = resize(ramp, size=(1, 8))[0, :, 0]
    np.testing.assert_allclose(up, [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])
    np.testing.assert_allclose(resize(ramp, size=(1, 2))[0, :, 0], [0.5, 2.5])
    np.testing.assert_allclose(resize(ramp, size=(1, 2), antialias=True)[0, :, 0], [5 / 7, 16 / 7], rtol=1e-6)


def test_constant_image_and_same_size():
    x = np.random.default_rng(0).normal(size=(5, 6, 2)).astype(np.float32)
    for antialias in (False, True):
        np.testing.assert_allclose(resize(x, size=(5, 6), antialias=antialias), x, atol=1e-6)
        flat = resize(np.full_like(x, 3), size=(2, 13), antialias=antialias)
        np.testing.assert_allclose(flat, 3, rtol=1e-6)
    assert resize(jnp.asarray(x, jnp.bfloat16), size=(3, 3)).dtype == jnp.bfloat16


@pytest.mark.parametrize("antialias", [False, True])
def test_gradients(x64, antialias):
    x = np.random.default_rng(0).normal(size=(5, 4, 2))
    check_grads(lambda x: resize(x, size=(3, 7), antialias=antialias), (x,), order=2)


def test_bad_size():
    with pytest.raises(ValueError, match="size"):
        resize(np.zeros((2, 2, 1), np.float32), size=(0, 3))
