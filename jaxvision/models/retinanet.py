"""RetinaNet: Focal Loss for Dense Object Detection (Lin et al., arXiv:1708.02002), figure 3, as torchvision builds it.

A feature pyramid over a classifier and two towers of convolutions, shared by its levels, that say for each of nine
anchors a cell which classes it is and how it is moved. Variants: ``retinanet_resnet50_fpn`` is torchvision's first,
whose P6 is made from P5 where the paper's is from C5; ``retinanet_resnet50_fpn_v2`` has the paper's P6, group norm in
the towers and generalised IoU as the loss of boxes. Deviations from the paper are torchvision's: sizes of anchors are
cut to whole pixels, the absolute error instead of the smooth L1, and an output for class 0, the background, which is
never an object; published weights have it, and no detection is of it.
Parameter counts: torchvision 0.29, built with trainable batch norm (frozen scales are parameters here).
"""

import functools
import math
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers

from jaxvision import losses, ops
from jaxvision.layers.convolution import Conv
from jaxvision.layers.fpn import FPN, LEGACY_NAMES
from jaxvision.layers.one_stage import OneStage
from jaxvision.models.resnet import ResNet
from jaxvision.ops import anchors, boxes, matching
from jaxvision.registry import get_model, register
from jaxvision.typing import Array, Detections, Features, Float, Targets

PRIOR = 0.01  # the probability of every class that an untrained network states (section 4.1)


class Tower(nn.Module):
    """3x3 convolutions with ReLU, and one more to ``outputs`` channels; with group norm if ``groups`` is given."""

    outputs: int
    last: str  # the name of the last convolution in published weights
    num_convs: int = 4
    groups: int | None = None
    bias: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w o"]:
        init = initializers.normal(0.01)
        for index in range(self.num_convs):
            plain = self.groups is None
            x = Conv(x.shape[-1], 3, padding=1, use_bias=plain, kernel_init=init, name=f"conv_{index}_0")(x)
            if not plain:
                norm = nn.GroupNorm(self.groups, epsilon=1e-5, dtype=x.dtype, use_fast_variance=False)
                x = norm.clone(name=f"conv_{index}_1", parent=self)(x)
            x = nn.relu(x)
        bias = initializers.constant(self.bias)
        return Conv(self.outputs, 3, padding=1, kernel_init=init, bias_init=bias, name=self.last)(x)


