"""Batch normalisation with torch's bookkeeping (arXiv:1502.03167)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers
from jax import lax

from jaxvision.typing import Array, Float


class BatchNorm(nn.Module):
    """Per-channel normalisation; parameters ``scale``, ``bias``, running ``mean``, ``var`` in ``batch_stats``.

    With ``train`` the batch's own statistics normalise and the running ones move by ``1 - momentum``; as in torch the
    running variance takes the unbiased estimate (n / (n - 1)), the normalisation the biased one. Everything is computed
    in float32 at least, and the result has the dtype of the input.

    frozen: the running statistics normalise whatever ``train`` is, and no gradient reaches scale and bias: the layer is
    a constant affine map, as detectors use it that train with few images a device.
    axis_name: a ``pmap`` axis over which the batch's statistics are averaged; under ``jit`` they cover the global batch
    anyway.
    Variables of ``fold_batch_norm`` hold a bias only, which is then added.
    """

    momentum: float = 0.9  # torch's 0.1
    epsilon: float = 1e-5
    frozen: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w c"]:
        channels = (x.shape[-1],)
        bias = self.param("bias", initializers.zeros, channels)
        if not self.is_initializing() and not self.has_variable("params", "scale"):
            if train and not self.frozen:
                raise ValueError(f"{'/'.join(self.path)} was folded into a convolution, which is for inference only")
            return x + bias.astype(x.dtype)[None, None, None, :]
        scale = self.param("scale", initializers.ones, channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        if self.frozen:
            scale, bias = lax.stop_gradient((scale, bias))
        precise = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if train and not self.frozen:
            mean, var = _moments(precise, self.axis_name)
            if not self.is_initializing():
                devices = 1 if self.axis_name is None else lax.axis_size(self.axis_name)
                count = devices * x.size // x.shape[-1]
                running_mean.value = self._moved(running_mean.value, mean)
                running_var.value = self._moved(running_var.value, var * (count / max(count - 1, 1)))
        else:
            mean, var = running_mean.value, running_var.value
        factor, shift = affine(scale, bias, mean, var, self.epsilon)
        return (precise * factor[None, None, None, :] + shift[None, None, None, :]).astype(x.dtype)

    def _moved(self, running, batch):
        return lax.stop_gradient(self.momentum * running + (1 - self.momentum) * batch).astype(running.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _moments(x, axis_name):
    """Mean and biased variance of each channel, over all devices of the axis.

    The variance takes a second pass: the mean square less the squared mean, in one pass, loses the digits that a large
    mean has before the point, and its gradients were a thousand times less exact.
    """
    mean = _mean(x, axis_name)
    return mean, _mean(jnp.square(x - mean[None, None, None, :]), axis_name)


@_moments.defjvp
def _moments_jvp(axis_name, primals, tangents):
    """The mean's own change moves the variance by nothing, which automatic differentiation would compute at length."""
    (x,), (dx,) = primals, tangents
    mean, var = _moments(x, axis_name)
    return (mean, var), (_mean(dx, axis_name), 2 * _mean((x - mean[None, None, None, :]) * dx, axis_name))


def _mean(x, axis_name):
    mean = jnp.mean(x, axis=(0, 1, 2))
    return mean if axis_name is None else lax.pmean(mean, axis_name)


def affine(
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    mean: Float[Array, " c"],
    var: Float[Array, " c"],
    epsilon: float,
) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    """(factor, shift), so that ``x * factor + shift`` is ``scale * (x - mean) / sqrt(var + epsilon) + bias``."""
    factor = scale * lax.rsqrt(var + epsilon)
    return factor, bias - mean * factor
