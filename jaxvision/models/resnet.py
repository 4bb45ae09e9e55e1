"""ResNet (He et al., arXiv:1512.03385), table 1; ResNeXt (Xie et al., arXiv:1611.05431); Wide ResNet (Zagoruyko and
Komodakis, arXiv:1605.07146).

Two variants of a bottleneck that halves the map: torchvision's ("v1.5") strides in the 3x3 convolution, the paper's
(``resnet50_paper`` …, ``stride_in_1x1``) in the first 1x1, which has the same parameters and fewer multiply-adds: 3.86,
7.57 and 11.28e9 for 50, 101 and 152 layers at 224 pixels, against 4.09, 7.80 and 11.51e9. Basic blocks have no 1x1, so
ResNet-18 and 34 are one net in both. ResNeXt strides in the 3x3 in its paper too. Shortcuts project where the shape
changes (option B). Parameter counts: torchvision 0.29 ``meta["num_params"]``.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from jaxvision import ops
from jaxvision.layers.classifier import Classifier
from jaxvision.layers.convolution import Conv, Dense
from jaxvision.layers.norm import BatchNorm
from jaxvision.registry import register
from jaxvision.typing import Array, Classified, Float


class Block(nn.Module):
    """Two 3x3 convolutions ("basic"), or 1x1, 3x3, 1x1 ("bottleneck"); figure 5. ``width`` outside, four times that for
    a bottleneck, and ``inner`` inside; the 3x3 work in ``groups``, as ResNeXt's do."""

    kind: Literal["basic", "bottleneck"]
    width: int
    inner: int
    groups: int = 1
    strides: int = 1
    stride_in_1x1: bool = False
    dilation: int = 1
    norm: BatchNorm = BatchNorm()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], *, train: bool = False) -> Float[Array, "b oh ow o"]:
        out = self.width * (1 if self.kind == "basic" else 4)

        def conv1x1(features, strides, name):
            return Conv(features, 1, strides, use_bias=False, name=name)

        def conv3x3(features, strides, name):
            return Conv(features, 3, strides, self.dilation, self.dilation, self.groups, use_bias=False, name=name)

        def norm(name):
            return self.norm.clone(name=name, parent=self)

        shortcut = x
        if x.shape[-1] != out or self.strides != 1:
            shortcut = norm("downsample_1")(conv1x1(out, self.strides, "downsample_0")(x), train=train)
        if self.kind == "basic":
            x = nn.relu(norm("bn1")(conv3x3(self.inner, self.strides, "conv1")(x), train=train))
            x = norm("bn2")(conv3x3(out, 1, "conv2")(x), train=train)
        else:
            first, second = (self.strides, 1) if self.stride_in_1x1 else (1, self.strides)
            x = nn.relu(norm("bn1")(conv1x1(self.inner, first, "conv1")(x), train=train))
            x = nn.relu(norm("bn2")(conv3x3(self.inner, second, "conv2")(x), train=train))
            x = norm("bn3")(conv1x1(out, 1, "conv3")(x), train=train)
        return nn.relu(x + shortcut)


def stage(
    module: nn.Module,
    x: Float[Array, "b h w i"],
    first: Block,
    number: int,
    blocks: int,
    *,
    dilation: int = 1,
    train: bool = False,
) -> Float[Array, "b oh ow o"]:
    """Stage ``number`` of a residual network, as blocks ``layer<number>_<index>`` of ``module``: the first one, and
    then more of its kind up to ``blocks``, without stride and with their own ``dilation``."""
    for index in range(blocks):
        block = first if index == 0 else first.clone(strides=1, dilation=dilation)
        x = block.clone(name=f"layer{number}_{index}", parent=module)(x, train=train)
    return x


