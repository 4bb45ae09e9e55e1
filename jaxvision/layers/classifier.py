"""What every classifier takes and gives."""

from typing import ClassVar

import flax.linen as nn


class Classifier(nn.Module, kw_only=True):
    """From images to logits and features: ``__call__(images, train=False)``. A family has its own network.

    num_classes: 0 leaves the head out, and the outputs are the pooled last map. axis_name: a ``pmap`` axis, for batch
    norm; every classifier takes one, also where nothing depends on the rest of the batch.
    feature_names: the features that stay the same for every input, finest first.
    """

    num_classes: int = 1000
    in_channels: int = 3
    axis_name: str | None = None

    feature_names: ClassVar[tuple[str, ...]] = ("c1", "c2", "c3", "c4", "c5")
