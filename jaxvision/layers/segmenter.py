"""What every segmenter takes and gives."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision.layers.padding import sizes_or_whole
from jaxvision.typing import Array, Float, Segmentation


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


def segmentation(probabilities: Float[Array, "b h w k"], image_sizes: Float[Array, "b 2"]) -> Segmentation:
    """The most probable classes inside images of these (height, width)."""
    rows, columns = (
        jnp.arange(side)[None] < image_sizes[:, axis, None] for axis, side in enumerate(probabilities.shape[1:3])
    )
    valid = rows[:, :, None] & columns[:, None, :]
    labels = jnp.where(valid, jnp.argmax(probabilities, axis=-1), -1)
    return Segmentation(labels, jnp.where(valid[..., None], probabilities, 0), valid)
