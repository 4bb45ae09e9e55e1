"""U-Net: Convolutional Networks for Biomedical Image Segmentation (Ronneberger, Fischer, Brox, arXiv:1505.04597),
figure 1.

Where the paper leaves things open, its authors' Caffe release decides: the order of a joined map (up-convolved first),
a ReLU also after up-convolutions, dropout at the end of the two coarsest levels of the contracting path, borders
mirrored without a second copy of the outermost pixel; names are its names too (``conv_d0a-b`` is ``conv_d0a_b``). As in
the figure every up-convolution halves the channels, where the release keeps 128 in the last. ``unet_padded`` and
``unet_small`` pad every convolution, and the latter has batch norm: neither is in the paper; nor is ``unet_encoder``, a
U of which any classifier is the left half. Initialisation: section 3, up-convolutions by the one cell that each of
their outputs reads. Parameter counts: computed from the figure's table of layers.
"""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from flax.linen import initializers

from jaxvision import ops
from jaxvision.layers.convolution import Conv, ConvTranspose
from jaxvision.layers.dropout import Dropout
from jaxvision.layers.norm import BatchNorm
from jaxvision.layers.segmenter import BehindStem, Segmenter, behind_stem
from jaxvision.registry import get_model, register
from jaxvision.typing import Array, Features, Float, Segmented

he_normal_fan_in = initializers.variance_scaling(2.0, "fan_in", "normal")
# Windows of 2 x 2 do not overlap: a quarter of what JAX counts as inputs reaches one output.
he_normal_of_one_cell = initializers.variance_scaling(8.0, "fan_in", "normal")


