"""What the detectors of one stage do around their networks."""

import flax.linen as nn

from jaxvision.layers.padding import at_least_one, sizes_or_whole
from jaxvision.typing import Array, Detections, Features, Float, Targets


class OneStage(nn.Module):
    """A detector whose network says at once what is where, without proposing regions first.

    A family has its own network, and its own way from what that says to detections and to losses:
    ``features(images, train=…)``: the maps by name; ``raw(images, train=…)``: what the network says, in arrays of one
    batch; ``_network(images, train=…)``: both, what it says and the maps; ``_detections(said, image_sizes)``;
    ``_losses(raw, targets)``: the terms of the loss by name, of targets with a row at least.
    """

    def __call__(
        self,
        images: Float[Array, "b h w c"],
        image_sizes: Float[Array, "b 2"] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Detections, Features]:
        """Detections and the features. ``image_sizes`` [b, 2]: the true (height, width) inside the padding, the whole
        input if None."""
        said, features = self._network(images, train=train)
        return self._detections(said, sizes_or_whole(image_sizes, images)), features

    def detect(self, images: Float[Array, "b h w c"], image_sizes: Float[Array, "b 2"] | None = None) -> Detections:
        """The detections alone. Differentiable: boxes and scores have gradients with respect to images and parameters,
        along the choices that top-k and NMS made."""
        return self(images, image_sizes)[0]

    def loss(
        self,
        images: Float[Array, "b h w c"],
        targets: Targets,
        image_sizes: Float[Array, "b 2"] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The sum of the family's losses, and each of them by name.

        ``train`` decides about batch statistics and dropout only, so the loss of validation data is the same function;
        dropout needs ``rngs={"sample": key}``. Images without objects are negative examples. ``image_sizes`` change
        nothing: padding is background.
        """
        terms = self._losses(self.raw(images, train=train), at_least_one(targets))
        total = sum(terms.values())
        return total, {"loss": total, **terms}
