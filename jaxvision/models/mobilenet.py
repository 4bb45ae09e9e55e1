"""MobileNet v2: Inverted Residuals and Linear Bottlenecks (Sandler et al., arXiv:1801.04381), table 2.

Variant: torchvision's, which is the paper's. Parameter count: torchvision 0.29 ``meta["num_params"]``.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.linen import initializers

from jaxvision.layers.classifier import Classifier
from jaxvision.layers.convolution import Conv, Dense
from jaxvision.layers.norm import BatchNorm
from jaxvision.registry import register
from jaxvision.typing import Array, Classified, Float

# Table 2: expansion t, channels c, repeats n, stride s of the first.
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """Section 3.3: 1x1 to ``expansion`` times the channels, depthwise 3x3, and a 1x1 without activation; the input is
    added where the shape stays. Without expansion there is no first 1x1."""

    features: int
    expansion: int
    strides: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], *, train: bool = False) -> Float[Array, "b oh ow o"]:
        def norm(x, name):
            return BatchNorm(axis_name=self.axis_name, name=name)(x, train=train)

        shortcut, wide = x, x.shape[-1] * self.expansion
        place = 0  # in torchvision's sequence
        if self.expansion != 1:
            x = nn.relu6(norm(Conv(wide, 1, use_bias=False, name="conv_0_0")(x), "conv_0_1"))
            place = 1
        depthwise = Conv(wide, 3, self.strides, padding=1, groups=wide, use_bias=False, name=f"conv_{place}_0")
        x = nn.relu6(norm(depthwise(x), f"conv_{place}_1"))
        x = norm(Conv(self.features, 1, use_bias=False, name=f"conv_{place + 1}")(x), f"conv_{place + 2}")
        return x + shortcut if x.shape == shortcut.shape and self.strides == 1 else x


class MobileNetV2(Classifier):
    """Features ``c1`` to ``c5``, each the last map of its stride; the outputs are logits, or the pooled c5 if
    ``num_classes=0``. width: factor of every layer's channels (the last one's only if it is above 1)."""

    width: float = 1.0

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Classified:
        def conv_norm_relu6(x, features, window, strides, name):
            conv = Conv(features, window, strides, padding=window // 2, use_bias=False, name=f"{name}_0")
            return nn.relu6(BatchNorm(axis_name=self.axis_name, name=f"{name}_1")(conv(x), train=train))

        x = conv_norm_relu6(images, round_channels(32 * self.width), 3, 2, "features_0")
        place, level, features = 1, 1, {}
        for expansion, channels, repeats, first in BLOCKS:
            level += first - 1  # a stride of 2 starts a level
            for strides in (first,) + (1,) * (repeats - 1):
                block = InvertedResidual(
                    round_channels(channels * self.width), expansion, strides, self.axis_name, name=f"features_{place}"
                )
                x = features[f"c{level}"] = block(x, train=train)
                place += 1
        last = round_channels(1280 * max(self.width, 1.0))
        x = features[f"c{level}"] = conv_norm_relu6(x, last, 1, 1, f"features_{place}")
        outputs = jnp.mean(x, axis=(1, 2))
        if self.num_classes:
            outputs = nn.Dropout(0.2, deterministic=not train)(outputs)
            outputs = Dense(self.num_classes, kernel_init=initializers.normal(0.01), name="classifier_1")(outputs)
        return outputs, features


def round_channels(channels: int | float) -> int:
    """The multiple of 8 nearest to ``channels`` (up at the middle), at least 8 and never below nine tenths of it."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


@register(task="classification")
def mobilenet_v2(**options) -> MobileNetV2:
    """MobileNet v2: 3,504,872 parameters."""
    return MobileNetV2(**options)
