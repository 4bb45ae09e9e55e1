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

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers

from jaxvision import losses, ops
from jaxvision.layers.convolution import Dense
from jaxvision.layers.dropout import Dropout
from jaxvision.layers.padding import sizes_or_whole
from jaxvision.models.resnet import ResNet
from jaxvision.ops import boxes, matching
from jaxvision.registry import get_model, register
from jaxvision.typing import Array, Bool, Detections, Float, Int, Targets

Features = dict[str, Float[Array, "b _ _ _"]]
Priors = tuple[tuple[float, float, float, float], ...]


class MultiBox(nn.Module):
    """A class-agnostic detector (all labels are 0) for square images of ``image_size`` pixels.

    backbone: a classifier, of which the last map is used. priors: (left, top, right, bottom) in shares of the image's
    sides. hidden: widths of the fully connected layers. alpha: weight of the boxes in the loss.
    axis_name: a ``pmap`` axis, for dropout and losses.
    """

    backbone: nn.Module
    priors: Priors
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

    def __call__(
        self,
        images: Float[Array, "b h w c"],
        image_sizes: Float[Array, "b 2"] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Detections, Features]:
        """Detections and the backbone's maps. ``image_sizes`` [b, 2]: the true (height, width) inside the padding, the
        whole input if None."""
        features = self.features(images, train=train)
        found, logits = self._head(features, train=train)
        return jax.vmap(self._choose)(found, jax.nn.sigmoid(logits), sizes_or_whole(image_sizes, images)), features

    def detect(self, images: Float[Array, "b h w c"], image_sizes: Float[Array, "b 2"] | None = None) -> Detections:
        """The detections alone, all of label 0. Differentiable along the choices that NMS made."""
        return self(images, image_sizes)[0]

    def loss(
        self,
        images: Float[Array, "b h w c"],
        targets: Targets,
        image_sizes: Float[Array, "b 2"] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Equation 3, a sum over boxes and a mean over images, and its terms by name. With ``train``, dropout needs
        ``rngs={"sample": key}``; images without objects teach that there is none. Labels are not looked at."""
        found, logits = self.raw(images, train=train)
        truth = targets.boxes / self.image_size
        match = jax.vmap(self._match)(found, logits, truth, targets.valid)
        terms = jax.vmap(equation3)(found, logits, truth, match)
        every = jnp.ones(len(images))
        mean = {name: losses.weighted_mean(term, every, axis_name=self.axis_name) for name, term in terms.items()}
        mean["loss_box"] *= self.alpha
        total = sum(mean.values())
        return total, {"loss": total, **mean}

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
        return self._head(self.features(images, train=train), train=train)

    @nn.compact
    def _head(self, features: Features, *, train: bool) -> tuple[Float[Array, "b k 4"], Float[Array, "b k"]]:
        x = features[self.backbone.feature_names[-1]]
        x = jnp.transpose(x, (0, 3, 1, 2)).reshape(len(x), -1)
        for number, width in enumerate(self.hidden, start=1):
            x = nn.relu(Dense(width, kernel_init=initializers.he_normal(), name=f"fc{number}")(x))
            x = Dropout(self.dropout, self.axis_name)(x, train=train)
        small = initializers.normal(0.01)
        residuals = Dense(4 * len(self.priors), kernel_init=small, name="residuals")(x)
        logits = Dense(len(self.priors), kernel_init=small, name="confidences")(x)
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
    """A MultiBox that trains from scratch on two CPU cores in minutes, on 128-pixel images."""
    network = ResNet((1, 1, 1, 1), "basic", num_classes=0, in_channels=in_channels, width=32, axis_name=axis_name)
    defaults = dict(hidden=(512,), image_size=128, alpha=100.0, max_detections=10)
    return MultiBox(network, priors or overlapping_squares(4, 6), axis_name=axis_name, **(defaults | options))
