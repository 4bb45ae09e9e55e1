"""SSD: Single Shot MultiBox Detector (Liu et al., arXiv:1512.02325), figure 2, over VGG-16.

``ssd300_vgg16`` is torchvision's, with its scales; ``ssd512_vgg16`` has the paper's seven maps and 24,564 default
boxes, where torchvision's own high resolution has other maps. Deviations from the paper, which are torchvision's: the
sides of default boxes are cut to the image's, negatives are not refused for their overlap, and of two objects that
share their best default box the last has it. Images are resized to the network's own size whatever their aspect,
without padding. Parameter counts: torchvision 0.29; SSD512's is the sum of its layers.
"""

from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers
from jax import lax

from jaxvision import losses, ops
from jaxvision.layers.convolution import Conv
from jaxvision.layers.one_stage import OneStage
from jaxvision.models.resnet import ResNet
from jaxvision.models.vgg import VGG, D
from jaxvision.ops import anchors, boxes, matching
from jaxvision.registry import register
from jaxvision.typing import Array, Detections, Features, Float, Targets

xavier = initializers.xavier_uniform()


class Extra(NamedTuple):
    """A further map: a 1x1 convolution to half the ``features``, then one of ``window``."""

    features: int
    window: int = 3
    strides: int = 2
    padding: int = 1


class L2Norm(nn.Module):
    """Each position's channels at length one, times a learnt gain a channel (section 3.1, after arXiv:1506.04579)."""

    gain: float

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        scale = self.param("scale_weight", initializers.constant(self.gain), (x.shape[-1],))
        precise = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        squares = jnp.sum(jnp.square(precise), axis=-1, keepdims=True)
        unit = precise * lax.rsqrt(jnp.maximum(squares, 1e-24))  # torch's 1e-12, squared
        return (unit * scale[None, None, None, :]).astype(x.dtype)


