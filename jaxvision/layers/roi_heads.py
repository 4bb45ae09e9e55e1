"""What is computed from the features of a region: its class and refined box (Fast R-CNN, arXiv:1504.08083), its mask
(Mask R-CNN, arXiv:1703.06870). The heads are networks only; sampling, losses and choice belong to the detector."""

import flax.linen as nn
import jax.numpy as jnp
from flax.linen import initializers

from jaxvision.layers.convolution import Conv, ConvTranspose, Dense, he_normal_fan_out
from jaxvision.layers.dropout import Dropout
from jaxvision.layers.norm import BatchNorm
from jaxvision.typing import Array, Float, Int


class BoxHead(nn.Module):
    """Two fully connected layers, then class logits (background first) and box offsets for each class; or four
    convolutions with ``norm`` and one fully connected layer, if there is a norm.

    pool_size: side of the RoI feature map it takes. The flatten is in (channel, row, column) order, so dense weights
    carry over from torch unchanged. In training the norm sees rows of padding as it sees regions.
    dropout: rate after each fully connected layer; axis_name: see ``layers.dropout``.
    """

    num_classes: int
    hidden: int = 1024
    pool_size: int = 7
    norm: BatchNorm | None = None
    dropout: float = 0.0
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, features: Float[Array, "n s s c"], *, train: bool = False
    ) -> tuple[Float[Array, "n classes_and_background"], Float[Array, "n classes_and_background 4"]]:
        x, dense = features, ("fc6", "fc7")
        if self.norm is not None:
            dense = ("fc_5",)
            for index in range(4):
                x = _conv_norm_relu(self, x, x.shape[-1], index, train=train)
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        for name in dense:
            x = Dropout(self.dropout, self.axis_name)(nn.relu(Dense(self.hidden, name=name)(x)), train=train)
        return class_and_box(self, x, self.num_classes)


def class_and_box(
    head: nn.Module, x: Float[Array, "n c"], num_classes: int
) -> tuple[Float[Array, "n classes_and_background"], Float[Array, "n classes_and_background 4"]]:
    """The two outputs of a box head, dense layers ``cls_score`` and ``bbox_pred`` of it: class logits (background
    first) and box offsets for each class."""
    outputs = num_classes + 1
    logits = Dense(outputs, kernel_init=initializers.normal(0.01), name="cls_score", parent=head)(x)
    offsets = Dense(4 * outputs, kernel_init=initializers.normal(0.001), name="bbox_pred", parent=head)(x)
    return logits, offsets.reshape(-1, outputs, 4)


class MaskHead(nn.Module):
    """Convolutions, a transposed one that doubles the map, and one mask a class, of which the asked one is computed.

    Class 0 is the background, whose mask nobody asks for: it is there because published weights have it.
    norm: follows each convolution, which then has no bias; none if None.
    """

    num_classes: int
    channels: int = 256
    num_convs: int = 4
    pool_size: int = 14
    norm: BatchNorm | None = None

    @property
    def mask_size(self) -> int:
        return 2 * self.pool_size

    @nn.compact
    def __call__(
        self, features: Float[Array, "n s s c"], classes: Int[Array, " n"], *, train: bool = False
    ) -> Float[Array, "n m m"]:
        """Mask logits of each region for its own class (background 0, label k as k + 1)."""
        x = features
        for index in range(self.num_convs):
            x = _conv_norm_relu(self, x, self.channels, index, train=train)
        x = nn.relu(ConvTranspose(self.channels, 2, strides=2, name="conv5_mask")(x))
        return ConvOfClass(self.num_classes + 1, name="mask_fcn_logits")(x, classes)


def _conv_norm_relu(head: nn.Module, x: Float[Array, "n h w c"], channels: int, index: int, *, train: bool):
    """A 3x3 convolution ``conv_<index>`` of the head, and a ``norm_<index>`` where it has norms."""
    plain = head.norm is None
    x = Conv(channels, 3, padding=1, use_bias=plain, name=f"conv_{index}", parent=head)(x)
    return nn.relu(x if plain else head.norm.clone(name=f"norm_{index}", parent=head)(x, train=train))


class ConvOfClass(nn.Module):
    """A 1x1 convolution with ``features`` outputs of which each image wants one: n products instead of n * features."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], wanted: Int[Array, " n"]) -> Float[Array, "n h w"]:
        kernel = self.param("kernel", he_normal_fan_out, (1, 1, x.shape[-1], self.features)).astype(x.dtype)
        bias = self.param("bias", initializers.zeros, (self.features,)).astype(x.dtype)
        return jnp.einsum("nhwc,cn->nhw", x, kernel[0, 0][:, wanted]) + bias[wanted][:, None, None]
