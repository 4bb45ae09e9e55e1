"""MultiBox: Scalable Object Detection using Deep Neural Networks (Erhan et al., arXiv:1312.2249), section 3.

One network gives, for the whole image at once, K boxes and K confidences that there is an object, whatever its class.
Boxes are priors plus residuals, in shares of the image's sides; priors are the k-means centres of the training boxes
(``ops.anchors.kmeans``). Each object is assigned to one box, so that the sum of the costs is the smallest.

Variant: prior matching, which assigns objects to priors and is what the paper found to train faster;
``prior_matching=False`` assigns them to the predictions by the loss itself, equation 3. Deviations: the loss is a mean
over images; the paper does not say how the priors lie for images of ImageNet, and here ``multibox_alexnet`` starts from
squares that overlap by half, until it is given priors of its own data. The authors' later release is another network.
Parameter count: AlexNet's layers without its classifier's last, and 5 K outputs of 4,096 inputs.
"""

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers

from jaxvision import losses, ops
from jaxvision.layers.convolution import Conv, Dense
from jaxvision.layers.dropout import Dropout
from jaxvision.layers.one_stage import OneStage
from jaxvision.models.resnet import ResNet
from jaxvision.ops import boxes, matching
from jaxvision.registry import get_model, register
from jaxvision.typing import Array, Bool, Detections, Features, Float, Int, Targets

Priors = tuple[tuple[float, float, float, float], ...]

# python experiments/multibox_priors.py digit_scenes_multibox
# fmt: off
DIGIT_SCENES: Priors = (
    (0.098, 0.400, 0.221, 0.583), (0.108, 0.726, 0.234, 0.913), (0.109, 0.069, 0.228, 0.250),
    (0.111, 0.236, 0.233, 0.420), (0.114, 0.561, 0.246, 0.758), (0.138, 0.120, 0.327, 0.402),
    (0.143, 0.370, 0.332, 0.655), (0.145, 0.454, 0.362, 0.778), (0.148, 0.269, 0.332, 0.546),
    (0.162, 0.588, 0.354, 0.873), (0.181, 0.167, 0.411, 0.508), (0.223, 0.075, 0.349, 0.268),
    (0.227, 0.725, 0.354, 0.917), (0.231, 0.337, 0.454, 0.673), (0.235, 0.500, 0.454, 0.827),
    (0.238, 0.082, 0.454, 0.408), (0.248, 0.606, 0.461, 0.925), (0.261, 0.342, 0.391, 0.543),
    (0.264, 0.485, 0.393, 0.681), (0.284, 0.218, 0.413, 0.415), (0.292, 0.230, 0.507, 0.560),
    (0.330, 0.464, 0.530, 0.762), (0.338, 0.082, 0.472, 0.286), (0.341, 0.613, 0.463, 0.795),
    (0.343, 0.115, 0.566, 0.445), (0.347, 0.739, 0.474, 0.929), (0.349, 0.346, 0.568, 0.675),
    (0.358, 0.568, 0.574, 0.895), (0.381, 0.380, 0.507, 0.570), (0.407, 0.235, 0.628, 0.568),
    (0.415, 0.454, 0.643, 0.793), (0.417, 0.245, 0.544, 0.441), (0.438, 0.089, 0.578, 0.301),
    (0.441, 0.699, 0.589, 0.922), (0.462, 0.124, 0.660, 0.427), (0.464, 0.461, 0.592, 0.658),
    (0.467, 0.577, 0.683, 0.902), (0.473, 0.566, 0.613, 0.774), (0.478, 0.341, 0.688, 0.658),
    (0.503, 0.213, 0.727, 0.547), (0.536, 0.454, 0.750, 0.774), (0.548, 0.075, 0.685, 0.282),
    (0.556, 0.318, 0.675, 0.501), (0.560, 0.143, 0.745, 0.425), (0.560, 0.743, 0.691, 0.943),
    (0.582, 0.630, 0.713, 0.827), (0.584, 0.574, 0.806, 0.907), (0.598, 0.258, 0.819, 0.590),
    (0.618, 0.354, 0.849, 0.693), (0.618, 0.422, 0.746, 0.618), (0.627, 0.098, 0.858, 0.437),
    (0.649, 0.463, 0.866, 0.787), (0.657, 0.089, 0.797, 0.299), (0.657, 0.543, 0.785, 0.737),
    (0.664, 0.721, 0.803, 0.932), (0.675, 0.231, 0.829, 0.462), (0.697, 0.599, 0.879, 0.871),
    (0.701, 0.315, 0.868, 0.568), (0.761, 0.170, 0.897, 0.373), (0.761, 0.435, 0.893, 0.634),
    (0.768, 0.061, 0.895, 0.248), (0.782, 0.726, 0.907, 0.915), (0.787, 0.568, 0.908, 0.751),
    (0.795, 0.285, 0.914, 0.467),
)
# fmt: on