class UNet(Segmenter):
    """``widths``: channels of the levels, finest first; each has half the resolution of the one before.

    padding: "valid" convolutions lose ``margin`` pixels on each side, and ``__call__`` mirrors the image's border to
    that width; "same" ones are padded with zeros. Whole images may have any size: they are mirrored further at the
    right and the bottom, up to a size whose maps all have even sides, and the logits are cropped.
    batch_norm: between each 3x3 convolution, then without bias, and its ReLU.
    dropout: rate at the end of the contracting path's two coarsest levels.
    Features ``c0``, ``c1`` … (contracting path, before the pools) and … ``u1``, ``u0`` (expanding path), at strides 1,
    2, …, are those of the mirrored image.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    padding: Literal["valid", "same"] = "valid"
    batch_norm: bool = False
    dropout: float = 0.5

    @property
    def stride(self) -> int:
        """Of the coarsest level: 16 with five levels. Tiles whose offsets are multiples of it see the same pools."""
        return 2 ** (len(self.widths) - 1)

    @property
    def margin(self) -> int:
        """How many pixels of ``inner``'s images on each side have no logits: 92 with five levels, 0 if padded."""
        return 6 * self.stride - 4 if self.padding == "valid" else 0

    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Segmented:
        height, width = images.shape[1:3]
        edges = ((0, 0), self._edges(height), self._edges(width), (0, 0))
        logits, features = self.inner(jnp.pad(images, edges, mode="reflect"), train=train)
        return logits[:, :height, :width], features

    @nn.compact
    def inner(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Float[Array, "b oh ow k"], Features]:
        """The network itself, figure 1: logits of the images without ``margin`` pixels on each side (572 to 388 pixels
        with five levels), and features.

        Raises: ValueError if a map would have an odd side: with five levels those of images are 16 n + 12 pixels, at
        least 188, or multiples of 16 if padded.
        """
        for side in images.shape[1:3]:
            out = side - 2 * self.margin
            if out <= 0 or (out - self._least_output()) % self.stride:
                first = self._least_output() + 2 * self.margin
                raise ValueError(f"sides of {images.shape[1:3]} must be {first or self.stride} + n * {self.stride}")
        features, x = {}, images
        last = len(self.widths) - 1
        for level, width in enumerate(self.widths):
            if level > 0:
                x = ops.max_pool(x, window=2)
            x = self._convolved(x, width, f"d{level}a_b", train)
            x = self._convolved(x, width, f"d{level}b_c", train)
            if level >= last - 1:
                x = Dropout(self.dropout, self.axis_name, name=f"dropout_d{level}c")(x, train=train)
            features[f"c{level}"] = x
        below = f"d{last}c"
        for level in reversed(range(last)):
            width, name = self.widths[level], f"upconv_{below}_u{level}a"
            x = nn.relu(ConvTranspose(width, 2, strides=2, kernel_init=he_normal_of_one_cell, name=name)(x))
            x = jnp.concatenate([x, _centre(features[f"c{level}"], x.shape[1:3])], axis=-1)
            x = self._convolved(x, width, f"u{level}b_c", train)
            x = self._convolved(x, width, f"u{level}c_d", train)
            features[f"u{level}"], below = x, f"u{level}d"
        return Conv(self.num_classes, 1, kernel_init=he_normal_fan_in, name="conv_u0d_score")(x), features

    @nn.nowrap
    def _least_output(self) -> int:
        """The logits' sides are this and a multiple of the stride more."""
        return 4 if self.padding == "valid" else 0

    @nn.nowrap
    def _edges(self, side: int) -> tuple[int, int]:
        """How many pixels to add before and after a side of the image."""
        least = self._least_output()
        steps = max(-(-(side - least) // self.stride), 0)
        return self.margin, self.margin + least + steps * self.stride - side

    @nn.nowrap
    def _convolved(self, x, width, name, train):
        return _convolved(
            self, x, width, name, padding=int(self.padding == "same"), batch_norm=self.batch_norm, train=train
        )


class EncoderUNet(Segmenter):
    """A U-Net whose contracting path is a classifier, ``backbone``: all of its ``feature_names``.

    From the coarsest map on, each step enlarges by bilinear resizing to the next finer map's exact size, joins that map
    and convolves twice (3x3, padded, batch norm); the last one reaches the images' size, and joins nothing. Maps count
    as spanning the image, whatever the backbone's padding.
    width: channels of the last step; each coarser one has twice as many as the next.
    Features: the backbone's, and ``u0`` (the last step), ``u1``, ….
    """

    backbone: nn.Module
    width: int = 16

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Segmented:
        features = dict(self.backbone(images, train=train)[1])
        *finer, x = (features[name] for name in self.backbone.feature_names)
        for step, skip in reversed(list(enumerate([images, *finer]))):
            x = ops.resize(x, size=skip.shape[1:3])
            if step > 0:
                x = jnp.concatenate([x, skip], axis=-1)
            for name in (f"u{step}b_c", f"u{step}c_d"):
                x = _convolved(self, x, self.width * 2**step, name, padding=1, batch_norm=True, train=train)
            features[f"u{step}"] = x
        return Conv(self.num_classes, 1, kernel_init=he_normal_fan_in, name="conv_u0d_score")(x), features


def _convolved(module: Segmenter, x, width, name, *, padding, batch_norm, train):
    """3x3 convolution, batch norm if wanted, ReLU; as ``conv_<name>`` and ``norm_<name>`` of ``module``."""
    conv = Conv(
        width,
        3,
        padding=padding,
        use_bias=not batch_norm,
        kernel_init=he_normal_fan_in,
        name=f"conv_{name}",
        parent=module,
    )
    x = conv(x)
    if batch_norm:
        x = BatchNorm(axis_name=module.axis_name, name=f"norm_{name}", parent=module)(x, train=train)
    return nn.relu(x)


def _centre(x, size):
    top, left = ((a - b) // 2 for a, b in zip(x.shape[1:3], size))
    return x[:, top : top + size[0], left : left + size[1]]


@register(task="segmentation")
def unet(*, num_classes: int = 2, **options) -> UNet:
    """The paper's network, without padding: 31,030,658 parameters from one channel to two classes, 31,031,810 from
    three."""
    return UNet(num_classes=num_classes, **options)


@register(task="segmentation")
def unet_padded(*, num_classes: int = 2, **options) -> UNet:
    """The same layers, convolutions padded with zeros: 107e9 multiply-adds for an image of 384 pixels, where
    the paper's network, with what it mirrors, takes 151e9."""
    return UNet(num_classes=num_classes, padding="same", **options)


@register(task="segmentation")
def unet_small(*, num_classes: int = 21, **options) -> BehindStem:
    """A U-Net for images of 128 pixels on CPUs: three levels, padded, with batch norm, at a quarter of the images'
    size. There 32 channels are affordable; with 8 at the whole size it found digits, but told none apart in 1,200
    steps."""
    defaults = {"widths": (32, 64, 128), "padding": "same", "batch_norm": True, "dropout": 0.0}
    return behind_stem(UNet(num_classes=num_classes, **(defaults | options)), (16, 32))


@register(task="segmentation")
def unet_encoder(
    backbone: str = "squeezenet1_1",
    *,
    num_classes: int = 21,
    in_channels: int = 3,
    axis_name: str | None = None,
    **options,
) -> EncoderUNet:
    """A U-Net over any registered classifier, by name; its published weights, ``load_weights(backbone, …,
    num_classes=0)``, are ``variables["params"]["backbone"]`` (and so for batch statistics)."""
    network = get_model(backbone, num_classes=0, in_channels=in_channels, axis_name=axis_name)
    return EncoderUNet(network, num_classes=num_classes, in_channels=in_channels, axis_name=axis_name, **options)
