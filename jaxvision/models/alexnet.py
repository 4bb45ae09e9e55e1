"""AlexNet, twice.

``alexnet_2012``: ImageNet Classification with Deep Convolutional Neural Networks (Krizhevsky et al., NeurIPS 2012),
section 3 and figure 2. Two towers of half the kernels each are two groups of a grouped convolution in the second,
fourth and fifth layer. Local response normalisation has the paper's constants, sums over neighbours of both towers, as
equation 1 counts all kernels of a layer, and stands between ReLU and pooling, which overlaps; dropout follows the two
hidden dense layers. Deviations: images of 224 pixels are padded by 2, which gives the paper's maps of 55 cells (Caffe's
release takes 227 unpadded, divides alpha by 5 and has k = 1 instead of 2); maps of other sizes are pooled to the 6 x 6
cells that the dense layers want.

``alexnet``: torchvision's, one tower after One weird trick for parallelizing convolutional neural networks
(Krizhevsky, arXiv:1404.5997), without normalisation, dropout before the dense layers.

Parameter counts: the sum of the paper's layers; torchvision 0.29 ``meta["num_params"]``.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers

from jaxvision import ops
from jaxvision.layers.classifier import Classifier
from jaxvision.layers.convolution import Conv, Dense
from jaxvision.registry import register
from jaxvision.typing import Array, Classified, Float

# Section 3.3, whose alpha = 1e-4 is not divided by the number of neighbours.
RESPONSE_NORM = dict(size=5, alpha=5e-4, beta=0.75, k=2.0)


class AlexNet2012(Classifier):
    """The paper's net. Features ``c2`` (after the first ReLU) to ``c5`` (after the last pool); the outputs are logits,
    or the pooled c5 if ``num_classes=0``.

    ``experiments/alexnet_two_towers.py`` runs the towers on two devices, from the same variables.
    """

    hidden: int = 4096

    feature_names: ClassVar[tuple[str, ...]] = ("c2", "c3", "c4", "c5")

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Classified:
        small, ones = initializers.normal(0.01), initializers.ones  # section 5: ones feed the first ReLUs

        def conv(x, name, features, window, strides=1, padding=0, groups=1, bias_init=initializers.zeros):
            init = dict(kernel_init=small, bias_init=bias_init)
            return nn.relu(Conv(features, window, strides, padding, groups=groups, **init, name=name)(x))

        features = {}
        x = features["c2"] = conv(images, "conv1", 96, 11, strides=4, padding=2)
        x = ops.max_pool(ops.local_response_norm(x, **RESPONSE_NORM), window=3, strides=2)
        x = features["c3"] = conv(x, "conv2", 256, 5, padding=2, groups=2, bias_init=ones)
        x = ops.max_pool(ops.local_response_norm(x, **RESPONSE_NORM), window=3, strides=2)
        x = conv(x, "conv3", 384, 3, padding=1)
        x = conv(x, "conv4", 384, 3, padding=1, groups=2, bias_init=ones)
        x = features["c4"] = conv(x, "conv5", 256, 3, padding=1, groups=2, bias_init=ones)
        x = features["c5"] = ops.max_pool(x, window=3, strides=2)
        if not self.num_classes:
            return jnp.mean(x, axis=(1, 2)), features
        x = flatten(ops.adaptive_avg_pool(x, size=(6, 6)))
        for name in ("fc6", "fc7"):
            x = nn.relu(Dense(self.hidden, kernel_init=small, bias_init=ones, name=name)(x))
            x = nn.Dropout(0.5, deterministic=not train)(x)
        return Dense(self.num_classes, kernel_init=small, name="fc8")(x), features


class AlexNet(Classifier):
    """torchvision's net. Features ``c2`` (after the first ReLU) to ``c5`` (after the last pool); the outputs are
    logits, or the pooled c5 if ``num_classes=0``."""

    hidden: int = 4096

    feature_names: ClassVar[tuple[str, ...]] = ("c2", "c3", "c4", "c5")

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Classified:
        def conv(x, layer, features, window, strides=1, padding=1):
            init = uniform_init(window * window * x.shape[-1])
            return nn.relu(Conv(features, window, strides, padding, **init, name=f"features_{layer}")(x))

        def dense(x, layer, features):
            x = nn.Dropout(0.5, deterministic=not train)(x) if layer < 6 else x
            return Dense(features, **uniform_init(x.shape[-1]), name=f"classifier_{layer}")(x)

        features = {}
        x = features["c2"] = conv(images, 0, 64, 11, strides=4, padding=2)
        x = features["c3"] = conv(ops.max_pool(x, window=3, strides=2), 3, 192, 5, padding=2)
        x = conv(ops.max_pool(x, window=3, strides=2), 6, 384, 3)
        x = conv(x, 8, 256, 3)
        x = features["c4"] = conv(x, 10, 256, 3)
        x = features["c5"] = ops.max_pool(x, window=3, strides=2)
        if not self.num_classes:
            return jnp.mean(x, axis=(1, 2)), features
        x = flatten(ops.adaptive_avg_pool(x, size=(6, 6)))
        x = nn.relu(dense(x, 1, self.hidden))
        x = nn.relu(dense(x, 4, self.hidden))
        return dense(x, 6, self.num_classes), features


def flatten(x: Float[Array, "b h w c"]) -> Float[Array, "b chw"]:
    """Channels first, the order in which published dense layers take a map."""
    return jnp.transpose(x, (0, 3, 1, 2)).reshape(x.shape[0], -1)


def uniform_init(fan_in: int) -> dict:
    """torch's default initialisers of kernel and bias: uniform within ``1 / sqrt(fan_in)``."""

    def uniform(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return dict(kernel_init=uniform, bias_init=uniform)


@register(task="classification")
def alexnet(**options) -> AlexNet:
    """torchvision's AlexNet: 61,100,840 parameters."""
    return AlexNet(**options)


@register(task="classification")
def alexnet_2012(**options) -> AlexNet2012:
    """The original AlexNet: 60,965,224 parameters."""
    return AlexNet2012(**options)
