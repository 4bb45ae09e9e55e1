import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision import ops

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)


def test_values_and_padding():
    sizes = np.array([[5, 7], [3, 4]], np.float32)
    got = jax.jit(lambda x, s: ops.normalize(x, s, mean=MEAN, std=STD))(IMAGES, sizes)
    expected = (IMAGES / 255 - np.array(MEAN)) / STD
    np.testing.assert_allclose(got[0], expected[0], atol=1e-6)
    np.testing.assert_allclose(got[1, :3, :4], expected[1, :3, :4], atol=1e-6)
    assert not got[1, 3:].any() and not got[1, :, 4:].any()
    np.testing.assert_array_equal(ops.normalize(IMAGES, None, mean=MEAN, std=STD)[0], got[0])


def test_scale_and_dtype(x64):
    exact = ops.normalize(IMAGES, None, mean=(104.0, 116.0, 122.0), std=(1.0, 1.0, 1.0), scale=1.0, dtype="float64")
    np.testing.assert_array_equal(exact, IMAGES - np.array([104.0, 116, 122]))
    half = ops.normalize(IMAGES, None, mean=MEAN, std=STD, dtype="bfloat16")
    single = ops.normalize(IMAGES, None, mean=MEAN, std=STD)
    assert half.dtype == jnp.bfloat16 and single.dtype == jnp.float32
    np.testing.assert_array_equal(half, single.astype(jnp.bfloat16))  # rounded once, at the end


def test_bad_input():
    with pytest.raises((ValueError, TypeError), match=r"(?i)uint8"):  # jaxtyping's check comes first in tests
        ops.normalize(IMAGES.astype(np.float32), None, mean=MEAN, std=STD)
    with pytest.raises(ValueError, match="std must be positive"):
        ops.normalize(IMAGES, None, mean=MEAN, std=(1.0, 0.0, 1.0))
