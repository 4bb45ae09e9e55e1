"""DenseNet: Densely Connected Convolutional Networks (Huang et al., arXiv:1608.06993), table 1.

Variant: DenseNet-BC (bottlenecks of four times the growth, transitions that halve the channels), as in torchvision: a
max pool of 3x3/2 padded by 1 after the stem, no dropout. Parameter counts: torchvision 0.29 ``meta["num_params"]``.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax.linen import initializers

from jaxvision import ops
from jaxvision.layers.classifier import Classifier
from jaxvision.layers.convolution import Conv, Dense
from jaxvision.layers.norm import BatchNorm
from jaxvision.registry import register
from jaxvision.typing import Array, Classified, Float

he_normal = initializers.variance_scaling(2.0, "fan_in", "normal")
uniform = initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # torch's default


class DenseLayer(nn.Module):
    """Norm, ReLU and a 1x1 convolution to ``bn_size * growth`` channels, then norm, ReLU and a 3x3 one to ``growth``:
    the new channels alone (section 3)."""

    growth: int
    bn_size: int
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], *, train: bool = False) -> Float[Array, "b h w growth"]:
        x = nn.relu(BatchNorm(axis_name=self.axis_name, name="norm1")(x, train=train))
        x = Conv(self.bn_size * self.growth, 1, use_bias=False, kernel_init=he_normal, name="conv1")(x)
        x = nn.relu(BatchNorm(axis_name=self.axis_name, name="norm2")(x, train=train))
        return Conv(self.growth, 3, padding=1, use_bias=False, kernel_init=he_normal, name="conv2")(x)


class DenseBlock(nn.Module):
    """Each layer sees the channels of all layers before it (equation 2)."""

    layers: int
    growth: int
    bn_size: int
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], *, train: bool = False) -> Float[Array, "b h w o"]:
        maps = [x]  # side by side only where a layer reads them, which XLA does while it normalises
        for index in range(self.layers):
            layer = DenseLayer(self.growth, self.bn_size, self.axis_name, name=f"denselayer{index + 1}")
            maps.append(layer(jnp.concatenate(maps, axis=-1), train=train))
        return jnp.concatenate(maps, axis=-1)


class Transition(nn.Module):
    """Half the channels, half the size (section 3, "Pooling layers" and "Compression")."""

    axis_name: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], *, train: bool = False) -> Float[Array, "b oh ow o"]:
        channels = x.shape[-1] // 2
        x = nn.relu(BatchNorm(axis_name=self.axis_name, name="norm")(x, train=train))
        x = Conv(channels, 1, use_bias=False, kernel_init=he_normal, name="conv")(x)
        return ops.avg_pool(x, window=2)


class DenseNet(Classifier):
    """Features ``c1`` (stem), ``c2`` to ``c4`` (dense blocks, before the transition) and ``c5`` (the last block, after
    norm and ReLU); the outputs are logits, or the pooled c5 if ``num_classes=0``."""

    growth: int
    block_sizes: tuple[int, int, int, int]
    stem: int
    bn_size: int = 4

    torch_names: ClassVar[tuple[tuple[str, str], ...]] = ((r"^(conv|norm|denseblock|transition)", r"features.\1"),)
    # The published checkpoints, of before torch forbade dots in names.
    torch_legacy_names: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"(denselayer\d+)\.(norm|conv)\.([12])\.", r"\1.\2\3."),
    )

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Classified:
        x = Conv(self.stem, 7, strides=2, padding=3, use_bias=False, kernel_init=he_normal, name="conv0")(images)
        x = nn.relu(BatchNorm(axis_name=self.axis_name, name="norm0")(x, train=train))
        features = {"c1": x}
        x = ops.max_pool(x, window=3, strides=2, padding=1)
        for index, layers in enumerate(self.block_sizes, start=1):
            block = DenseBlock(layers, self.growth, self.bn_size, self.axis_name, name=f"denseblock{index}")
            x = block(x, train=train)
            if index < len(self.block_sizes):
                features[f"c{index + 1}"] = x
                x = Transition(self.axis_name, name=f"transition{index}")(x, train=train)
        x = nn.relu(BatchNorm(axis_name=self.axis_name, name="norm5")(x, train=train))
        features["c5"] = x
        outputs = jnp.mean(x, axis=(1, 2))
        if self.num_classes:
            outputs = Dense(self.num_classes, kernel_init=uniform, name="classifier")(outputs)
        return outputs, features


@register(task="classification")
def densenet121(**options) -> DenseNet:
    """DenseNet-121, growth 32: 7,978,856 parameters."""
    return DenseNet(32, (6, 12, 24, 16), 64, **options)


@register(task="classification")
def densenet161(**options) -> DenseNet:
    """DenseNet-161, growth 48: 28,681,000 parameters."""
    return DenseNet(48, (6, 12, 36, 24), 96, **options)


@register(task="classification")
def densenet169(**options) -> DenseNet:
    """DenseNet-169, growth 32: 14,149,480 parameters."""
    return DenseNet(32, (6, 12, 32, 32), 64, **options)


@register(task="classification")
def densenet201(**options) -> DenseNet:
    """DenseNet-201, growth 32: 20,013,928 parameters."""
    return DenseNet(32, (6, 12, 48, 32), 64, **options)
