"""The formulations for the CPU against XLA's own convolution: values and all derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision.ops import convolution_cpu
from jaxvision.ops.convolution_cpu import Window, conv_on_cpu, conv_xla, differs_on_cpu

SAME, STRIDED, PLAIN = Window((1, 1), (1, 1), (1, 1)), Window((2, 1), (1, 2), (1, 1)), Window((1, 1), (0, 0), (1, 1))
CASES = {  # channels in, channels out, groups, window, where a large image begins
    "narrow out": (130, 20, 1, SAME, None),
    "narrow in": (20, 130, 1, SAME, None),
    "narrow both": (16, 16, 1, PLAIN, None),
    "wide, large": (128, 130, 1, STRIDED, 1),
    "very wide, large": (150, 140, 1, SAME, 1),
    "narrow, large": (16, 18, 1, SAME, 1),
    "image, large": (3, 18, 1, STRIDED, 1),
    "groups of 4": (64, 64, 16, STRIDED, None),
    "wide groups": (48, 96, 2, SAME, None),
    "groups that share no divisor with 16": (21, 42, 7, SAME, None),
    "depthwise": (6, 6, 6, STRIDED, None),
    "depthwise, large": (40, 40, 40, STRIDED, 1),
    "depthwise doubled": (6, 12, 6, SAME, None),
}


@pytest.fixture(params=CASES)
def case(request, monkeypatch, x64):
    channels, out, groups, window, large = CASES[request.param]
    if large is not None:
        monkeypatch.setattr(convolution_cpu, "LARGE", large)
        monkeypatch.setattr(convolution_cpu, "LARGE_IMAGE", large)
        monkeypatch.setattr(convolution_cpu, "STRIP", 30 * channels)  # an image has 56 or 72 padded pixels
        monkeypatch.setattr(convolution_cpu, "MOST_PIECES", 2)
        monkeypatch.setattr(convolution_cpu, "WIDE_KERNEL", 20_000)
    rng = np.random.default_rng(0)
    x, dx = (jnp.asarray(rng.normal(size=(3, 6, 5, channels))) for _ in range(2))
    kernel, dkernel = (jnp.asarray(rng.normal(size=(3, 3, channels // groups, out))) for _ in range(2))
    assert differs_on_cpu(x, kernel, window, groups)
    return (x, kernel), (dx, dkernel), window, groups


def same(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), a, b)


def test_values_and_derivatives(case):
    (x, kernel), (dx, dkernel), window, groups = case

    def results(function):
        def smooth(x, kernel):
            return jnp.sin(function(x, kernel, window, groups)).sum()

        gradient = jax.grad(smooth, (0, 1))
        return (
            jax.jvp(lambda x, k: function(x, k, window, groups), (x, kernel), (dx, dkernel)),
            jax.jvp(lambda x: function(x, kernel, window, groups), (x,), (dx,)),
            gradient(x, kernel),
            jax.jvp(gradient, (x, kernel), (dx, dkernel)),  # a Hessian-vector product
            jax.vmap(gradient)(jnp.stack([x, dx]), jnp.stack([kernel, dkernel])),
        )

    same(jax.jit(lambda: results(conv_on_cpu))(), jax.jit(lambda: results(conv_xla))())


def test_gradient_of_one_argument_leaves_the_other_out():
    """A frozen kernel costs no kernel gradient."""
    x, kernel, window = jnp.ones((1, 8, 8, 16)), jnp.ones((3, 3, 16, 16)), SAME
    both = jax.make_jaxpr(jax.grad(lambda x, k: conv_on_cpu(x, k, window, 1).sum(), (0, 1)))(x, kernel)
    one = jax.make_jaxpr(jax.grad(lambda x: conv_on_cpu(x, kernel, window, 1).sum()))(x)
    assert str(one).count("conv_general_dilated[") == str(both).count("conv_general_dilated[") - 1


def test_three_channels_and_strides_are_left_to_xla():
    assert not differs_on_cpu(jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 64)), SAME, 1)
    assert not differs_on_cpu(jnp.ones((1, 8, 8, 32)), jnp.ones((3, 3, 32, 32)), STRIDED, 1)
    assert not differs_on_cpu(jnp.ones((1, 8, 8, 128)), jnp.ones((3, 3, 128, 128)), SAME, 1)
