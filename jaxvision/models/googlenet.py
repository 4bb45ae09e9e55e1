"""GoogLeNet: Going Deeper with Convolutions (Szegedy et al., arXiv:1409.4842), table 1 and figure 3.

Variant: torchvision's, which was ported from TensorFlow: batch norm after every convolution instead of biases and local
response normalisation, max pools with ceil mode, the last of them 2x2. The branch that table 1 calls "5x5" has a 3x3
window, a slip that its published weights have made permanent. The auxiliary heads pool their map to 4x4 cells, the
paper's size at 224 pixels. Dense biases start at zero. Parameter counts: torchvision 0.29, 13,004,888 with the
auxiliary heads and ``meta["num_params"]`` = 6,624,904 without.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.linen import initializers

from jaxvision import ops
from jaxvision.layers.classifier import Classifier
from jaxvision.layers.convolution import Conv, Dense
from jaxvision.layers.norm import BatchNorm
from jaxvision.ops.convolution import IntOrPair
from jaxvision.registry import register
from jaxvision.typing import Array, Float

Maps = dict[str, Float[Array, "b ..."]]  # by name; an auxiliary head's are logits [b, k]
small = initializers.normal(0.01)


class ConvNormRelu(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    features: int
    window: IntOrPair
    strides: int = 1
    padding: IntOrPair = 0
    kernel_init: Callable = small
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], *, train: bool = False) -> Float[Array, "b oh ow o"]:
        x = Conv(
            self.features, self.window, self.strides, self.padding,
            use_bias=False, kernel_init=self.kernel_init, name="conv",
        )(x)  # fmt: skip
        return nn.relu(BatchNorm(epsilon=1e-3, axis_name=self.axis_name, name="bn")(x, train=train))


class Inception(nn.Module):
    """Four branches side by side: 1x1; 1x1 and 3x3, twice; max pool and 1x1 (figure 3b)."""

    widths: tuple[int, int, int, int, int, int]  # 1x1, 3x3 reduced, 3x3, "5x5" reduced, "5x5", pool projection
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], *, train: bool = False) -> Float[Array, "b h w o"]:
        one, three_reduced, three, five_reduced, five, pool = self.widths

        def conv(x, features, window, name):
            layer = ConvNormRelu(features, window, padding=window // 2, axis_name=self.axis_name, name=name)
            return layer(x, train=train)

        branches = [
            conv(x, one, 1, "branch1"),
            conv(conv(x, three_reduced, 1, "branch2_0"), three, 3, "branch2_1"),
            conv(conv(x, five_reduced, 1, "branch3_0"), five, 3, "branch3_1"),
            conv(ops.max_pool(x, window=3, strides=1, padding=1), pool, 1, "branch4_1"),
        ]
        return jnp.concatenate(branches, axis=-1)


class AuxiliaryHead(nn.Module):
    """A classifier on a middle map, which brings gradients to the lower layers in training (section 5)."""

    num_classes: int
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b k"]:
        x = ops.adaptive_avg_pool(x, size=(4, 4))
        x = ConvNormRelu(128, 1, axis_name=self.axis_name, name="conv")(x, train=train)
        x = jnp.transpose(x, (0, 3, 1, 2)).reshape(x.shape[0], -1)
        x = nn.relu(Dense(1024, kernel_init=small, name="fc1")(x))
        x = nn.Dropout(0.7, deterministic=not train)(x)
        return Dense(self.num_classes, kernel_init=small, name="fc2")(x)


class GoogLeNet(Classifier):
    """Features ``c1`` (stem) to ``c5``, each the last map before the next pool; the outputs are logits, or the pooled
    c5 if ``num_classes=0``.

    aux_logits: hold the auxiliary heads' variables; with ``train`` their logits [b, k] are the features ``aux1`` (after
    4a) and ``aux2`` (after 4d), which the paper adds to the loss with weight 0.3.
    transform_input: see ``transform``; torchvision's weights want it.
    """

    aux_logits: bool = True
    transform_input: bool = False

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> tuple[Float[Array, "b k"], Maps]:
        features = {}

        def conv(x, name, *shape, **options):
            return ConvNormRelu(*shape, axis_name=self.axis_name, name=name, **options)(x, train=train)

        def inception(x, name, *widths):
            return Inception(widths, self.axis_name, name=f"inception{name}")(x, train=train)

        def auxiliary_head(x, name):
            if self.aux_logits and self.num_classes and (train or self.is_initializing()):
                logits = AuxiliaryHead(self.num_classes, self.axis_name, name=name)(x, train=train)
                if train:
                    features[name] = logits

        pool = functools.partial(ops.max_pool, window=3, strides=2, ceil_mode=True)
        x = transform(images) if self.transform_input else images
        features["c1"] = x = conv(x, "conv1", 64, 7, strides=2, padding=3)
        x = conv(pool(x), "conv2", 64, 1)
        features["c2"] = x = conv(x, "conv3", 192, 3, padding=1)
        x = inception(pool(x), "3a", 64, 96, 128, 16, 32, 32)
        features["c3"] = x = inception(x, "3b", 128, 128, 192, 32, 96, 64)
        x = inception(pool(x), "4a", 192, 96, 208, 16, 48, 64)
        auxiliary_head(x, "aux1")
        x = inception(x, "4b", 160, 112, 224, 24, 64, 64)
        x = inception(x, "4c", 128, 128, 256, 24, 64, 64)
        x = inception(x, "4d", 112, 144, 288, 32, 64, 64)
        auxiliary_head(x, "aux2")
        features["c4"] = x = inception(x, "4e", 256, 160, 320, 32, 128, 128)
        x = inception(pool(x, window=2), "5a", 256, 160, 320, 32, 128, 128)
        features["c5"] = x = inception(x, "5b", 384, 192, 384, 48, 128, 128)
        outputs = jnp.mean(x, axis=(1, 2))
        if self.num_classes:
            outputs = nn.Dropout(0.2, deterministic=not train)(outputs)
            outputs = Dense(self.num_classes, kernel_init=small, name="fc")(outputs)
        return outputs, features


def transform(images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """From images normalised by ImageNet's mean and deviation to the range -1 ... 1 that TensorFlow's nets were trained
    with.

    Raises: ValueError if the images are not RGB.
    """
    if images.shape[-1] != 3:
        raise ValueError(f"transform_input is for RGB images, these have {images.shape[-1]} channels")
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    factor, shift = jnp.asarray(std / 0.5, images.dtype), jnp.asarray((mean - 0.5) / 0.5, images.dtype)
    return images * factor[None, None, None, :] + shift[None, None, None, :]


@register(task="classification")
def googlenet(**options) -> GoogLeNet:
    """GoogLeNet with two auxiliary heads: 13,004,888 parameters; 6,624,904 without."""
    return GoogLeNet(**options)