class RetinaNet(OneStage):
    """A detector of ``num_classes`` classes; inputs are normalised images, zero padded to one size.

    ``image_sizes`` [b, 2] are the true (height, width) inside the padding, the whole input if None.
    sizes: anchor sides in pixels, one tuple a level of the pyramid, finest first; aspect_ratios are height over width.
    box_loss: of the positive anchors, the absolute error of their offsets, or 1 - GIoU of their boxes.
    candidates: how many scores a level, of all its anchors and classes, NMS sees.
    Each image's loss is divided by the number of its own positive anchors, so the loss of a batch on several devices is
    the mean of theirs.
    """

    backbone: nn.Module
    neck: FPN
    num_classes: int
    sizes: tuple[tuple[int, ...], ...]
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    num_convs: int = 4
    groups: int | None = None
    box_loss: Literal["l1", "giou"] = "l1"
    foreground_iou: float = 0.5
    background_iou: float = 0.4
    candidates: int = 1000
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 300

    # Where our path differs from torchvision's key (see weights.convert).
    torch_names: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^backbone\.", "backbone.body."),
        (r"^neck\.p", "backbone.fpn.extra_blocks.p"),
        (r"^neck\.", "backbone.fpn."),
        (r"^(classification|regression)_head\.", r"head.\1_head."),
    )
    torch_legacy_names: ClassVar[tuple[tuple[str, str], ...]] = (
        *LEGACY_NAMES,
        (r"^head\.(\w+)\.conv\.0\.(weight|bias)$", r"head.\1.conv.0.0.\2"),
        (r"^head\.(\w+)\.conv\.2\.(weight|bias)$", r"head.\1.conv.1.0.\2"),
        (r"^head\.(\w+)\.conv\.4\.(weight|bias)$", r"head.\1.conv.2.0.\2"),
        (r"^head\.(\w+)\.conv\.6\.(weight|bias)$", r"head.\1.conv.3.0.\2"),
    )

    def setup(self):
        per_cell = len(self.sizes[0]) * len(self.aspect_ratios)
        tower = functools.partial(Tower, num_convs=self.num_convs, groups=self.groups)
        bias = -math.log((1 - PRIOR) / PRIOR)
        self.classification_head = tower(per_cell * (self.num_classes + 1), "cls_logits", bias=bias)
        self.regression_head = tower(per_cell * 4, "bbox_reg")

    @property
    def in_channels(self) -> int:
        return self.backbone.in_channels

    def features(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Features:
        """The backbone's and the neck's maps by name."""
        features = self.backbone(images, train=train)[1]
        return {**features, **self.neck(features, train=train)}

    def raw(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Float[Array, "b n k"], Float[Array, "b n 4"], Float[Array, "n 4"]]:
        """What the network says of every anchor: class logits, with the background's first, and box offsets; and the
        anchors. Levels from finest to coarsest, within them (row, column, anchor)."""
        (logits, offsets, anchors), _ = self._network(images, train=train)
        return jnp.concatenate(logits, axis=1), jnp.concatenate(offsets, axis=1), jnp.concatenate(anchors)

    def _losses(self, raw, targets: Targets) -> dict[str, Float[Array, ""]]:
        """The losses of classes and boxes."""
        logits, offsets, anchors = raw

        def one_image(logits, offsets, truth, labels, valid):
            overlap = boxes.pairwise(boxes.iou, truth, anchors)
            match = matching.threshold_match(
                overlap, valid, high=self.foreground_iou, low=self.background_iou, allow_low_quality=True
            )
            positive = match >= 0
            nearest = jnp.maximum(match, 0)
            classes = jnp.where(positive, labels[nearest] + 1, -1)
            wanted = classes[:, None] == jnp.arange(logits.shape[-1])[None, :]
            count = jnp.maximum(jnp.sum(positive), 1)
            class_error = losses.focal(logits, wanted.astype(logits.dtype)).sum(-1)
            return (
                losses.weighted_mean(class_error, match != matching.IGNORED, count=count),
                losses.weighted_mean(self._box_error(offsets, anchors, truth[nearest]), positive, count=count),
            )

        of_class, of_box = jax.vmap(one_image)(logits, offsets, targets.boxes, targets.labels, targets.valid)
        return {"loss_class": jnp.mean(of_class), "loss_box": jnp.mean(of_box)}

    def _network(self, images: Float[Array, "b h w c"], *, train: bool):
        """Class logits, box offsets and anchors of each level; and the features."""
        features = self.features(images, train=train)
        levels = [features[name] for name in sorted(name for name in features if name.startswith("p"))]
        if len(levels) != len(self.sizes):
            raise ValueError(f"{len(levels)} feature levels, but anchor sizes for {len(self.sizes)}: {self.sizes}")
        batch = levels[0].shape[0]
        said = (
            [self.classification_head(level).reshape(batch, -1, self.num_classes + 1) for level in levels],
            [self.regression_head(level).reshape(batch, -1, 4) for level in levels],
            anchors.anchor_boxes(
                tuple(level.shape[1:3] for level in levels),
                images.shape[1:3],
                sizes=self.sizes,
                aspect_ratios=(self.aspect_ratios,) * len(levels),
            ),
        )
        return said, features

    def _box_error(
        self, offsets: Float[Array, "n 4"], anchors: Float[Array, "n 4"], truth: Float[Array, "n 4"]
    ) -> Float[Array, " n"]:
        if self.box_loss == "l1":
            return losses.smooth_l1(offsets - boxes.encode(truth, anchors), beta=0.0).sum(-1)
        return 1 - boxes.giou(boxes.decode(offsets, anchors), truth)

    def _detections(self, said, image_sizes: Float[Array, "b 2"]) -> Detections:
        return jax.vmap(self._choose, (0, 0, None, 0))(*said, image_sizes)

    def _choose(self, logits, offsets, anchors, image_size: Float[Array, "2"]) -> Detections:
        """One image's detections: the best scores of each level, NMS within each class, the best ``max_detections``."""
        found = []
        for level_logits, level_offsets, level_anchors in zip(logits, offsets, anchors):
            score, row, label = ops.best_scores(
                jax.nn.sigmoid(level_logits[:, 1:]), threshold=self.score_threshold, count=self.candidates
            )
            box = boxes.decode(level_offsets[row], level_anchors[row])
            found.append((boxes.clip(box, image_size), score, label))
        return ops.select(
            *(jnp.concatenate(parts) for parts in zip(*found)),
            iou_threshold=self.nms_threshold,
            max_detections=self.max_detections,
        )


def _octave(size: int) -> tuple[int, int, int]:
    """Three anchor sizes, a third of an octave apart, cut to whole pixels."""
    return size, int(size * 2 ** (1 / 3)), int(size * 2 ** (2 / 3))


@register(task="detection")
def retinanet_fpn(
    backbone: str | nn.Module = "resnet50",
    *,
    num_classes: int = 90,
    channels: int = 256,
    coarser: Literal["from_p", "from_c"] = "from_c",
    smallest: int = 32,
    frozen_norm: bool = False,
    axis_name: str | None = None,
    **options,
) -> RetinaNet:
    """RetinaNet over any registered classifier, by name, or over a module; on its features of stride 8 and more.

    smallest: the least size of anchors, at the finest level, which doubles from level to level. frozen_norm: of a
    backbone given by name, if it has norms.
    """
    if isinstance(backbone, str):
        norm = {"frozen_norm": True} if frozen_norm else {}
        backbone = get_model(backbone, num_classes=0, axis_name=axis_name, **norm)
    levels = tuple(name for name in backbone.feature_names if name not in ("c0", "c1", "c2"))
    return RetinaNet(
        backbone,
        FPN(levels, channels, coarser=coarser),
        num_classes,
        sizes=tuple(_octave(smallest * 2**index) for index in range(len(levels) + 2)),
        **options,
    )


@register(task="detection")
def retinanet_resnet50_fpn(
    *, frozen_norm: bool = True, norm_epsilon: float = 1e-5, axis_name: str | None = None, **options
) -> RetinaNet:
    """torchvision's model of that name: 34,068,119 parameters at 90 classes (COCO's ids less one).

    Batch norm is frozen by default: few images a device make bad statistics, and published weights expect it.
    """
    backbone = get_model(
        "resnet50", num_classes=0, frozen_norm=frozen_norm, norm_epsilon=norm_epsilon, axis_name=axis_name
    )
    return retinanet_fpn(backbone, coarser="from_p", **options)


@register(task="detection")
def retinanet_resnet50_fpn_v2(*, frozen_norm: bool = False, axis_name: str | None = None, **options) -> RetinaNet:
    """torchvision's model of that name: 38,198,935 parameters at 90 classes (COCO's ids less one)."""
    backbone = get_model("resnet50", num_classes=0, frozen_norm=frozen_norm, axis_name=axis_name)
    return retinanet_fpn(backbone, **{"groups": 32, "box_loss": "giou", **options})


@register(task="detection")
def retinanet_small(*, num_classes: int = 10, axis_name: str | None = None, **options) -> RetinaNet:
    """A RetinaNet that trains from scratch on two CPU cores in minutes: every part is the full model's, only narrower.

    The defaults suit 128-pixel images with objects of 10 to 64 pixels.
    """
    backbone = ResNet((2, 2, 2, 1), "basic", num_classes=0, width=32, axis_name=axis_name)
    defaults = {"channels": 64, "smallest": 16, "num_convs": 2, "groups": 8, "box_loss": "giou"}
    defaults |= {"max_detections": 20, "candidates": 200}
    return retinanet_fpn(backbone, num_classes=num_classes, **(defaults | options))
