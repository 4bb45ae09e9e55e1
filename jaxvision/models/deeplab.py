"""DeepLabV3: Rethinking Atrous Convolution for Semantic Image Segmentation (Chen et al., arXiv:1706.05587), figure 5.

Variant: torchvision's, over a ResNet at an eighth of the images' size with the rates 12, 24, 36 (the paper's 6, 12, 18
at a sixteenth, doubled), or over any other classifier. Deviations from the paper, which are torchvision's: the last
stage's blocks have one dilation, not the multi-grid (1, 2, 4); dropout follows the pyramid's projection; and a 3x3
convolution stands between that and the scoring layer. Parameter counts: torchvision 0.29, whose
``meta["num_params"]`` counts the auxiliary head.
"""

import flax.linen as nn
import jax.numpy as jnp

from jaxvision.layers.convolution import Conv
from jaxvision.layers.dropout import Dropout
from jaxvision.layers.norm import BatchNorm
from jaxvision.models.fcn import FCN, over_classifier, small_resnet
from jaxvision.registry import get_model, register
from jaxvision.typing import Array, Float


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (section 3.3): side by side a 1x1 convolution, a 3x3 one of each of the ``rates``,
    and the mean of the whole map; all of them projected to ``channels``."""

    channels: int
    rates: tuple[int, ...]
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], *, train: bool = False) -> Float[Array, "b h w o"]:
        def layer(x, name, window=1, rate=1, place=0):
            conv = Conv(
                self.channels,
                window,
                padding=rate * (window // 2),
                dilation=rate,
                use_bias=False,
                name=f"{name}_{place}",
            )
            norm = BatchNorm(axis_name=self.axis_name, name=f"{name}_{place + 1}")
            return nn.relu(norm(conv(x), train=train))

        maps = [layer(x, "convs_0")]
        maps += [layer(x, f"convs_{index}", 3, rate) for index, rate in enumerate(self.rates, start=1)]
        mean = jnp.mean(x, axis=(1, 2), keepdims=True)
        mean = layer(mean, f"convs_{len(maps)}", place=1)  # place 0 is torchvision's pooling
        x = jnp.concatenate([*maps, jnp.broadcast_to(mean, maps[0].shape)], axis=-1)
        return Dropout(0.5, self.axis_name)(layer(x, "project"), train=train)


class DeepLabV3(FCN):
    """An FCN whose head has an ASPP of these ``rates``, in cells of the last map, and is ``channels`` wide; the second
    head, if any, is FCN's."""

    rates: tuple[int, ...] = (12, 24, 36)
    channels: int = 256

    def head(self, x: Float[Array, "b h w i"], *, train: bool = False) -> Float[Array, "b h w k"]:
        x = ASPP(self.channels, self.rates, self.axis_name, name="classifier_0")(x, train=train)
        x = Conv(self.channels, 3, padding=1, use_bias=False, name="classifier_1")(x)
        x = nn.relu(BatchNorm(axis_name=self.axis_name, name="classifier_2")(x, train=train))
        return self.score(x, "classifier_4")


@register(task="segmentation")
def deeplabv3(backbone: str = "resnet50", **options) -> DeepLabV3:
    """DeepLabV3 over any registered classifier, by name. ``rates`` suit maps of an eighth of the images' size, as
    ResNets have here; coarser maps take smaller ones."""
    return over_classifier(DeepLabV3, get_model(backbone, num_classes=0), **options)


@register(task="segmentation")
def deeplabv3_resnet50(**options) -> DeepLabV3:
    """torchvision's model of that name: 39,638,869 parameters at 21 classes, 42,004,074 with ``auxiliary=True``."""
    return deeplabv3("resnet50", **options)


@register(task="segmentation")
def deeplabv3_resnet101(**options) -> DeepLabV3:
    """torchvision's model of that name: 58,630,997 parameters at 21 classes, 60,996,202 with ``auxiliary=True``."""
    return deeplabv3("resnet101", **options)


@register(task="segmentation")
def deeplabv3_small(**options) -> DeepLabV3:
    """A narrow DeepLabV3 for two CPU cores: a step on eight images of 128 pixels takes about 7e9 operations. It skips
    from stride 4, as ``fcn_small``."""
    defaults = {"rates": (3, 6, 9), "channels": 32, "skips": ("c2",)}
    return over_classifier(DeepLabV3, small_resnet(), **(defaults | options))
