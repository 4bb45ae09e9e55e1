"""Dropout for detectors and segmenters (Srivastava et al., JMLR 2014)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxvision.typing import Array, Float


class Dropout(nn.Module):
    """With ``train`` sets each value to zero with probability ``rate`` and divides the others by ``1 - rate``.

    Draws from the stream "sample" by an image's place in the whole batch, so that devices agree with one device.
    axis_name: the ``pmap`` axis over which the batch is spread.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b *n"], *, train: bool = False) -> Float[Array, "b *n"]:
        if not train or self.rate == 0:
            return x
        first = 0 if self.axis_name is None else lax.axis_index(self.axis_name) * len(x)
        key = self.make_rng("sample")

        def draw(place):
            return jax.random.bernoulli(jax.random.fold_in(key, place), 1 - self.rate, x.shape[1:])

        return jnp.where(jax.vmap(draw)(first + jnp.arange(len(x))), x / (1 - self.rate), 0)
