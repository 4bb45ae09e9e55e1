"""Dilated convolutions: Multi-Scale Context Aggregation by Dilated Convolutions (Yu, Koltun, arXiv:1511.07122).

``dilated_vgg16`` is the front end of section 4, VGG-16 without its last two pools, whose later layers are dilated
instead, and on demand one of the context modules of table 1 after it. Nothing in it is padded: the image is mirrored at
its border by 186 pixels, and a unit of the map sees 380 of them. The convolutions have the names of torchvision's
``vgg16``; ``from_vgg16`` takes over published weights of ImageNet, as the paper does.

``dilated_small`` is for CPUs: padded convolutions with batch norm at a stride of 4, dilated rather than pooled,
then a context module on their features.

Deviations: the authors' code takes unit i for pixel 8i, in training and when it enlarges the probabilities; here it
stands in the middle of its field, at 8i + 4, and logits are enlarged. Their own weights (Caffe's) do not load.
Parameter counts: sums over the layers.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers

from jaxvision import ops
from jaxvision.layers.convolution import Conv
from jaxvision.layers.dropout import Dropout
from jaxvision.layers.norm import BatchNorm
from jaxvision.layers.segmenter import Segmenter
from jaxvision.models.vgg import WIDTHS, D
from jaxvision.registry import register
from jaxvision.typing import Array, Features, Float, Segmented, Variables

MARGIN = 186  # pixels that the front end's first and last unit see beyond the 8 x 8 pixels that they stand for
STRIDE = 8


def identity_init(channels: int, noise: float = 0.0) -> Callable:
    """Section 3's initialisation of a convolution between multiples of ``channels`` feature maps: the kernel's middle
    passes each input on to the outputs of the same of ``channels`` groups, times ``channels`` / outputs.

    noise: the standard deviation of all other weights, as a share of that factor. The paper wants it much smaller than
    1, and has none (equation 4) where both sides have ``channels`` maps.
    """

    def init(key, shape, dtype=jnp.float32):
        *window, inputs, outputs = shape
        same = (jnp.arange(inputs) * channels // inputs)[:, None] == (jnp.arange(outputs) * channels // outputs)[None]
        passes = jnp.zeros(shape, bool).at[window[0] // 2, window[1] // 2].set(same)
        return jnp.where(passes, 1, noise * jax.random.normal(key, shape, dtype)) * (channels / outputs)

    return init


class ContextModule(nn.Module):
    """Table 1: a map that keeps its size and its number of channels c, and sees ever more around each cell. 3 x 3
    convolutions with ``dilations`` and ReLU, the i-th to ``multiples[i]`` times c channels, then a 1 x 1 convolution.

    The map is padded once, with zeros, by all that the convolutions take away. At its initialisation with noise 0 the
    module is ``max(x, 0)``; inputs are meant to be positive, and what is negative gets no gradient. The maps between
    are smaller than padded and larger than the input: ``l1 ...``.
    """

    dilations: tuple[int, ...] = (1, 1, 2, 4, 8, 16, 1)
    multiples: tuple[int, ...] = (1, 1, 1, 1, 1, 1, 1)
    noise: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> tuple[Float[Array, "b h w c"], Features]:
        channels, maps = x.shape[-1], {}
        init = identity_init(channels, self.noise)
        margin = sum(self.dilations)
        x = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        for index, (dilation, multiple) in enumerate(zip(self.dilations, self.multiples, strict=True), start=1):
            x = nn.relu(Conv(multiple * channels, 3, dilation=dilation, kernel_init=init, name=f"conv{index}")(x))
            maps[f"l{index}"] = x
        x = Conv(channels, 1, kernel_init=init, name="final")(x)
        return x, {**maps, f"l{len(maps) + 1}": x}


CONTEXTS = {
    None: None,
    "basic": ContextModule(),
    "large": ContextModule(multiples=(2, 2, 4, 8, 16, 32, 32), noise=0.01),
}


class FrontEnd(nn.Module):
    """VGG's convolutions (D) without padding and with three pools; behind the missing fourth pool they are dilated."""

    widths: tuple[int, ...] = WIDTHS

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Features:
        layer, maps = 0, {}
        for stage, (width, windows) in enumerate(zip(self.widths, D, strict=True)):
            for window in windows:
                dilation = 2 if stage == 4 else 1
                x = nn.relu(Conv(width, window, dilation=dilation, name=f"features_{layer}")(x))
                layer += 2
            maps[f"c{stage}"] = x
            if stage < 3:
                x = ops.max_pool(x, window=2)
            layer += 1  # torchvision counts the pools that are left out, too
        return maps


