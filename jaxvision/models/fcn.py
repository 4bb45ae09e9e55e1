"""FCN: Fully Convolutional Networks for Semantic Segmentation (Long, Shelhamer, Darrell, arXiv:1411.4038), in the form
that torchvision publishes: over a ResNet whose last two stages are dilated, so that maps keep an eighth of the images'
size, or over any other classifier.

Deviations from the paper, which are torchvision's: a residual network instead of VGG-16; the head is a 3x3 convolution
with batch norm, ReLU and dropout and a 1x1 one; nothing skips to it from finer maps, unless asked for; and bilinear
resizing, which is not learnt, brings its logits to the images' size. The scoring layers start at N(0, 0.01), not at
zero as the paper's (section 4.3), so that the layers below learn from the first step. Parameter counts: torchvision
0.29, whose ``meta["num_params"]`` counts the auxiliary head.
"""

from typing import ClassVar

import flax.linen as nn
from flax.linen import initializers

from jaxvision import ops
from jaxvision.layers.classifier import Classifier
from jaxvision.layers.convolution import Conv
from jaxvision.layers.dropout import Dropout
from jaxvision.layers.norm import BatchNorm
from jaxvision.layers.segmenter import Segmenter
from jaxvision.models.resnet import ResNet
from jaxvision.registry import get_model, register
from jaxvision.typing import Array, Float, Segmented


class FCN(Segmenter):
    """A head on the last of the backbone's ``feature_names``. Features are the backbone's.

    skips: features, coarser ones first, whose own scores (1x1 convolutions) are added to the logits at their size, so
    that finer maps place the borders (section 4.2 of the paper; torchvision has none).
    aux_logits: a second head reads the map before the last, and its logits are the feature ``aux``; torchvision adds
    half of their loss in training.
    """

    backbone: Classifier
    aux_logits: bool = False
    skips: tuple[str, ...] = ()

    init_size: ClassVar[int] = 128  # that every backbone takes

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Segmented:
        features = dict(self.backbone(images, train=train)[1])
        *_, middle, last = self.backbone.feature_names
        logits = self.head(features[last], train=train)
        for name in self.skips:
            finer = features[name]
            logits = ops.resize(logits, size=finer.shape[1:3]) + self.score(finer, f"score_{name}")
        if self.aux_logits:
            aux = self._fcn_head("aux_classifier", features[middle], train=train)
            features["aux"] = ops.resize(aux, size=images.shape[1:3])
        return ops.resize(logits, size=images.shape[1:3]), features

    def head(self, x: Float[Array, "b h w i"], *, train: bool = False) -> Float[Array, "b h w k"]:
        """Logits at the map's size, by layers of this module; for subclasses to replace."""
        return self._fcn_head("classifier", x, train=train)

    def score(self, x: Float[Array, "b h w i"], name: str) -> Float[Array, "b h w k"]:
        """Logits of each cell."""
        return Conv(self.num_classes, 1, kernel_init=initializers.normal(0.01), name=name)(x)

    def _fcn_head(self, name: str, x: Float[Array, "b h w i"], *, train: bool) -> Float[Array, "b h w k"]:
        x = Conv(x.shape[-1] // 4, 3, padding=1, use_bias=False, name=f"{name}_0")(x)
        x = nn.relu(BatchNorm(axis_name=self.axis_name, name=f"{name}_1")(x, train=train))
        return self.score(Dropout(0.1, self.axis_name)(x, train=train), f"{name}_4")


def over_classifier(
    segmenter: type[FCN],
    backbone: Classifier,
    *,
    num_classes: int = 21,
    auxiliary: bool = False,
    in_channels: int = 3,
    axis_name: str | None = None,
    **options,
) -> FCN:
    """A segmenter of this class on a classifier's maps, without its head; the last two stages of a ResNet are dilated.
    auxiliary: with ``aux_logits``. The default number of classes is VOC's with the background."""
    network = backbone.clone(num_classes=0, in_channels=in_channels, axis_name=axis_name)
    if isinstance(network, ResNet):
        network = network.clone(dilate=(False, True, True))
    return segmenter(
        network, auxiliary, num_classes=num_classes, in_channels=in_channels, axis_name=axis_name, **options
    )


def small_resnet() -> ResNet:
    """A narrow backbone, for images of 128 pixels on two CPU cores; its last map has 128 channels."""
    return ResNet((2, 2, 2, 1), "basic", width=16)


@register(task="segmentation")
def fcn(backbone: str = "resnet50", **options) -> FCN:
    """FCN over any registered classifier, by name."""
    return over_classifier(FCN, get_model(backbone, num_classes=0), **options)


@register(task="segmentation")
def fcn_resnet50(**options) -> FCN:
    """torchvision's model of that name: 32,957,013 parameters at 21 classes, 35,322,218 with ``auxiliary=True``."""
    return fcn("resnet50", **options)


@register(task="segmentation")
def fcn_resnet101(**options) -> FCN:
    """torchvision's model of that name: 51,949,141 parameters at 21 classes, 54,314,346 with ``auxiliary=True``."""
    return fcn("resnet101", **options)


@register(task="segmentation")
def fcn_small(**options) -> FCN:
    """A narrow FCN for two CPU cores: a step on eight images of 128 pixels takes about 6e9 operations. It skips from
    stride 4: an eighth of the images' size is too coarse for strokes of three pixels."""
    return over_classifier(FCN, small_resnet(), **({"skips": ("c2",)} | options))
