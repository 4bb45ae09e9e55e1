"""What is computed from the features of a region: its class and refined box (Fast R-CNN, arXiv:1504.08083), its mask
(Mask R-CNN, arXiv:1703.06870). The heads are networks only; sampling, losses and choice belong to the detector."""

import flax.linen as nn
import jax.numpy as jnp
from flax.linen import initializers

from jaxvision.layers.convolution import Conv, ConvTranspose, Dense, he_normal_fan_out
from jaxvision.typing import Array, Float, Int


class BoxHead(nn.Module):
    """Two fully connected layers, then class logits (background first) and box offsets for each class.

    pool_size: side of the RoI feature map it takes. The flatten is in (channel, row, column) order, so dense weights
    carry over from torch unchanged.
    """

    num_classes: int
    hidden: int = 1024
    pool_size: int = 7

    @nn.compact
    def __call__(
        self, features: Float[Array, "n s s c"]
    ) -> tuple[Float[Array, "n classes_and_background"], Float[Array, "n classes_and_background 4"]]:
        x = features.transpose(0, 3, 1, 2).reshape(features.shape[0], -1)
        x = nn.relu(Dense(self.hidden, name="fc6")(x))
        x = nn.relu(Dense(self.hidden, name="fc7")(x))
        outputs = self.num_classes + 1
        logits = Dense(outputs, kernel_init=initializers.normal(0.01), name="cls_score")(x)
        offsets = Dense(4 * outputs, kernel_init=initializers.normal(0.001), name="bbox_pred")(x)
        return logits, offsets.reshape(-1, outputs, 4)


class MaskHead(nn.Module):
    """Convolutions, a transposed one that doubles the map, and one mask a class, of which the asked one is computed.

    Class 0 is the background, whose mask nobody asks for: it is there because published weights have it.
    """

    num_classes: int
    channels: int = 256
    num_convs: int = 4
    pool_size: int = 14

    @property
    def mask_size(self) -> int:
        return 2 * self.pool_size

    @nn.compact
    def __call__(self, features: Float[Array, "n s s c"], classes: Int[Array, " n"]) -> Float[Array, "n m m"]:
        """Mask logits of each region for its own class (background 0, label k as k + 1)."""
        x = features
        for index in range(self.num_convs):
            x = nn.relu(Conv(self.channels, 3, padding=1, name=f"conv_{index}")(x))
        x = nn.relu(ConvTranspose(self.channels, 2, strides=2, name="conv5_mask")(x))
        return ConvOfClass(self.num_classes + 1, name="mask_fcn_logits")(x, classes)


class ConvOfClass(nn.Module):
    """A 1x1 convolution with ``features`` outputs of which each image wants one: n products instead of n * features."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], wanted: Int[Array, " n"]) -> Float[Array, "n h w"]:
        kernel = self.param("kernel", he_normal_fan_out, (1, 1, x.shape[-1], self.features)).astype(x.dtype)
        bias = self.param("bias", initializers.zeros, (self.features,)).astype(x.dtype)
        return jnp.einsum("nhwc,cn->nhw", x, kernel[0, 0][:, wanted]) + bias[wanted][:, None, None]
