"""ShuffleNet v2: Practical Guidelines for Efficient CNN Architecture Design (Ma et al., arXiv:1807.11164), table 5.

Variant: torchvision's, which is the paper's. Parameter counts: torchvision 0.29 ``meta["num_params"]``.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers

from jaxvision import ops
from jaxvision.layers.classifier import Classifier
from jaxvision.layers.convolution import Conv, Dense
from jaxvision.layers.norm import BatchNorm
from jaxvision.registry import register
from jaxvision.typing import Array, Classified, Float

# torch's own for layers that a constructor leaves alone: uniform within 1 / sqrt(inputs).
torch_uniform = initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Unit(nn.Module):
    """Figure 3 (c) and (d): half of the channels pass a residual-like branch, then the halves are interleaved.

    At stride 1 the other half passes as it is; at stride 2 both branches see all channels.
    """

    width: int  # of the output
    strides: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], *, train: bool = False) -> Float[Array, "b oh ow o"]:
        half = self.width // 2

        def pointwise(x, branch, index):
            return nn.relu(norm(conv(x, half, 1, 1, 1, f"{branch}_{index}"), f"{branch}_{index + 1}"))

        def depthwise(x, branch, index):
            channels = x.shape[-1]
            return norm(conv(x, channels, 3, self.strides, channels, f"{branch}_{index}"), f"{branch}_{index + 1}")

        def conv(x, features, window, strides, groups, name):
            layer = Conv(
                features,
                window,
                strides,
                padding=window // 2,
                groups=groups,
                use_bias=False,
                kernel_init=torch_uniform,
                name=name,
            )
            return layer(x)

        def norm(x, name):
            return BatchNorm(axis_name=self.axis_name, name=name)(x, train=train)

        if self.strides == 1:
            left, right = x[..., :half], x[..., half:]
        else:
            left, right = pointwise(depthwise(x, "branch1", 0), "branch1", 2), x
        right = pointwise(right, "branch2", 0)  # torchvision counts the ReLU too
        right = pointwise(depthwise(right, "branch2", 3), "branch2", 5)
        # The channel shuffle of two groups: left 0, right 0, left 1, right 1, ...
        return jnp.stack([left, right], axis=-1).reshape(*left.shape[:-1], self.width)


class ShuffleNetV2(Classifier):
    """``widths``: channels of the three stages and of the last convolution. Features ``c1`` (stem), ``c2`` (pooled
    stem) to ``c5`` (the last convolution); the outputs are logits, or the pooled c5 if ``num_classes=0``."""

    widths: tuple[int, int, int, int]

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Classified:
        def conv_norm_relu(x, features, window, strides, name):
            conv = Conv(
                features,
                window,
                strides,
                padding=window // 2,
                use_bias=False,
                kernel_init=torch_uniform,
                name=f"{name}_0",
            )
            return nn.relu(BatchNorm(axis_name=self.axis_name, name=f"{name}_1")(conv(x), train=train))

        *stages, last = self.widths
        x = conv_norm_relu(images, 24, 3, 2, "conv1")
        features = {"c1": x}
        x = features["c2"] = ops.max_pool(x, window=3, strides=2, padding=1)
        for stage, (width, units) in enumerate(zip(stages, (4, 8, 4)), start=2):
            for index in range(units):
                unit = Unit(width, strides=1 if index else 2, axis_name=self.axis_name, name=f"stage{stage}_{index}")
                x = unit(x, train=train)
            features[f"c{stage + 1}"] = x
        x = features["c5"] = conv_norm_relu(x, last, 1, 1, "conv5")
        outputs = jnp.mean(x, axis=(1, 2))
        if self.num_classes:
            bound = last**-0.5
            outputs = Dense(
                self.num_classes,
                kernel_init=torch_uniform,
                bias_init=lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound),
                name="fc",
            )(outputs)
        return outputs, features


@register(task="classification")
def shufflenet_v2_x0_5(**options) -> ShuffleNetV2:
    """ShuffleNet v2, half width: 1,366,792 parameters."""
    return ShuffleNetV2((48, 96, 192, 1024), **options)


@register(task="classification")
def shufflenet_v2_x1_0(**options) -> ShuffleNetV2:
    """ShuffleNet v2: 2,278,604 parameters."""
    return ShuffleNetV2((116, 232, 464, 1024), **options)


@register(task="classification")
def shufflenet_v2_x1_5(**options) -> ShuffleNetV2:
    """ShuffleNet v2, one and a half times the width: 3,503,624 parameters."""
    return ShuffleNetV2((176, 352, 704, 1024), **options)


@register(task="classification")
def shufflenet_v2_x2_0(**options) -> ShuffleNetV2:
    """ShuffleNet v2, twice the width: 7,393,996 parameters."""
    return ShuffleNetV2((244, 488, 976, 2048), **options)
