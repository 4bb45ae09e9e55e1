"""ResNet: Deep Residual Learning for Image Recognition (He et al., arXiv:1512.03385), table 1.

Variant: torchvision's ("v1.5"): a bottleneck that halves the map strides in its 3x3 convolution, not in the first 1x1;
shortcuts project where the shape changes (option B). Parameter counts: torchvision 0.29 ``meta["num_params"]``.
"""

from typing import ClassVar, Literal

import flax.linen as nn
import jax.numpy as jnp

from jaxvision import ops
from jaxvision.layers.convolution import Conv, Dense
from jaxvision.layers.norm import BatchNorm
from jaxvision.registry import register
from jaxvision.typing import Array, Float


class Block(nn.Module):
    """Two 3x3 convolutions ("basic"), or 1x1, 3x3, 1x1 with four times the width outside ("bottleneck"); figure 5."""

    kind: Literal["basic", "bottleneck"]
    width: int
    strides: int = 1
    dilation: int = 1
    norm: BatchNorm = BatchNorm()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], *, train: bool = False) -> Float[Array, "b oh ow o"]:
        out = self.width * (1 if self.kind == "basic" else 4)

        def conv(features, window, strides, dilation, name):
            padding = dilation * (window - 1) // 2
            return Conv(features, window, strides, padding, dilation, use_bias=False, name=name)

        def norm(name):
            return self.norm.clone(name=name, parent=self)

        shortcut = x
        if x.shape[-1] != out or self.strides != 1:
            shortcut = norm("downsample_1")(conv(out, 1, self.strides, 1, "downsample_0")(x), train=train)
        if self.kind == "basic":
            x = nn.relu(norm("bn1")(conv(out, 3, self.strides, self.dilation, "conv1")(x), train=train))
            x = norm("bn2")(conv(out, 3, 1, self.dilation, "conv2")(x), train=train)
        else:
            x = nn.relu(norm("bn1")(conv(self.width, 1, 1, 1, "conv1")(x), train=train))
            x = nn.relu(norm("bn2")(conv(self.width, 3, self.strides, self.dilation, "conv2")(x), train=train))
            x = norm("bn3")(conv(out, 1, 1, 1, "conv3")(x), train=train)
        return nn.relu(x + shortcut)


class ResNet(nn.Module):
    """Features ``c1`` (stem, stride 2) to ``c5``; the outputs are logits, or the pooled c5 if ``num_classes=0``.

    dilate: for the last three stages, whether to dilate instead of striding (the map keeps its size); as in torchvision
    the first block of such a stage keeps the dilation of the stage before.
    frozen_norm, norm_epsilon, axis_name: see ``layers.norm.BatchNorm``.
    """

    stage_sizes: tuple[int, int, int, int]
    block: Literal["basic", "bottleneck"]
    num_classes: int = 1000
    in_channels: int = 3
    width: int = 64
    dilate: tuple[bool, bool, bool] = (False, False, False)
    frozen_norm: bool = False
    norm_epsilon: float = 1e-5
    axis_name: str | None = None

    feature_names: ClassVar[tuple[str, ...]] = ("c1", "c2", "c3", "c4", "c5")

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Float[Array, "b k"], dict[str, Float[Array, "b _ _ _"]]]:
        norm = BatchNorm(epsilon=self.norm_epsilon, frozen=self.frozen_norm, axis_name=self.axis_name, parent=None)
        x = Conv(self.width, 7, strides=2, padding=3, use_bias=False, name="conv1")(images)
        x = nn.relu(norm.clone(name="bn1", parent=self)(x, train=train))
        features = {"c1": x}
        x = ops.max_pool(x, window=3, strides=2, padding=1)
        dilation = 1
        for stage, (blocks, dilate) in enumerate(zip(self.stage_sizes, (False, *self.dilate))):
            strides, first_dilation = (1 if stage == 0 else 2), dilation
            if dilate:
                strides, dilation = 1, dilation * 2
            for index in range(blocks):
                x = Block(
                    self.block,
                    self.width * 2**stage,
                    strides=strides if index == 0 else 1,
                    dilation=first_dilation if index == 0 else dilation,
                    norm=norm,
                    name=f"layer{stage + 1}_{index}",
                )(x, train=train)
            features[f"c{stage + 2}"] = x
        outputs = jnp.mean(x, axis=(1, 2))
        if self.num_classes:
            outputs = Dense(self.num_classes, name="fc")(outputs)
        return outputs, features


@register(task="classification")
def resnet18(**options) -> ResNet:
    """ResNet-18: basic blocks, 11,689,512 parameters."""
    return ResNet((2, 2, 2, 2), "basic", **options)


@register(task="classification")
def resnet34(**options) -> ResNet:
    """ResNet-34: basic blocks, 21,797,672 parameters."""
    return ResNet((3, 4, 6, 3), "basic", **options)


@register(task="classification")
def resnet50(**options) -> ResNet:
    """ResNet-50: bottlenecks, 25,557,032 parameters."""
    return ResNet((3, 4, 6, 3), "bottleneck", **options)


@register(task="classification")
def resnet101(**options) -> ResNet:
    """ResNet-101: bottlenecks, 44,549,160 parameters."""
    return ResNet((3, 4, 23, 3), "bottleneck", **options)


@register(task="classification")
def resnet152(**options) -> ResNet:
    """ResNet-152: bottlenecks, 60,192,808 parameters."""
    return ResNet((3, 8, 36, 3), "bottleneck", **options)
