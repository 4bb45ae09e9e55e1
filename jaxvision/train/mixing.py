"""Mixup and cutmix: pure functions of a batch and its soft labels, to be called inside the loss.

The partner of row 2i is row 2i + 1 and the other way round, and the share and the window are drawn once a batch. So
nothing depends on which device holds which rows, if each holds whole pairs and all of them are given the same key; and
rows of a shuffled batch are random partners.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxvision.typing import Array, Float, Key

__all__ = ["cutmix", "mixup"]


def mixup(
    key: Key[Array, ""], images: Float[Array, "b h w c"], labels: Float[Array, "b k"], *, alpha: float
) -> tuple[Float[Array, "b h w c"], Float[Array, "b k"]]:
    """Every image and label faded into its partner's: ``r x + (1 - r) x'`` with r from Beta(alpha, alpha) (Zhang et
    al., arXiv:1710.09412, equation 1).

    Gradients flow to images and labels.
    Raises: ValueError if alpha is not positive or the number of rows is odd.
    """
    _check(images, alpha)
    share = _beta(key, alpha)

    def fade(rows: Array) -> jax.Array:
        own = share.astype(rows.dtype)
        return own * rows + (1 - own) * _partners(rows)

    return fade(images), fade(labels)


def cutmix(
    key: Key[Array, ""], images: Float[Array, "b h w c"], labels: Float[Array, "b k"], *, alpha: float
) -> tuple[Float[Array, "b h w c"], Float[Array, "b k"]]:
    """Every image with one window of its partner's pasted in at the same place, the labels mixed by area (Yun et al.,
    arXiv:1905.04899, section 3.1).

    The window has the image's aspect and 1 - r of its area, with r from Beta(alpha, alpha); its centre is uniform over
    the pixels, and what leaves the image is cut off, which the labels take into account.
    Gradients flow to images and labels.
    Raises: ValueError if alpha is not positive or the number of rows is odd.
    """
    _check(images, alpha)
    share_key, row_key, column_key = jax.random.split(key, 3)
    side = jnp.sqrt(1 - _beta(share_key, alpha))

    def inside(key: Array, length: int) -> jax.Array:
        """Which pixels of an axis the window covers."""
        centre = jax.random.randint(key, (), 0, length)
        half = (side * length / 2).astype(jnp.int32)
        pixels = jnp.arange(length)
        return (pixels >= centre - half) & (pixels < centre + half)

    height, width = images.shape[1:3]
    window = inside(row_key, height)[:, None] & inside(column_key, width)[None, :]
    own = (1 - jnp.mean(window, dtype=jnp.float32)).astype(labels.dtype)
    return (
        jnp.where(window[None, :, :, None], _partners(images), images),
        own * labels + (1 - own) * _partners(labels),
    )


def _beta(key: Array, alpha: float) -> jax.Array:
    if alpha == 1:
        return jax.random.uniform(key, dtype=jnp.float32)  # the same, and compiled in no time
    return jax.random.beta(key, alpha, alpha, dtype=jnp.float32)


def _partners(rows: Array) -> jax.Array:
    pairs = jnp.reshape(rows, (rows.shape[0] // 2, 2, *rows.shape[1:]))
    return jnp.reshape(lax.rev(pairs, (1,)), rows.shape)


def _check(images: Array, alpha: float) -> None:
    if alpha <= 0:
        raise ValueError(f"alpha must be positive, not {alpha}; leave the mixing out instead")
    if images.shape[0] % 2:
        raise ValueError(
            f"{images.shape[0]} rows do not make pairs: choose a batch size that gives each device, and each part of "
            "an accumulated batch, an even number"
        )
