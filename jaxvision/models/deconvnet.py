"""DeconvNet: Learning Deconvolution Network for Semantic Segmentation (Noh, Hong, Han, arXiv:1505.04366).

The paper's layer table (supplement): VGG-16 down to one cell, and its mirror image back up, which undoes each max pool
with the pool's own switches and smooths with transposed convolutions. Batch norm and ReLU follow every layer but the
last. The convolutions down have VGG-16-BN's names, so that ``variables["params"]["backbone"]``, and the same of
``batch_stats``, may be those of ``load_weights("vgg16_bn", num_classes=0)``.

``deconvnet_small`` is for CPUs: narrow stages, and smaller dense layers.

Deviations: pools round up, as Caffe's, and unpooling restores the size before the pool, so that images need not be
multiples of 32; the shift of batch norm starts at 0, not 0.001, and kernels after He: under batch norm the paper's
normal(0.01) makes the same maps, but Adam's steps are then too long for it. The published network sees windows of 224
pixels around object proposals, and merges their scores by the maximum; here one pass sees the whole image. Parameter
counts: the sum over the published layers, 251,770,880 of (transposed) convolutions, 33,408 of batch norm and 1,365 of
the scores.
"""

import flax.linen as nn
import jax.numpy as jnp

from jaxvision import ops
from jaxvision.layers.convolution import Conv, ConvTranspose
from jaxvision.layers.norm import BatchNorm
from jaxvision.layers.segmenter import BehindStem, Segmenter, behind_stem
from jaxvision.registry import register
from jaxvision.typing import Array, Float, Int, Segmented


class Encoder(nn.Module):
    """VGG with batch norm and pools that keep their switches: stages of ``(features, convolutions)``. Submodules have
    torchvision's names for the VGG of the same stages."""

    stages: tuple[tuple[int, int], ...]
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Float[Array, "b _ _ _"], list[Float[Array, "b _ _ _"]], list[Int[Array, "b _ _ _"]]]:
        """The last map pooled, each stage before its pool, and the switches of each pool."""
        layer, maps, switches = 0, [], []
        for features, convolutions in self.stages:
            for _ in range(convolutions):
                x = Conv(features, 3, padding=1, name=f"features_{layer}")(x)
                x = nn.relu(BatchNorm(axis_name=self.axis_name, name=f"features_{layer + 1}")(x, train=train))
                layer += 3
            maps.append(x)
            x, indices = ops.max_pool_with_indices(x, window=2, ceil_mode=True)
            switches.append(indices)
            layer += 1
        return x, maps, switches


class DeconvNet(Segmenter):
    """``stages`` as ``Encoder`` takes them; ``hidden`` units of the two dense layers at the bottom, of which the first
    sees ``bottom`` x ``bottom`` cells of the last map.

    Images of any size: the dense layers move over larger maps as convolutions. Where the last map would have fewer than
    ``bottom`` rows or columns, the image is first padded with zeros at its bottom and right. Features: ``c0 ...``, the
    stages before their pools; ``fc7``; ``d<stages> ... d1``, the way back up.
    """

    stages: tuple[tuple[int, int], ...]
    hidden: int
    bottom: int

    @property
    def init_size(self) -> int:
        return self.bottom * 2 ** len(self.stages)

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Segmented:
        height, width = images.shape[1:3]
        missing = [(0, max(self.init_size - side, 0)) for side in (height, width)]
        x = jnp.pad(images, [(0, 0), *missing, (0, 0)])
        x, maps, switches = Encoder(self.stages, self.axis_name, name="backbone")(x, train=train)
        features = {f"c{stage}": x for stage, x in enumerate(maps)}

        def normed(layer, x):
            return nn.relu(BatchNorm(axis_name=self.axis_name, name=f"{layer.name}_bn")(layer(x), train=train))

        deepest = self.stages[-1][0]
        x = normed(Conv(self.hidden, self.bottom, name="fc6"), x)
        x = features["fc7"] = normed(Conv(self.hidden, 1, name="fc7"), x)
        x = normed(ConvTranspose(deepest, self.bottom, name="fc6_deconv"), x)
        for stage in range(len(self.stages), 0, -1):
            x = ops.max_unpool(x, switches[stage - 1], output_size=maps[stage - 1].shape[1:3])
            own, convolutions = self.stages[stage - 1]
            below = self.stages[max(stage - 2, 0)][0]  # what the next switches have
            for index, out in enumerate([own] * (convolutions - 1) + [below], start=1):
                x = normed(ConvTranspose(out, 3, padding=1, name=f"deconv{stage}_{index}"), x)
            features[f"d{stage}"] = x
        logits = Conv(self.num_classes, 1, name="seg_score")(x)
        return logits[:, :height, :width], features


@register(task="segmentation")
def deconvnet(*, num_classes: int = 21, **options) -> DeconvNet:
    """The published network: 251,805,653 parameters for 21 classes."""
    stages = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
    return DeconvNet(stages, hidden=4096, bottom=7, num_classes=num_classes, **options)


@register(task="segmentation")
def deconvnet_small(*, num_classes: int = 21, **options) -> BehindStem:
    """Three stages of 32 to 96 channels at half the images' size, and dense layers of 128 units over one cell."""
    stages = ((32, 1), (64, 1), (96, 1))
    return behind_stem(DeconvNet(stages, hidden=128, bottom=1, num_classes=num_classes, **options), (16,))
