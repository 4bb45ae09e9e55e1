"""Feature pyramid network (Lin et al., arXiv:1612.03144, figure 3)."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.linen import initializers

from jaxvision.layers.convolution import Conv
from jaxvision.typing import Array, Float

he_uniform_linear = initializers.variance_scaling(1.0, "fan_in", "uniform")


class FPN(nn.Module):
    """From backbone features ``levels`` (``c2 ... c5``, finest first) to as many maps of equal width, ``p2 ... p5``,
    and a coarsest one (``p6``) that takes every second cell of the last.

    Top-down maps are enlarged to the lateral map's exact size by nearest neighbour, as in torchvision.
    """

    levels: tuple[str, ...]
    channels: int = 256

    @nn.compact
    def __call__(self, features: dict[str, Float[Array, "b _ _ _"]]) -> dict[str, Float[Array, "b _ _ c"]]:
        missing = [name for name in self.levels if name not in features]
        if missing:
            raise ValueError(f"the backbone has features {sorted(features)}, but the pyramid wants {missing}")
        pyramid, above = {}, None
        for index, level in reversed(list(enumerate(self.levels))):
            lateral = self._conv(1, f"inner_blocks_{index}_0")(features[level])
            above = lateral if above is None else lateral + enlarge_nearest(above, lateral.shape[1:3])
            pyramid[f"p{level[1:]}"] = self._conv(3, f"layer_blocks_{index}_0")(above)
        coarsest = int(self.levels[-1][1:])
        pyramid[f"p{coarsest + 1}"] = pyramid[f"p{coarsest}"][:, ::2, ::2]
        return dict(sorted(pyramid.items()))

    def _conv(self, window: int, name: str) -> Conv:
        return Conv(self.channels, window, padding=window // 2, kernel_init=he_uniform_linear, name=name)


def enlarge_nearest(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b oh ow c"]:
    """Nearest neighbour as torch's ``interpolate`` defines it: cell i copies cell ``floor(i * in / out)``."""
    for axis, out in zip((1, 2), size):
        if out % x.shape[axis] == 0:
            x = jnp.repeat(x, out // x.shape[axis], axis=axis)
        else:
            x = jnp.take(x, np.arange(out) * x.shape[axis] // out, axis=axis)
    return x
