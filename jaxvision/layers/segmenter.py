"""What every segmenter takes and gives."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision import ops
from jaxvision.layers.convolution import Conv
from jaxvision.layers.norm import BatchNorm
from jaxvision.layers.padding import sizes_or_whole
from jaxvision.typing import Array, Float, Segmentation, Segmented


class Segmenter(nn.Module, kw_only=True):
    """From images to logits a pixel: ``__call__(images, train=False)`` gives logits [b, h, w, k] at the images' size,
    and features. A family has its own network; dropout (``layers.dropout``), where it has any, needs
    ``rngs={"sample": key}`` in training.

    features: maps by name; ``aux``, where a second head reads an earlier map to train it, has logits [b, h, w, k] too.
    axis_name: a ``pmap`` axis, for batch norm.
    """

    num_classes: int
    in_channels: int = 3
    axis_name: str | None = None

    def segment(self, images: Float[Array, "b h w c"], image_sizes: Float[Array, "b 2"] | None = None) -> Segmentation:
        """The most probable class of each pixel, and the probabilities (softmax). ``image_sizes`` [b, 2]: the true
        (height, width) inside the padding, the whole input if None. Differentiable: probabilities have gradients with
        respect to images and parameters."""
        return segmentation(jax.nn.softmax(self(images)[0]), sizes_or_whole(image_sizes, images))


class BehindStem(Segmenter):
    """``network`` on smaller and richer maps than the images, for CPUs: first come 3x3 convolutions of ``widths``
    channels with stride 2, batch norm and ReLU, and last its logits are enlarged (bilinear) to the images' size. Maps
    count as spanning the image. Features: the stem's, ``s1 ...``, and the network's."""

    network: Segmenter
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Segmented:
        maps, x = {}, images
        for index, width in enumerate(self.widths, start=1):
            x = Conv(width, 3, strides=2, padding=1, use_bias=False, name=f"stem{index}")(x)
            x = nn.relu(BatchNorm(axis_name=self.axis_name, name=f"stem{index}_bn")(x, train=train))
            maps[f"s{index}"] = x
        logits, features = self.network(x, train=train)
        return ops.resize(logits, size=images.shape[1:3]), {**maps, **features}


def behind_stem(network: Segmenter, widths: tuple[int, ...]) -> BehindStem:
    """``BehindStem`` for images as ``network`` would take them."""
    shared = dict(num_classes=network.num_classes, in_channels=network.in_channels, axis_name=network.axis_name)
    return BehindStem(network.clone(in_channels=widths[-1], name="network"), widths, **shared)


def segmentation(probabilities: Float[Array, "b h w k"], image_sizes: Float[Array, "b 2"]) -> Segmentation:
    """The most probable classes inside images of these (height, width)."""
    rows, columns = (
        jnp.arange(side)[None] < image_sizes[:, axis, None] for axis, side in enumerate(probabilities.shape[1:3])
    )
    valid = rows[:, :, None] & columns[:, None, :]
    labels = jnp.where(valid, jnp.argmax(probabilities, axis=-1), -1)
    return Segmentation(labels, jnp.where(valid[..., None], probabilities, 0), valid)