class DilatedVGG(Segmenter):
    """The front end, whose dense layers are convolutions of ``hidden`` channels, and a context module or none. Features
    ``c0 ... c4``, ``fc7`` and ``front``, the front end's logits, lie at strides 1 to 8 in the mirrored image."""

    context: ContextModule | None = None
    widths: tuple[int, ...] = WIDTHS
    hidden: int = 4096

    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Segmented:
        """Logits enlarged by 8; where a side is no multiple of that, more of the mirrored image fills the last unit."""
        height, width = images.shape[1:3]
        beyond = [(MARGIN, MARGIN + -side % STRIDE) for side in (height, width)]
        logits, features = self.inner(jnp.pad(images, ((0, 0), *beyond, (0, 0)), mode="reflect"), train=train)
        size = (STRIDE * logits.shape[1], STRIDE * logits.shape[2])
        return ops.resize(logits, size=size)[:, :height, :width], features

    @nn.compact
    def inner(self, images: Float[Array, "b h w c"], *, train: bool = False):
        """The map itself, without any border: 66 x 66 logits of 900 x 900 pixels. Unit i stands for the pixels from
        186 + 8i to 194 + 8i; at least 380 pixels make one."""
        features = FrontEnd(self.widths, name="backbone")(images)
        x = features["c4"]
        for name, window, dilation in (("fc6", 7, 4), ("fc7", 1, 1)):
            x = nn.relu(Conv(self.hidden, window, dilation=dilation, name=name)(x))
            x = Dropout(0.5, self.axis_name, name=f"{name}_dropout")(x, train=train)
        features["fc7"] = x
        x = Conv(self.num_classes, 1, kernel_init=initializers.normal(0.001), name="final")(x)
        features["front"] = x
        if self.context is not None:
            x, _ = self.context(x)
        return x, features


class DilatedSmall(Segmenter):
    """3 x 3 convolutions with batch norm: two with stride 2, then one for each of ``dilations``; a 1 x 1 convolution to
    ``channels`` positive features, a context module, and logits from them. Features ``c2``, before the context
    module, and ``context``, both at stride 4."""

    context: ContextModule
    widths: tuple[int, ...]
    dilations: tuple[int, ...]
    channels: int

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Segmented:
        x = images
        strides = [2, 2] + [1] * len(self.dilations)
        for index, (width, step, gap) in enumerate(zip(self.widths, strides, (1, 1, *self.dilations), strict=True)):
            x = Conv(width, 3, strides=step, padding=gap, dilation=gap, use_bias=False, name=f"conv{index}")(x)
            x = nn.relu(BatchNorm(axis_name=self.axis_name, name=f"bn{index}")(x, train=train))
        before = nn.relu(Conv(self.channels, 1, name="reduce")(x))
        after, _ = self.context(before)
        logits = Conv(self.num_classes, 1, name="final")(after)
        return ops.resize(logits, size=images.shape[1:3]), {"c2": before, "context": after}


def from_vgg16(params: Variables) -> Variables:
    """The parameters of ``dilated_vgg16`` that those of ``vgg16`` hold: all but ``final`` and ``context``. The dense
    layers become the convolutions that give the same numbers on 7 x 7 cells."""
    fc6, fc7 = params["classifier_0"], params["classifier_3"]
    cells = fc6["kernel"].reshape(-1, 7, 7, fc6["kernel"].shape[1])  # the flattened map had its channels first
    return {
        "backbone": {name: layer for name, layer in params.items() if name.startswith("features_")},
        "fc6": {"kernel": jnp.transpose(cells, (1, 2, 0, 3)), "bias": fc6["bias"]},
        "fc7": {"kernel": fc7["kernel"][None, None], "bias": fc7["bias"]},
    }


@register(task="segmentation")
def dilated_vgg16(*, context: str | None = None, num_classes: int = 21, **options) -> DilatedVGG:
    """The front end: 134,346,581 parameters for 21 classes. context: ``"basic"`` adds 28,392, ``"large"`` 6,803,139.

    Raises: ValueError for another context.
    """
    if context not in CONTEXTS:
        raise ValueError(f"context={context!r} must be one of {list(CONTEXTS)}")
    return DilatedVGG(context=CONTEXTS[context], num_classes=num_classes, **options)


@register(task="segmentation")
def dilated_small(*, num_classes: int = 21, **options) -> DilatedSmall:
    """16 to 64 channels, and a context module of 32 channels that sees 19 x 19 of their cells."""
    context = ContextModule(dilations=(1, 1, 2, 4, 1), multiples=(1,) * 5)
    widths, dilations = (16, 32, 64, 64, 64), (1, 2, 4)
    return DilatedSmall(context, widths, dilations, channels=32, num_classes=num_classes, **options)