class ResNet(Classifier):
    """Features ``c1`` (stem, stride 2) to ``c5``; the outputs are logits, or the pooled last map if ``num_classes=0``.

    stage_sizes: blocks a stage; with three stages the last map is ``c4``.
    groups, width_per_group: with ``width=64`` a block's 3x3 has ``groups`` of ``width_per_group`` channels in the first
    stage, and of twice as many in each further one.
    stride_in_1x1: the paper's place for a bottleneck's stride.
    dilate: for stages two to four, whether to dilate instead of striding (the map keeps its size); as in torchvision
    the first block of such a stage keeps the dilation of the stage before, or with ``dilate_first`` has its stage's, as
    in Detectron2.
    frozen_norm, norm_epsilon, axis_name: see ``layers.norm.BatchNorm``.
    """

    stage_sizes: tuple[int, ...]
    block: Literal["basic", "bottleneck"]
    width: int = 64
    groups: int = 1
    width_per_group: int = 64
    stride_in_1x1: bool = False
    dilate: tuple[bool, bool, bool] = (False, False, False)
    dilate_first: bool = False
    frozen_norm: bool = False
    norm_epsilon: float = 1e-5

    @property
    def feature_names(self) -> tuple[str, ...]:
        return tuple(f"c{index + 1}" for index in range(len(self.stage_sizes) + 1))

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Classified:
        if len(self.stage_sizes) > 4:
            raise ValueError(f"stage_sizes={self.stage_sizes}: a ResNet has at most four stages")
        x = Conv(self.width, 7, strides=2, padding=3, use_bias=False, name="conv1")(images)
        x = nn.relu(self._norm().clone(name="bn1", parent=self)(x, train=train))
        features = {"c1": x}
        x = ops.max_pool(x, window=3, strides=2, padding=1)
        dilation = 1
        for number, (blocks, dilate) in enumerate(zip(self.stage_sizes, (False, *self.dilate)), start=1):
            first = self.first_block(number).clone(dilation=dilation)
            if dilate:
                dilation *= 2
                first = first.clone(strides=1, dilation=dilation if self.dilate_first else first.dilation)
            x = stage(self, x, first, number, blocks, dilation=dilation, train=train)
            features[f"c{number + 1}"] = x
        outputs = jnp.mean(x, axis=(1, 2))
        if self.num_classes:
            outputs = Dense(self.num_classes, name="fc")(outputs)
        return outputs, features

    @nn.nowrap
    def first_block(self, number: int) -> Block:
        """The first block of stage ``number`` (from 1 on) where nothing is dilated; for ``stage``."""
        width = self.width * 2 ** (number - 1)
        return Block(
            self.block,
            width,
            inner=width * self.width_per_group // 64 * self.groups,
            groups=self.groups,
            strides=1 if number == 1 else 2,
            stride_in_1x1=self.stride_in_1x1,
            norm=self._norm(),
            parent=None,
        )

    @nn.nowrap
    def _norm(self) -> BatchNorm:
        return BatchNorm(epsilon=self.norm_epsilon, frozen=self.frozen_norm, axis_name=self.axis_name, parent=None)


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


@register(task="classification")
def resnet50_paper(**options) -> ResNet:
    """ResNet-50 with the paper's stride placement: 3.86e9 multiply-adds at 224 pixels."""
    return resnet50(stride_in_1x1=True, **options)


@register(task="classification")
def resnet101_paper(**options) -> ResNet:
    """ResNet-101 with the paper's stride placement: 7.57e9 multiply-adds at 224 pixels."""
    return resnet101(stride_in_1x1=True, **options)


@register(task="classification")
def resnet152_paper(**options) -> ResNet:
    """ResNet-152 with the paper's stride placement: 11.28e9 multiply-adds at 224 pixels."""
    return resnet152(stride_in_1x1=True, **options)


@register(task="classification")
def resnext50_32x4d(**options) -> ResNet:
    """ResNeXt-50, 32 groups of 4 channels: 25,028,904 parameters."""
    return resnet50(groups=32, width_per_group=4, **options)


@register(task="classification")
def resnext101_32x8d(**options) -> ResNet:
    """ResNeXt-101, 32 groups of 8 channels: 88,791,336 parameters."""
    return resnet101(groups=32, width_per_group=8, **options)


@register(task="classification")
def resnext101_64x4d(**options) -> ResNet:
    """ResNeXt-101, 64 groups of 4 channels: 83,455,272 parameters."""
    return resnet101(groups=64, width_per_group=4, **options)


@register(task="classification")
def wide_resnet50_2(**options) -> ResNet:
    """ResNet-50 with twice as wide 3x3 convolutions: 68,883,240 parameters."""
    return resnet50(width_per_group=128, **options)


@register(task="classification")
def wide_resnet101_2(**options) -> ResNet:
    """ResNet-101 with twice as wide 3x3 convolutions: 126,886,696 parameters."""
    return resnet101(width_per_group=128, **options)