class MultiBox(OneStage):
    """A class-agnostic detector (all labels are 0) for square images of ``image_size`` pixels.

    backbone: a classifier, of which the last map is used. reduced: channels that a 1x1 convolution leaves of it; 0
    leaves it as it is. priors: (left, top, right, bottom) in shares of the image's sides. hidden: widths of the fully
    connected layers before the last. alpha: weight of the boxes in the loss. The loss is equation 3, a sum over boxes
    and a mean over images, and does not look at labels.
    axis_name: a ``pmap`` axis, for dropout and losses.
    """

    backbone: nn.Module
    priors: Priors
    reduced: int = 0
    hidden: tuple[int, ...] = (4096, 4096)
    image_size: int = 224
    dropout: float = 0.5
    alpha: float = 0.3
    prior_matching: bool = True
    score_threshold: float = 0.0
    nms_threshold: float = 0.5
    max_detections: int = 100
    min_size: float = 1e-2
    axis_name: str | None = None

    class_agnostic: ClassVar[bool] = True  # evaluation then leaves the classes of the objects aside

    @property
    def in_channels(self) -> int:
        return self.backbone.in_channels

    @property
    def init_size(self) -> int:
        return self.image_size

    def _losses(self, raw, targets: Targets) -> dict[str, Float[Array, ""]]:
        """The terms of equation 3."""
        found, logits = raw
        truth = targets.boxes / self.image_size
        match = jax.vmap(self._match)(found, logits, truth, targets.valid)
        terms = jax.vmap(equation3)(found, logits, truth, match)
        every = jnp.ones(len(found))
        mean = {name: losses.weighted_mean(term, every, axis_name=self.axis_name) for name, term in terms.items()}
        mean["loss_box"] *= self.alpha
        return mean

    def _detections(self, said, image_sizes: Float[Array, "b 2"]) -> Detections:
        found, logits = said
        return jax.vmap(self._choose)(found, jax.nn.sigmoid(logits), image_sizes)

    def features(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Features:
        """The backbone's maps by name.

        Raises: ValueError for images of another size than ``image_size``, as all methods do.
        """
        if images.shape[1:3] != (self.image_size, self.image_size):
            raise ValueError(
                f"the fully connected layers take images of {self.image_size} x {self.image_size} pixels only, not "
                f"{images.shape[1]} x {images.shape[2]}: resize and pad them, or build the model with image_size=..."
            )
        return self.backbone(images, train=train)[1]

    def raw(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Float[Array, "b k 4"], Float[Array, "b k"]]:
        """The K boxes in shares of the image's sides, and the logits of their confidences, in float32 at least."""
        return self._network(images, train=train)[0]

    def _network(self, images: Float[Array, "b h w c"], *, train: bool):
        """What ``raw`` gives, and the features."""
        features = self.features(images, train=train)
        return self._head(features, train=train), features

    @nn.compact
    def _head(self, features: Features, *, train: bool) -> tuple[Float[Array, "b k 4"], Float[Array, "b k"]]:
        x = features[self.backbone.feature_names[-1]]
        if self.reduced:
            x = nn.relu(Conv(self.reduced, 1, name="reduced")(x))
        x = jnp.transpose(x, (0, 3, 1, 2)).reshape(len(x), -1)
        for number, width in enumerate(self.hidden, start=1):
            x = nn.relu(Dense(width, kernel_init=initializers.he_normal(), name=f"fc{number}")(x))
            x = Dropout(self.dropout, self.axis_name)(x, train=train)
        # At the start the boxes are nearly the priors: residuals are a few hundredths of the image's side.
        residuals = Dense(4 * len(self.priors), kernel_init=initializers.normal(1e-3), name="residuals")(x)
        one_object = initializers.constant(-math.log(max(len(self.priors) - 1, 1)))  # probabilities that sum to 1
        init = dict(kernel_init=initializers.normal(0.01), bias_init=one_object)
        logits = Dense(len(self.priors), **init, name="confidences")(x)
        precise = jnp.promote_types(x.dtype, jnp.float32)
        residuals = residuals.astype(precise).reshape(len(x), -1, 4)
        return jnp.asarray(self.priors, precise)[None] + residuals, logits.astype(precise)

    def _match(self, found, logits, truth, valid):
        if self.prior_matching:
            return assign(jnp.asarray(self.priors, truth.dtype), jnp.zeros_like(logits), truth, valid, alpha=self.alpha)
        return assign(found, logits, truth, valid, alpha=self.alpha)

    def _choose(self, found, scores, image_size) -> Detections:
        """One image's detections: the most confident boxes after NMS."""
        score, box, label = ops.best_scores(scores[:, None], threshold=self.score_threshold, count=len(scores))
        return ops.select(
            boxes.clip(self.image_size * found[box], image_size),
            score,
            label,
            iou_threshold=self.nms_threshold,
            max_detections=self.max_detections,
            min_size=self.min_size,
        )


def assign(
    found: Float[Array, "k 4"],
    logits: Float[Array, " k"],
    truth: Float[Array, "g 4"],
    valid: Bool[Array, " g"],
    *,
    alpha: float,
) -> Int[Array, " g"]:
    """The box that each object is assigned to: no box twice, and ``equation3`` as small as it can be; -1 for invalid
    rows, and where there are more objects than boxes.

    With equal logits the boxes' places alone decide. Nothing has a gradient.
    """
    squares = jnp.sum((truth[:, None] - found[None]) ** 2, axis=-1)
    # What the loss is with the pair less what it is without: -log c + log(1 - c) is -logit.
    return matching.minimum_cost_match(alpha / 2 * squares - logits[None], valid)


def equation3(
    found: Float[Array, "k 4"], logits: Float[Array, " k"], truth: Float[Array, "g 4"], match: Int[Array, " g"]
) -> dict[str, Float[Array, ""]]:
    """The two parts of the loss of one image. ``loss_box``: half the squared distance between each object and its box,
    without alpha; ``loss_object``: -log of the confidences of these boxes, and of 1 - the others'."""
    assigned = jax.nn.one_hot(match, len(found), dtype=found.dtype)  # a row of zeros for -1
    squares = jnp.sum((assigned @ found - truth) ** 2, axis=-1)
    return {
        "loss_box": jnp.sum(jnp.where(match >= 0, squares, 0)) / 2,
        "loss_object": jnp.sum(losses.binary_cross_entropy(logits, jnp.sum(assigned, axis=0))),
    }


def overlapping_squares(*counts: int) -> Priors:
    """For each n of ``counts`` n x n squares of side 2 / (n + 1) that cover the image and overlap by half."""
    return tuple(
        (column / (n + 1), row / (n + 1), (column + 2) / (n + 1), (row + 2) / (n + 1))
        for n in counts
        for row in range(n)
        for column in range(n)
    )


@register(task="detection")
def multibox_alexnet(
    *,
    backbone: str = "alexnet_2012",
    priors: Priors | None = None,
    num_classes: int = 1,
    in_channels: int = 3,
    axis_name: str | None = None,
    **options,
) -> MultiBox:
    """The paper's network with 100 boxes: 58,916,724 parameters. backbone: any registered classifier, by name.
    num_classes: is taken as every detector takes it; whatever it is, boxes have no class."""
    network = get_model(backbone, num_classes=0, in_channels=in_channels, axis_name=axis_name)
    return MultiBox(network, priors or overlapping_squares(1, 3, 4, 5, 7), axis_name=axis_name, **options)


@register(task="detection")
def multibox_small(
    *,
    priors: Priors | None = None,
    num_classes: int = 1,
    in_channels: int = 3,
    axis_name: str | None = None,
    **options,
) -> MultiBox:
    """A MultiBox that trains from scratch on two CPU cores in minutes, on 128-pixel images; the priors are those of
    digit_scenes. Boxes and confidences are one linear layer on a narrow map of 8 x 8 cells: with dense layers between
    them the network learns several times slower."""
    network = ResNet((1, 1, 1), "basic", num_classes=0, in_channels=in_channels, width=32, axis_name=axis_name)
    defaults = dict(reduced=16, hidden=(), dropout=0.0, image_size=128, alpha=20.0, max_detections=10)
    return MultiBox(network, priors or DIGIT_SCENES, axis_name=axis_name, **(defaults | options))
