"""Feature pyramid network (Lin et al., arXiv:1612.03144, figure 3)."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.linen import initializers

from jaxvision.layers.convolution import Conv
from jaxvision.layers.norm import BatchNorm
from jaxvision.typing import Array, Float

# Checkpoints from before torchvision 0.15, the published COCO weights among them, and the names they have now: the
# pyramid's part of a detector's ``torch_legacy_names``.
LEGACY_NAMES = ((r"^backbone\.fpn\.(inner|layer)_blocks\.(\d+)\.(weight|bias)$", r"backbone.fpn.\1_blocks.\2.0.\3"),)

he_uniform_linear = initializers.variance_scaling(1.0, "fan_in", "uniform")


class FPN(nn.Module):
    """From backbone features ``levels`` (``c2 ... c5``, finest first) to as many maps of equal width, ``p2 ... p5``,
    and coarser ones beyond.

    coarser: what these are. "subsample": one (``p6``) of every second cell of the last, as in Faster R-CNN. "from_p"
    and "from_c": two (``p6``, ``p7``) by convolutions of stride 2, the first on the last map of the pyramid or on the
    last of the backbone (RetinaNet, arXiv:1708.02002, section 4, does the latter).
    norm: follows every convolution of the pyramid proper, which then has no bias; none if None.
    Top-down maps are enlarged to the lateral map's exact size by nearest neighbour, as in torchvision.
    """

    levels: tuple[str, ...]
    channels: int = 256
    coarser: Literal["subsample", "from_p", "from_c"] = "subsample"
    norm: BatchNorm | None = None

    @nn.compact
    def __call__(
        self, features: dict[str, Float[Array, "b _ _ _"]], *, train: bool = False
    ) -> dict[str, Float[Array, "b _ _ c"]]:
        missing = [name for name in self.levels if name not in features]
        if missing:
            raise ValueError(f"the backbone has features {sorted(features)}, but the pyramid wants {missing}")

        def conv(x, window, name):
            bias = self.norm is None
            x = Conv(
                self.channels, window, 1, window // 2, use_bias=bias, kernel_init=he_uniform_linear, name=f"{name}_0"
            )(x)
            return x if bias else self.norm.clone(name=f"{name}_1", parent=self)(x, train=train)

        def halved(x, name):
            return Conv(self.channels, 3, strides=2, padding=1, kernel_init=he_uniform_linear, name=name)(x)

        pyramid, above = {}, None
        for index, level in reversed(list(enumerate(self.levels))):
            lateral = conv(features[level], 1, f"inner_blocks_{index}")
            above = lateral if above is None else lateral + enlarge_nearest(above, lateral.shape[1:3])
            pyramid[f"p{level[1:]}"] = conv(above, 3, f"layer_blocks_{index}")
        last, next_, after = (f"p{int(self.levels[-1][1:]) + step}" for step in range(3))
        if self.coarser == "subsample":
            pyramid[next_] = pyramid[last][:, ::2, ::2]
        else:
            pyramid[next_] = halved(pyramid[last] if self.coarser == "from_p" else features[self.levels[-1]], next_)
            pyramid[after] = halved(nn.relu(pyramid[next_]), after)
        return dict(sorted(pyramid.items()))


def enlarge_nearest(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b oh ow c"]:
    """Nearest neighbour as torch's ``interpolate`` defines it: cell i copies cell ``floor(i * in / out)``."""
    for axis, out in zip((1, 2), size):
        if out % x.shape[axis] == 0:
            x = jnp.repeat(x, out // x.shape[axis], axis=axis)
        else:
            x = jnp.take(x, np.arange(out) * x.shape[axis] // out, axis=axis)
    return x
