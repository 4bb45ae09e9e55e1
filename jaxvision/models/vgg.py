"""VGG: Very Deep Convolutional Networks for Large-Scale Image Recognition (Simonyan, Zisserman, arXiv:1409.1556).

Table 1, configurations A, A-LRN, B, C, D, E, as ``vgg_a`` ... ``vgg_e``, and under torchvision's names: ``vgg11`` is A,
``vgg13`` B, ``vgg16`` D, ``vgg19`` E; ``_bn`` adds batch norm between convolution and ReLU (not in the paper; the
convolutions keep their biases). Deviation: maps of other sizes than 7 x 7 are pooled to it before the dense layers, as
in torchvision, where the paper turns these into convolutions. Initialisation: torchvision's, not the paper's staged
one. Parameter counts: torchvision 0.29 ``meta["num_params"]``; A-LRN and C by the table.
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

WIDTHS = (64, 128, 256, 512, 512)

# The columns of table 1: the windows of each stage's convolutions.
A = ((3,), (3,), (3, 3), (3, 3), (3, 3))
B = ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3))
C = ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1))
D = ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))
E = ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3))


class VGG(Classifier):
    """``windows``: those of the convolutions of each stage; a 2 x 2 max pool ends a stage. Features ``c0`` to ``c4``,
    each stage before its pool, and ``c5``, the last pool; the outputs are logits, or the pooled c5 if
    ``num_classes=0``.

    response_norm: AlexNet's local response normalisation after the first stage (A-LRN). It has no parameters, and A and
    A-LRN take the same variables.
    ceil_pools: stages, counted from 0, whose pool rounds the size of its map up (SSD's third does).
    """

    windows: tuple[tuple[int, ...], ...]
    batch_norm: bool = False
    response_norm: bool = False
    ceil_pools: tuple[int, ...] = ()
    hidden: int = 4096

    feature_names: ClassVar[tuple[str, ...]] = ("c0", "c1", "c2", "c3", "c4", "c5")

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Classified:
        x, features = images, {}
        layer = 0  # torchvision counts convolutions, norms, ReLUs and pools in one sequence
        for stage, (width, windows) in enumerate(zip(WIDTHS, self.windows, strict=True)):
            for window in windows:
                x = Conv(width, window, padding=window // 2, name=f"features_{layer}")(x)
                if self.batch_norm:
                    x = BatchNorm(axis_name=self.axis_name, name=f"features_{layer + 1}")(x, train=train)
                x = nn.relu(x)
                layer += 3 if self.batch_norm else 2
            if stage == 0 and self.response_norm:  # k = 2 and alpha = 1e-4 undivided, the constants of AlexNet's paper
                x = ops.local_response_norm(x, size=5, alpha=5e-4, beta=0.75, k=2.0)
            features[f"c{stage}"] = x
            x = ops.max_pool(x, window=2, ceil_mode=stage in self.ceil_pools)
            layer += 1
        features["c5"] = x
        if not self.num_classes:
            return jnp.mean(x, axis=(1, 2)), features
        x = jnp.transpose(ops.adaptive_avg_pool(x, size=(7, 7)), (0, 3, 1, 2)).reshape(x.shape[0], -1)
        small = initializers.normal(0.01)
        for name in ("classifier_0", "classifier_3"):
            x = nn.relu(Dense(self.hidden, kernel_init=small, name=name)(x))
            x = nn.Dropout(0.5, deterministic=not train)(x)
        return Dense(self.num_classes, kernel_init=small, name="classifier_6")(x), features


@register(task="classification", name="vgg_a")
@register(task="classification")
def vgg11(**options) -> VGG:
    """Configuration A, 11 layers: 132,863,336 parameters."""
    return VGG(A, **options)


@register(task="classification")
def vgg_a_lrn(**options) -> VGG:
    """Configuration A-LRN, A with local response normalisation: 132,863,336 parameters."""
    return VGG(A, response_norm=True, **options)


@register(task="classification", name="vgg_b")
@register(task="classification")
def vgg13(**options) -> VGG:
    """Configuration B, 13 layers: 133,047,848 parameters."""
    return VGG(B, **options)


@register(task="classification")
def vgg_c(**options) -> VGG:
    """Configuration C, 16 layers, three of them 1x1: 133,638,952 parameters."""
    return VGG(C, **options)


@register(task="classification", name="vgg_d")
@register(task="classification")
def vgg16(**options) -> VGG:
    """Configuration D, 16 layers: 138,357,544 parameters."""
    return VGG(D, **options)


@register(task="classification", name="vgg_e")
@register(task="classification")
def vgg19(**options) -> VGG:
    """Configuration E, 19 layers: 143,667,240 parameters."""
    return VGG(E, **options)


@register(task="classification")
def vgg11_bn(**options) -> VGG:
    """Configuration A with batch norm: 132,868,840 parameters."""
    return VGG(A, batch_norm=True, **options)


@register(task="classification")
def vgg13_bn(**options) -> VGG:
    """Configuration B with batch norm: 133,053,736 parameters."""
    return VGG(B, batch_norm=True, **options)


@register(task="classification")
def vgg16_bn(**options) -> VGG:
    """Configuration D with batch norm: 138,365,992 parameters."""
    return VGG(D, batch_norm=True, **options)


@register(task="classification")
def vgg19_bn(**options) -> VGG:
    """Configuration E with batch norm: 143,678,248 parameters."""
    return VGG(E, batch_norm=True, **options)
