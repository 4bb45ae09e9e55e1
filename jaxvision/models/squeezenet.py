"""SqueezeNet: AlexNet-level accuracy with 50x fewer parameters (Iandola et al., arXiv:1602.07360), table 1.

Variants: 1.0 (the paper) and 1.1 (its authors' faster release), as in torchvision: max pools with ceil mode, unpadded
stem, ReLU after the classifier's convolution. Parameter counts: torchvision 0.29 ``meta["num_params"]``.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax.linen import initializers

from jaxvision import ops
from jaxvision.layers.classifier import Classifier
from jaxvision.layers.convolution import Conv
from jaxvision.registry import register
from jaxvision.typing import Array, Classified, Float

he_uniform = initializers.he_uniform()


class Fire(nn.Module):
    """A 1x1 convolution squeezes; a 1x1 and a 3x3 one expand, and stand side by side (figure 1)."""

    squeeze: int
    expand: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        x = nn.relu(Conv(self.squeeze, 1, kernel_init=he_uniform, name="squeeze")(x))
        narrow = nn.relu(Conv(self.expand, 1, kernel_init=he_uniform, name="expand1x1")(x))
        wide = nn.relu(Conv(self.expand, 3, padding=1, kernel_init=he_uniform, name="expand3x3")(x))
        return jnp.concatenate([narrow, wide], axis=-1)


class SqueezeNet(Classifier):
    """``stages``: the fire modules (squeeze, expand) between the pools. Features ``c1`` (stem) to ``c4`` (the last
    modules), each the map before the next pool; the outputs are logits, or the pooled c4 if ``num_classes=0``."""

    stem: tuple[int, int]  # channels, window
    stages: tuple[tuple[tuple[int, int], ...], ...]

    feature_names: ClassVar[tuple[str, ...]] = ("c1", "c2", "c3", "c4")

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Classified:
        channels, window = self.stem
        x = nn.relu(Conv(channels, window, strides=2, kernel_init=he_uniform, name="features_0")(images))
        features = {"c1": x}
        layer = 2  # torchvision counts convolution, ReLU and pools in one sequence
        for stage in self.stages:
            x = ops.max_pool(x, window=3, strides=2, ceil_mode=True)
            layer += 1
            for squeeze, expand in stage:
                x = Fire(squeeze, expand, name=f"features_{layer}")(x)
                layer += 1
            features[f"c{len(features) + 1}"] = x
        if self.num_classes:
            x = nn.Dropout(0.5, deterministic=not train)(x)
            x = nn.relu(Conv(self.num_classes, 1, kernel_init=initializers.normal(0.01), name="classifier_1")(x))
        return jnp.mean(x, axis=(1, 2)), features


@register(task="classification")
def squeezenet1_0(**options) -> SqueezeNet:
    """SqueezeNet 1.0: 1,248,424 parameters."""
    stages = (
        ((16, 64), (16, 64), (32, 128)),
        ((32, 128), (48, 192), (48, 192), (64, 256)),
        ((64, 256),),
    )
    return SqueezeNet((96, 7), stages, **options)


@register(task="classification")
def squeezenet1_1(**options) -> SqueezeNet:
    """SqueezeNet 1.1: 1,235,496 parameters, 2.4 times fewer multiply-adds than 1.0."""
    stages = (
        ((16, 64), (16, 64)),
        ((32, 128), (32, 128)),
        ((48, 192), (48, 192), (64, 256), (64, 256)),
    )
    return SqueezeNet((64, 3), stages, **options)