class Maps(nn.Module):
    """The maps that boxes are read from, ``m1 ...``, finest first: the backbone's ``levels``, then the extra ones.

    gain: the first is normalised, and its gain starts with this (None: left as it is).
    hidden: the last of the backbone passes through VGG's dense layers made convolutions of that width, fc6 dilated.
    """

    levels: tuple[str, ...]
    extras: tuple[Extra, ...] = ()
    gain: float | None = None
    hidden: int | None = None

    @nn.compact
    def __call__(self, features: Features) -> Features:
        maps = [features[name] for name in self.levels]
        if self.gain is not None:
            maps[0] = L2Norm(self.gain, name="rescale")(maps[0])
        if self.hidden is not None:
            x = ops.max_pool(maps[-1], window=3, strides=1, padding=1)
            x = nn.relu(Conv(self.hidden, 3, padding=6, dilation=6, kernel_init=xavier, name="fc6")(x))
            maps[-1] = nn.relu(Conv(self.hidden, 1, kernel_init=xavier, name="fc7")(x))
        for index, (width, *window) in enumerate(self.extras, start=1):
            x = nn.relu(Conv(width // 2, 1, kernel_init=xavier, name=f"extra_{index}_0")(maps[-1]))
            maps.append(nn.relu(Conv(width, *window, kernel_init=xavier, name=f"extra_{index}_2")(x)))
        return {f"m{index}": x for index, x in enumerate(maps, start=1)}


class SSD(OneStage):
    """A detector of ``num_classes`` classes; inputs are normalised images of ``size`` pixels a side.

    ``image_sizes`` [b, 2] are the true (height, width) where the images are padded, the whole input if None.
    scales, aspect_ratios, steps: of the default boxes of each map, see ``ops.anchors.default_boxes``.
    negatives: so many background boxes, those with the largest losses, enter the loss for each positive one.
    candidates: how many scores a class NMS sees.
    axis_name: a ``pmap`` axis; losses are then normalised as for the whole batch.
    """

    backbone: nn.Module
    neck: Maps
    num_classes: int
    size: int
    scales: tuple[float, ...]
    aspect_ratios: tuple[tuple[int | float, ...], ...]
    steps: tuple[int, ...]
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    foreground_iou: float = 0.5
    negatives: int = 3
    candidates: int = 400
    score_threshold: float = 0.01
    nms_threshold: float = 0.45
    max_detections: int = 200
    axis_name: str | None = None

    # Where our path differs from torchvision's key (see weights.convert).
    torch_names: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^backbone\.features_24$", "backbone.extra.0.1"),
        (r"^backbone\.features_26$", "backbone.extra.0.3"),
        (r"^backbone\.features_28$", "backbone.extra.0.5"),
        (r"^neck\.rescale$", "backbone"),
        (r"^neck\.fc6$", "backbone.extra.0.7.1"),
        (r"^neck\.fc7$", "backbone.extra.0.7.3"),
        (r"^neck\.extra", "backbone.extra"),
        (r"^(classification|regression)_heads_", r"head.\1_head.module_list."),
    )

    def setup(self):
        per_cell = [2 + 2 * len(ratios) for ratios in self.aspect_ratios]
        self.classification_heads = [_head(boxes * (self.num_classes + 1)) for boxes in per_cell]
        self.regression_heads = [_head(boxes * 4) for boxes in per_cell]

    @property
    def in_channels(self) -> int:
        return self.backbone.in_channels

    @property
    def init_size(self) -> int:
        return self.size

    def features(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Features:
        """The backbone's and the neck's maps by name."""
        features = self.backbone(images, train=train)[1]
        return {**features, **self.neck(features)}

    def raw(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Float[Array, "b n k"], Float[Array, "b n 4"], Float[Array, "n 4"]]:
        """What the network says of every default box: class logits, the background's first, and box offsets; and the
        default boxes. Maps from finest to coarsest, within them (row, column, box)."""
        return self._network(images, train=train)[0]

    def _losses(self, raw, targets: Targets) -> dict[str, Float[Array, ""]]:
        """The losses of classes and boxes (section 2.2), both divided by the number of positive boxes of the batch, and
        0 if there are none: an image without objects has no hard negatives either."""
        logits, offsets, anchors = raw

        def one_image(logits, offsets, truth, labels, valid):
            overlap = boxes.pairwise(boxes.iou, truth, anchors)
            match = matching.threshold_match(
                overlap, valid, high=self.foreground_iou, low=self.foreground_iou, allow_low_quality=False
            )
            match = matching.match_best(match, overlap, valid)
            positive, nearest = match >= 0, jnp.maximum(match, 0)
            class_error = losses.cross_entropy(logits, jnp.where(positive, labels[nearest] + 1, 0))
            counted = positive | matching.hardest(class_error, ~positive, self.negatives * jnp.sum(positive))
            wanted = boxes.encode(truth[nearest], anchors, weights=self.box_weights)
            return class_error, counted, losses.smooth_l1(offsets - wanted, beta=1.0).sum(-1), positive

        class_error, counted, box_error, positive = jax.vmap(one_image)(
            logits, offsets, targets.boxes, targets.labels, targets.valid
        )
        mean = dict(count=jnp.sum(positive), axis_name=self.axis_name)
        return {
            "loss_class": losses.weighted_mean(class_error, counted, **mean),
            "loss_box": losses.weighted_mean(box_error, positive, **mean),
        }

    def _network(self, images: Float[Array, "b h w c"], *, train: bool):
        """What ``raw`` gives, and the features."""
        features = self.features(images, train=train)
        maps = [features[f"m{index}"] for index in range(1, len(self.steps) + 1)]
        batch = maps[0].shape[0]

        def flat(heads, width):
            return jnp.concatenate([head(x).reshape(batch, -1, width) for head, x in zip(heads, maps, strict=True)], 1)

        priors = anchors.default_boxes(
            tuple(x.shape[1:3] for x in maps),
            images.shape[1:3],
            scales=self.scales,
            aspect_ratios=self.aspect_ratios,
            steps=self.steps,
        )
        logits = flat(self.classification_heads, self.num_classes + 1)
        return (logits, flat(self.regression_heads, 4), jnp.concatenate(priors)), features

    def _detections(self, said, image_sizes: Float[Array, "b 2"]) -> Detections:
        return jax.vmap(self._choose, (0, 0, None, 0))(*said, image_sizes)

    def _choose(self, logits, offsets, anchors, image_size: Float[Array, "2"]) -> Detections:
        """One image's detections: the best scores of each class, NMS within it, the best ``max_detections`` of all."""
        found = boxes.clip(boxes.decode(offsets, anchors, weights=self.box_weights), image_size)

        def best_of_class(scores):
            score, row, _ = ops.best_scores(scores[:, None], threshold=self.score_threshold, count=self.candidates)
            return score, found[row]

        score, box = jax.vmap(best_of_class, in_axes=1)(jax.nn.softmax(logits)[:, 1:])
        label = jnp.broadcast_to(jnp.arange(self.num_classes)[:, None], score.shape)
        return ops.select(
            box.reshape(-1, 4),
            score.reshape(-1),
            label.reshape(-1),
            iou_threshold=self.nms_threshold,
            max_detections=self.max_detections,
        )


def _head(outputs: int) -> Conv:
    return Conv(outputs, 3, padding=1, kernel_init=xavier)


def _over_vgg16(
    size: int,
    extras: tuple[Extra, ...],
    defaults: dict,
    *,
    in_channels: int = 3,
    axis_name: str | None = None,
    **options,
) -> SSD:
    """The paper's two networks, which differ in their further maps and default boxes."""
    return SSD(
        VGG(D, ceil_pools=(2,), num_classes=0, in_channels=in_channels, axis_name=axis_name),
        Maps(("c3", "c4"), extras, gain=20.0, hidden=1024),
        size=size,
        axis_name=axis_name,
        **(defaults | options),
    )


@register(task="detection")
def ssd300_vgg16(*, num_classes: int = 90, **options) -> SSD:
    """torchvision's model of that name: 8,732 default boxes, 35,641,826 parameters at 90 classes (COCO's ids less
    one)."""
    extras = (Extra(512), Extra(256), Extra(256, 3, 1, 0), Extra(256, 3, 1, 0))
    defaults = {
        "scales": (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
        "aspect_ratios": ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
        "steps": (8, 16, 32, 64, 100, 300),
    }
    return _over_vgg16(300, extras, defaults, num_classes=num_classes, **options)


@register(task="detection")
def ssd512_vgg16(*, num_classes: int = 20, **options) -> SSD:
    """The paper's SSD512 for PASCAL VOC: 24,564 default boxes."""
    extras = (Extra(512), Extra(256), Extra(256), Extra(256), Extra(256, 4, 1, 1))
    defaults = {
        "scales": (0.07, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05),
        "aspect_ratios": ((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,)),
        "steps": (8, 16, 32, 64, 128, 256, 512),
    }
    return _over_vgg16(512, extras, defaults, num_classes=num_classes, **options)


@register(task="detection")
def ssd_small(*, num_classes: int = 10, in_channels: int = 3, axis_name: str | None = None, **options) -> SSD:
    """An SSD that trains from scratch on two CPU cores in minutes, over a small ResNet with batch norm.

    The defaults suit 128-pixel images with objects of 10 to 64 pixels.
    """
    backbone = ResNet((2, 2, 2, 1), "basic", num_classes=0, in_channels=in_channels, width=32, axis_name=axis_name)
    defaults = {
        "scales": (0.1, 0.18, 0.3, 0.45, 0.6),
        "aspect_ratios": ((2, 3), (2, 3), (2, 3), (2,)),
        "steps": (4, 8, 16, 32),
        "candidates": 50,
        "max_detections": 20,
    }
    return SSD(
        backbone,
        Maps(("c2", "c3", "c4", "c5")),
        num_classes,
        size=128,
        axis_name=axis_name,
        **(defaults | options),
    )
