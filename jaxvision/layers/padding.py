"""What detectors and segmenters take their padded images and targets to be."""

import jax
import jax.numpy as jnp

from jaxvision.typing import Array, Float, Targets


def sizes_or_whole(image_sizes: Float[Array, "b 2"] | None, images: Float[Array, "b h w c"]) -> Float[Array, "b 2"]:
    """The true (height, width) of the images inside their padding: the whole input where none are given."""
    if image_sizes is not None:
        return image_sizes
    return jnp.tile(jnp.asarray(images.shape[1:3], jnp.float32)[None], (images.shape[0], 1))


def at_least_one(targets: Targets) -> Targets:
    """With a row of padding where there is no row at all, so that there is something to gather from."""
    if targets.boxes.shape[1] > 0:
        return targets

    def pad(leaf):
        return jnp.pad(leaf, [(0, 0), (0, 1)] + [(0, 0)] * (leaf.ndim - 2))

    return jax.tree.map(pad, targets)
