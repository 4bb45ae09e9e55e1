"""Segmentation as the classification of windows: each pixel is classified from the odd window around it.

The network of Ciresan et al., Deep Neural Networks Segment Neuronal Membranes in Electron Microscopy Images (NIPS
2012): convolutions and 2 x 2 max pools without padding, then dense layers; the image is mirrored at its border, so that
each pixel has a whole window. ``patchwise_small`` is a narrow one, trained end to end on all pixels of colour images.

Deviations: ReLU; no foveation or non-uniform sampling of windows, no calibration of the probabilities; one network, no
committee. Parameter counts are sums over the layers.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision import ops
from jaxvision.layers.convolution import Conv
from jaxvision.layers.segmenter import Segmenter
from jaxvision.registry import register
from jaxvision.typing import Array, Float, Segmented


class Stage(NamedTuple):
    """A convolution to ``features`` channels, and a 2 x 2 max pool."""

    features: int
    window: int


class PatchNet(Segmenter):
    """A classifier of windows with ``stages``, then a dense layer of ``hidden`` units over the map of ``last`` x
    ``last`` cells that they leave, then the logits.

    The same variables make two forms of it. ``pixel_by_pixel`` cuts out the window of each pixel and classifies it:
    what is meant. ``__call__`` computes the same logits convolutionally: neighbours' windows share nearly everything,
    and a network whose pools move by one pixel has the values of all of them. Where a pool halved the map, the later
    layers now find their cells twice as far apart, so their windows are dilated by as much; the dense layer becomes a
    dilated convolution. Features ``s1 ...``, the stages at full resolution, and ``hidden``.
    """

    stages: tuple[Stage, ...]
    last: int
    hidden: int

    @property
    def window(self) -> int:
        """The side of the window, in pixels."""
        side = self.last
        for stage in reversed(self.stages):
            side = 2 * side + stage.window - 1
        return side

    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Segmented:
        maps = self.network(self._mirrored(images), overlapping=True)
        return maps.pop("logits"), maps

    def pixel_by_pixel(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w k"]:
        """The logits of ``__call__``, each from its own window. Row by row, so that the windows of one row are all that
        is in memory. Differentiable."""
        windows = jnp.arange(images.shape[2])[:, None] + jnp.arange(self.window)[None, :]
        image, top = (part.ravel() for part in jnp.indices(images.shape[:2]))
        mirrored, module, variables = self._mirrored(images), self.clone(parent=None), self.variables

        def row(place):
            strip = jax.lax.dynamic_slice_in_dim(mirrored[place[0]], place[1], self.window)
            patches = jnp.moveaxis(strip[:, windows], 1, 0)  # [w, window, window, c]
            return module.apply(variables, patches, overlapping=False, method="network")["logits"][:, 0, 0]

        return jax.lax.map(row, (image, top)).reshape(*images.shape[:3], self.num_classes)

    @nn.compact
    def network(self, x: Float[Array, "b h w c"], *, overlapping: bool) -> dict[str, Float[Array, "b _ _ _"]]:
        """All maps by name, ``logits`` last. Windows [b, window, window, c] give logits [b, 1, 1, k]; with
        ``overlapping``, images [b, window + h - 1, window + w - 1, c] give logits [b, h, w, k]."""
        maps, apart = {}, 1  # how many pixels lie between neighbouring cells of a window's map
        for index, (features, window) in enumerate(self.stages, start=1):
            x = nn.relu(Conv(features, window, dilation=apart, name=f"conv{index}")(x))
            x = ops.max_pool(x, window=2, strides=1 if overlapping else 2, dilation=apart)
            apart *= 2 if overlapping else 1
            maps[f"s{index}"] = x
        x = maps["hidden"] = nn.relu(Conv(self.hidden, self.last, dilation=apart, name="fc1")(x))
        return {**maps, "logits": Conv(self.num_classes, 1, name="fc2")(x)}

    def _mirrored(self, images):
        if self.window % 2 == 0:
            raise ValueError(f"a window of {self.window} pixels has no pixel in its middle; its side must be odd")
        around = (self.window // 2, self.window // 2)
        return jnp.pad(images, ((0, 0), around, around, (0, 0)), mode="reflect")


@register(task="segmentation")
def patchwise_small(*, num_classes: int = 21, **options) -> PatchNet:
    """Windows of 63 pixels, four stages of 8 to 16 channels."""
    stages = (Stage(8, 4), Stage(12, 3), Stage(12, 3), Stage(16, 3))
    return PatchNet(stages, last=2, hidden=24, num_classes=num_classes, **options)
