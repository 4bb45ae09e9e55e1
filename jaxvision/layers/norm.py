"""Batch normalisation with torch's bookkeeping (arXiv:1502.03167)."""

import flax.linen as nn
import jax.numpy as jnp
from flax.linen import initializers
from jax import lax

from jaxvision.typing import Array, Float


class BatchNorm(nn.Module):
    """Per-channel normalisation; parameters ``scale``, ``bias``, running ``mean``, ``var`` in ``batch_stats``.

    With ``train`` the batch's own statistics normalise and the running ones move by ``1 - momentum``; as in torch the
    running variance takes the unbiased estimate (n / (n - 1)), the normalisation the biased one. Statistics are
    computed in float32 at least.

    frozen: the running statistics normalise whatever ``train`` is, and no gradient reaches scale and bias: the layer is
    a constant affine map, as detectors use it that train with few images a device.
    axis_name: a ``pmap`` axis over which the batch's statistics are averaged; under ``jit`` they cover the global batch
    anyway.
    """

    momentum: float = 0.9  # torch's 0.1
    epsilon: float = 1e-5
    frozen: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w c"]:
        channels = (x.shape[-1],)
        scale = self.param("scale", initializers.ones, channels)
        bias = self.param("bias", initializers.zeros, channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        if self.frozen:
            scale, bias = lax.stop_gradient((scale, bias))
        if train and not self.frozen:
            mean, var, count = self._batch_statistics(x)
            if not self.is_initializing():
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = self._moved(running_mean.value, mean)
                running_var.value = self._moved(running_var.value, unbiased)
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * lax.rsqrt(var + self.epsilon)
        shift = bias - mean * factor
        return x * factor.astype(x.dtype)[None, None, None, :] + shift.astype(x.dtype)[None, None, None, :]

    def _batch_statistics(self, x):
        """Mean, biased variance, and how many values each channel has; over all devices of the axis."""
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        count = x.shape[0] * x.shape[1] * x.shape[2]
        mean, square = jnp.mean(x, axis=(0, 1, 2)), jnp.mean(jnp.square(x), axis=(0, 1, 2))
        if self.axis_name is not None:
            mean, square = lax.pmean((mean, square), self.axis_name)
            count = count * lax.axis_size(self.axis_name)
        return mean, jnp.maximum(square - jnp.square(mean), 0), count

    def _moved(self, running, batch):
        return lax.stop_gradient(self.momentum * running + (1 - self.momentum) * batch).astype(running.dtype)
