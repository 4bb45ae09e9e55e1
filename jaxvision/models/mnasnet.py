"""MNASNet-B1: Platform-Aware Neural Architecture Search for Mobile (Tan et al., arXiv:1807.11626), figure 7 without
squeeze-and-excitation.

Variant: torchvision's, whose checkpoints are of its version 2 (the stem is scaled too; ``mnasnet1_0`` is the same in
version 1). Running statistics move by 0.0003 a step, as in TensorFlow. Parameter counts: torchvision 0.29
``meta["num_params"]``.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.linen import initializers

from jaxvision.layers.classifier import Classifier
from jaxvision.layers.convolution import Conv, Dense
from jaxvision.layers.norm import BatchNorm
from jaxvision.models.mobilenet import round_channels
from jaxvision.registry import register
from jaxvision.typing import Array, Classified, Float

MOMENTUM = 0.9997  # TensorFlow's

# window, channels at width 1, expansion, repeats, stride of the first
STACKS = ((3, 24, 3, 3, 2), (5, 40, 3, 3, 2), (5, 80, 6, 3, 2), (3, 96, 6, 2, 1), (5, 192, 6, 4, 2), (3, 320, 6, 1, 1))


class InvertedResidual(nn.Module):
    """MobileNet v2's block with any window and ReLU; it adds its input if ``residual``, as a stack's repeats are."""

    features: int
    window: int
    expansion: int
    strides: int
    residual: bool
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], *, train: bool = False) -> Float[Array, "b oh ow o"]:
        def norm(x, name):
            return BatchNorm(momentum=MOMENTUM, axis_name=self.axis_name, name=name)(x, train=train)

        shortcut, wide = x, x.shape[-1] * self.expansion
        x = nn.relu(norm(Conv(wide, 1, use_bias=False, name="layers_0")(x), "layers_1"))
        depthwise = Conv(
            wide, self.window, self.strides, padding=self.window // 2, groups=wide, use_bias=False, name="layers_3"
        )
        x = nn.relu(norm(depthwise(x), "layers_4"))
        x = norm(Conv(self.features, 1, use_bias=False, name="layers_6")(x), "layers_7")
        return x + shortcut if self.residual else x


class MNASNet(Classifier):
    """Features ``c1`` to ``c5``, each the last map of its stride; the outputs are logits, or the pooled c5 if
    ``num_classes=0``. width: factor of every layer's channels but the last convolution's."""

    width: float

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Classified:
        def conv_norm(x, features, window, strides, groups, place):
            """torchvision's sequence: a convolution, its norm and mostly a ReLU from ``place`` on."""
            padding = window // 2
            conv = Conv(features, window, strides, padding, groups=groups, use_bias=False, name=f"layers_{place}")
            norm = BatchNorm(momentum=MOMENTUM, axis_name=self.axis_name, name=f"layers_{place + 1}")
            return norm(conv(x), train=train)

        stem = round_channels(32 * self.width)
        x = nn.relu(conv_norm(images, stem, 3, 2, 1, 0))
        x = nn.relu(conv_norm(x, stem, 3, 1, stem, 3))
        x = conv_norm(x, round_channels(16 * self.width), 1, 1, 1, 6)
        level, features = 1, {"c1": x}
        for place, (window, channels, expansion, repeats, first) in enumerate(STACKS, start=8):
            level += first - 1  # a stride of 2 starts a level
            for index in range(repeats):
                block = InvertedResidual(
                    round_channels(channels * self.width),
                    window,
                    expansion,
                    strides=1 if index else first,
                    residual=index > 0,
                    axis_name=self.axis_name,
                    name=f"layers_{place}_{index}",
                )
                x = features[f"c{level}"] = block(x, train=train)
        x = features[f"c{level}"] = nn.relu(conv_norm(x, 1280, 1, 1, 1, 14))
        outputs = jnp.mean(x, axis=(1, 2))
        if self.num_classes:
            outputs = nn.Dropout(0.2, deterministic=not train)(outputs)
            kernel_init = initializers.variance_scaling(1.0, "fan_out", "uniform")
            outputs = Dense(self.num_classes, kernel_init=kernel_init, name="classifier_1")(outputs)
        return outputs, features


@register(task="classification")
def mnasnet0_5(**options) -> MNASNet:
    """MNASNet-B1, half width: 2,218,512 parameters."""
    return MNASNet(0.5, **options)


@register(task="classification")
def mnasnet0_75(**options) -> MNASNet:
    """MNASNet-B1, three quarters of the width: 3,170,208 parameters."""
    return MNASNet(0.75, **options)


@register(task="classification")
def mnasnet1_0(**options) -> MNASNet:
    """MNASNet-B1: 4,383,312 parameters."""
    return MNASNet(1.0, **options)


@register(task="classification")
def mnasnet1_3(**options) -> MNASNet:
    """MNASNet-B1, 1.3 times the width: 6,282,256 parameters."""
    return MNASNet(1.3, **options)
