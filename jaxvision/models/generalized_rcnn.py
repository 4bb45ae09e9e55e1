"""Two-stage detection as a composition: backbone, neck, proposals, heads.

Faster R-CNN (arXiv:1506.01497) and Mask R-CNN (arXiv:1703.06870) with a feature pyramid (arXiv:1612.03144) are
factories of one module; R-CNN, Fast R-CNN and Faster R-CNN on a single map (``models.rcnn``, ``fast_rcnn``,
``faster_rcnn_c4``) are others. Variant: torchvision's, whose anchors, sampling, losses and thresholds
are the defaults. Deviations: the classifier's and regressor's kernels start at N(0, 0.01) and N(0, 0.001) as in
Detectron; detection keeps the ``candidates`` best class scores of an image before NMS where torchvision keeps all above
the threshold. Parameter counts: torchvision 0.29, built with trainable batch norm (frozen scales are parameters here).
"""

import functools
import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxvision import losses, ops
from jaxvision.layers.fpn import FPN, LEGACY_NAMES
from jaxvision.layers.norm import BatchNorm
from jaxvision.layers.padding import at_least_one, sizes_or_whole
from jaxvision.layers.roi_heads import BoxHead, MaskHead
from jaxvision.layers.rpn import RPN
from jaxvision.models.resnet import ResNet
from jaxvision.ops import boxes, masks, matching
from jaxvision.registry import get_model, register
from jaxvision.typing import Array, Bool, Detections, Features, Float, Regions, Targets


class GeneralizedRCNN(nn.Module):
    """A detector of ``box_head.num_classes`` classes; inputs are normalised images, zero padded to one size.

    ``image_sizes`` [b, 2] are the true (height, width) inside the padding, the whole input if None.
    neck: makes further maps of the backbone's, none if None. proposals: finds the regions; without it every method has
    to be given them.
    Regions are pooled from the maps ``roi_levels`` (finest first, strides doubling): by RoIAlign, or RoIPool if
    ``pooling="max"``, which takes a single map. context: so many cells on each side of the pooled map show what lies
    around the region (R-CNN, arXiv:1311.2524, appendix A).
    background_iou: regions that overlap every object less than this do not train, not even as background.
    scores: of each class, softmax over classes and background, or "one_vs_rest", the sigmoid of its logit less the
    background's (for R-CNN's support vector machines).
    mask_samples: at most so many positive regions an image train the mask head, all of them if None (as published).
    axis_name: a ``pmap`` axis; losses are then normalised, and regions sampled, as for the whole batch.
    """

    backbone: nn.Module
    neck: nn.Module | None
    proposals: RPN | None
    box_head: nn.Module
    mask_head: MaskHead | None = None
    roi_levels: tuple[str, ...] = ("p2", "p3", "p4", "p5")
    canonical_size: float = 224.0  # side of a region that is pooled from level p4
    pooling: Literal["align", "max"] = "align"
    sampling_ratio: int = 2
    aligned: bool = False
    context: int = 0
    foreground_iou: float = 0.5
    background_iou: float = 0.0
    samples: int = 512
    positive_fraction: float = 0.25
    mask_samples: int | None = None
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    beta: float = 1 / 9
    scores: Literal["softmax", "one_vs_rest"] = "softmax"
    candidates: int = 4096
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 100
    min_size: float = 1e-2
    axis_name: str | None = None

    # Where our path differs from torchvision's key (see weights.convert).
    torch_names: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^backbone\.", "backbone.body."),
        (r"^neck\.", "backbone.fpn."),
        (r"^proposals\.", "rpn.head."),
        (r"^box_head\.(cls_score|bbox_pred)", r"roi_heads.box_predictor.\1"),
        (r"^(box|mask)_head\.conv_(\d+)", r"roi_heads.\1_head.\2.0"),
        (r"^(box|mask)_head\.norm_(\d+)", r"roi_heads.\1_head.\2.1"),
        (r"^box_head\.fc_", "roi_heads.box_head."),
        (r"^box_head\.", "roi_heads.box_head."),
        (r"^mask_head\.", "roi_heads.mask_predictor."),
    )
    torch_legacy_names: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
        *LEGACY_NAMES,
        (r"^roi_heads\.mask_head\.mask_fcn1\.", "roi_heads.mask_head.0.0."),
        (r"^roi_heads\.mask_head\.mask_fcn2\.", "roi_heads.mask_head.1.0."),
        (r"^roi_heads\.mask_head\.mask_fcn3\.", "roi_heads.mask_head.2.0."),
        (r"^roi_heads\.mask_head\.mask_fcn4\.", "roi_heads.mask_head.3.0."),
    )

    @property
    def in_channels(self) -> int:
        return self.backbone.in_channels

    def __call__(
        self,
        images: Float[Array, "b h w c"],
        image_sizes: Float[Array, "b 2"] | None = None,
        regions: Regions | None = None,
        *,
        train: bool = False,
    ) -> tuple[Detections, Features]:
        """Detections and the backbone's and neck's features.

        Raises: ValueError, as all methods do, without ``regions`` if nothing proposes them, or with them if it does.
        """
        features = self.features(images, train=train)
        sizes = sizes_or_whole(image_sizes, images)
        regions = self._given(regions, sizes)
        if self.proposals is not None:
            regions = Regions(*self.proposals.propose(*self._rpn(features, images.shape[1:3]), sizes))
        return self._detections(features, images.shape[1:3], regions, sizes), features

    def detect(
        self,
        images: Float[Array, "b h w c"],
        image_sizes: Float[Array, "b 2"] | None = None,
        regions: Regions | None = None,
    ) -> Detections:
        """The detections alone. Differentiable: boxes, scores and masks have gradients with respect to images,
        parameters and given regions, along the choices that top-k and NMS made."""
        return self(images, image_sizes, regions)[0]

    def loss(
        self,
        images: Float[Array, "b h w c"],
        targets: Targets,
        image_sizes: Float[Array, "b 2"] | None = None,
        regions: Regions | None = None,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The sum of the losses of all parts, and each of them by name. Needs ``rngs={"sample": key}``.

        ``train`` decides about batch statistics only, so the loss of validation data is the same function.
        Images without objects are negative examples, with ``background_iou`` above 0 of the proposals only. No gradient
        flows through the proposals' coordinates.
        """
        sizes = sizes_or_whole(image_sizes, images)
        targets = at_least_one(targets)
        keys = self._keys(images.shape[0])
        features = self.features(images, train=train)
        regions, terms = self._given(regions, sizes), {}
        if self.proposals is not None:
            predictions = self._rpn(features, images.shape[1:3])
            terms = self.proposals.loss(keys[:, 0], *predictions, targets)
            regions = Regions(*self.proposals.propose(*predictions, sizes, train=True))
        regions = lax.stop_gradient(regions)
        terms |= self._roi_losses(keys[:, 1], features, images.shape[1:3], regions, targets, train=train)
        total = sum(terms.values())
        return total, {"loss": total, **terms}

    def features(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Features:
        """The backbone's and the neck's maps by name."""
        features = self.backbone(images, train=train)[1]
        return {**features, **self.neck(features, train=train)} if self.neck is not None else features

    def _given(self, regions: Regions | None, image_sizes: Float[Array, "b 2"]) -> Regions | None:
        if (regions is None) == (self.proposals is None) and not self.is_initializing():
            raise ValueError(
                "this detector has no region proposal network: give it regions=Regions(boxes, valid), such as those of "
                "jaxvision.data.selective_search"
                if regions is None
                else "this detector proposes its own regions, and takes none"
            )
        if regions is None and self.proposals is None:  # the parameters do not depend on them
            whole = jnp.concatenate([jnp.zeros_like(image_sizes), image_sizes[:, ::-1]], axis=1)[:, None]
            return Regions(whole, jnp.ones(whole.shape[:2], bool))
        return regions

    def _rpn(self, features: Features, image_size: tuple[int, int]):
        """Logits, offsets and anchors of each level: those of the neck, or the one that regions are pooled from."""
        names = _pyramid(features) if self.neck is not None else self.roi_levels
        levels = [features[name] for name in names]
        return *self.proposals(levels), self.proposals.anchors(levels, image_size)

    def _keys(self, batch: int):
        """Two keys an image, that depend on its place in the global batch and not on the device that holds it."""
        first = 0 if self.axis_name is None else lax.axis_index(self.axis_name) * batch
        key = self.make_rng("sample")
        return jax.vmap(lambda index: jax.random.split(jax.random.fold_in(key, index)))(first + jnp.arange(batch))

    def pool(self, features: Features, image_size: tuple[int, int], regions: Float[Array, "b n 4"], size: int):
        """Each region pooled from the level that fits it, as one batch [b*n, size, size, c]."""
        levels = [features[name] for name in self.roi_levels]
        # As torchvision infers it: the power of two nearest to the ratio of the sizes.
        octaves = [round(math.log2(image_size[0] / level.shape[1])) for level in levels]
        if self.context:
            regions = boxes.enlarge(regions, size / (size - 2 * self.context))

        def one_image(levels, regions):
            if self.pooling == "max":
                (level,) = levels
                return ops.roi_pool(level, regions, size=(size, size), spatial_scale=0.5 ** octaves[0])
            which = ops.assign_levels(
                regions, num_levels=len(levels), lowest_level=octaves[0], canonical_size=self.canonical_size
            )
            return ops.multilevel_roi_align(
                levels,
                regions,
                which,
                size=(size, size),
                spatial_scales=tuple(0.5**octave for octave in octaves),
                sampling_ratio=self.sampling_ratio,
                aligned=self.aligned,
            )

        pooled = jax.vmap(one_image)(levels, regions)
        return pooled.reshape(-1, *pooled.shape[2:])

    def _roi_losses(self, keys, features, image_size, regions: Regions, targets: Targets, *, train: bool):
        """Losses of the heads on regions sampled around the ground truth, which itself joins the proposals."""
        batch = len(regions.boxes)
        valid = jnp.concatenate([regions.valid, targets.valid], axis=1)
        regions = jnp.concatenate([regions.boxes, targets.boxes], axis=1)

        def sample(key, regions, valid, truth, truth_valid):
            overlap = boxes.pairwise(boxes.iou, truth, regions)
            match = matching.threshold_match(
                overlap, truth_valid, high=self.foreground_iou, low=self.foreground_iou, allow_low_quality=False
            )
            background = match == matching.BACKGROUND
            if self.background_iou > 0:
                background &= jnp.max(jnp.where(truth_valid[:, None], overlap, 0), axis=0) >= self.background_iou
            index, positive, sampled = matching.sample(
                key,
                (match >= 0) & valid,
                background & valid,
                size=self.samples,
                positive_fraction=self.positive_fraction,
            )
            return regions[index], jnp.maximum(match[index], 0), positive, sampled

        regions, match, positive, sampled = jax.vmap(sample)(keys, regions, valid, targets.boxes, targets.valid)
        pick = jax.vmap(lambda values, index: values[index])
        truth, labels = pick(targets.boxes, match), pick(targets.labels, match)
        pooled = self.pool(features, image_size, regions, self.box_head.pool_size)
        logits, offsets = self.box_head(pooled, train=train)
        logits, offsets = (values.reshape(batch, self.samples, *values.shape[1:]) for values in (logits, offsets))
        classes = jnp.where(positive, labels + 1, 0)  # background is class 0 inside the head
        wanted = boxes.encode(truth, regions, weights=self.box_weights)
        # A product, because the transpose of a gather is a scatter, which is slow.
        chosen = jnp.einsum("bnkd,bnk->bnd", offsets, jax.nn.one_hot(classes, offsets.shape[2], dtype=offsets.dtype))
        error = losses.smooth_l1(chosen - wanted, beta=self.beta).sum(-1)
        mean = dict(count=jnp.sum(sampled), axis_name=self.axis_name)
        terms = {
            "loss_class": losses.weighted_mean(losses.cross_entropy(logits, classes), sampled, **mean),
            "loss_box": losses.weighted_mean(error, positive, **mean),
        }
        if self.mask_head is not None:
            # Positives come first, in random order, and none stands beyond their share.
            share = int(self.samples * self.positive_fraction)
            first = slice(None, share if self.mask_samples is None else min(share, self.mask_samples))
            terms["loss_mask"] = self._mask_loss(
                features,
                image_size,
                *(values[:, first] for values in (regions, match, labels, positive)),
                targets,
                train=train,
            )
        return terms

    def _mask_loss(self, features, image_size, regions, match, labels, positive, targets: Targets, *, train: bool):
        """Binary cross-entropy of the true class's mask on the positive regions (Mask R-CNN, section 3)."""
        if targets.masks is None:
            raise ValueError("the detector has a mask head, but the targets have no masks")
        size = self.mask_head.mask_size
        crop = functools.partial(masks.crop, size=size, image_size=image_size)
        frames = {} if targets.mask_boxes is None else {"frames": targets.mask_boxes}
        wanted = jax.vmap(crop)(targets.masks, regions, match, **frames).reshape(-1, size, size)
        pooled = self.pool(features, image_size, regions, self.mask_head.pool_size)
        logits = self.mask_head(pooled, labels.reshape(-1) + 1, train=train)
        error = losses.binary_cross_entropy(logits, wanted).mean((1, 2))
        return losses.weighted_mean(error, positive.reshape(-1), axis_name=self.axis_name)

    def _detections(self, features, image_size, regions: Regions, image_sizes) -> Detections:
        """Class and refine the regions, choose the best, and give each its mask."""
        batch, count = regions.valid.shape
        logits, offsets = self.box_head(self.pool(features, image_size, regions.boxes, self.box_head.pool_size))
        if self.scores == "softmax":
            scores = jax.nn.softmax(logits)[:, 1:]
        else:
            scores = jax.nn.sigmoid(logits[:, 1:] - logits[:, :1])
        scores = scores.reshape(batch, count, -1)
        offsets = offsets[:, 1:].reshape(*scores.shape, 4)
        detections = jax.vmap(self._choose)(scores, offsets, *regions, image_sizes)
        if self.mask_head is None:
            return detections
        pooled = self.pool(features, image_size, detections.boxes, self.mask_head.pool_size)
        probability = jax.nn.sigmoid(self.mask_head(pooled, detections.labels.reshape(-1) + 1))
        probability = probability.reshape(*detections.labels.shape, *probability.shape[1:])
        return detections._replace(masks=jnp.where(detections.valid[..., None, None], probability, 0))

    def _choose(
        self,
        scores: Float[Array, "n k"],
        offsets: Float[Array, "n k 4"],
        regions: Float[Array, "n 4"],
        valid: Bool[Array, " n"],
        image_size: Float[Array, "2"],
    ) -> Detections:
        """One image's detections: score threshold, NMS within each class, the best ``max_detections``."""
        eligible = jnp.where(valid[:, None], scores, -jnp.inf)
        score, region, label = ops.best_scores(eligible, threshold=self.score_threshold, count=self.candidates)
        found = boxes.decode(offsets[region, label], regions[region], weights=self.box_weights)
        return ops.select(
            boxes.clip(found, image_size),
            score,
            label,
            iou_threshold=self.nms_threshold,
            max_detections=self.max_detections,
            min_size=self.min_size,
        )


def _pyramid(features: Features) -> list[str]:
    return sorted(name for name in features if name.startswith("p"))


def rcnn_fpn(
    backbone: nn.Module,
    *,
    num_classes: int,
    channels: int = 256,
    box_hidden: int = 1024,
    mask_head: MaskHead | None = None,
    rpn: RPN | None = None,
    norm: BatchNorm | None = None,
    axis_name: str | None = None,
    **options,
) -> GeneralizedRCNN:
    """Faster R-CNN, or Mask R-CNN with a mask head, on a feature pyramid over a classifier's features c2, c3, …

    The default RPN has anchors of 32, 64, … pixels, one size a level. norm: of the pyramid's convolutions and of the
    box head's, of which there are none without it. ``options`` go to ``GeneralizedRCNN``.
    """
    levels = tuple(name for name in backbone.feature_names if name not in ("c0", "c1"))
    rpn = rpn or RPN(sizes=tuple((32.0 * 2**index,) for index in range(len(levels) + 1)))
    return GeneralizedRCNN(
        backbone=backbone,
        neck=FPN(levels, channels, norm=norm),
        proposals=rpn.clone(axis_name=axis_name),
        box_head=BoxHead(num_classes, box_hidden, norm=norm),
        mask_head=mask_head,
        roi_levels=tuple(f"p{name[1:]}" for name in levels),
        axis_name=axis_name,
        **options,
    )


@register(task="detection")
def fasterrcnn_fpn(
    backbone: str = "resnet50",
    *,
    num_classes: int = 90,
    frozen_norm: bool = False,
    axis_name: str | None = None,
    **options,
) -> GeneralizedRCNN:
    """Faster R-CNN with a pyramid over any registered classifier, by name. frozen_norm: if the backbone has norms."""
    norm = {"frozen_norm": True} if frozen_norm else {}
    network = get_model(backbone, num_classes=0, axis_name=axis_name, **norm)
    return rcnn_fpn(network, num_classes=num_classes, axis_name=axis_name, **options)


@register(task="detection")
def maskrcnn_fpn(backbone: str = "resnet50", *, num_classes: int = 90, **options) -> GeneralizedRCNN:
    """Mask R-CNN with a pyramid over any registered classifier, by name."""
    return fasterrcnn_fpn(backbone, num_classes=num_classes, mask_head=MaskHead(num_classes), **options)


@register(task="detection")
def fasterrcnn_resnet50_fpn(*, num_classes: int = 90, **options) -> GeneralizedRCNN:
    """torchvision's model of that name: 41,808,406 parameters at 90 classes (COCO's ids less one)."""
    return _resnet50_fpn(num_classes, None, **options)


@register(task="detection")
def maskrcnn_resnet50_fpn(*, num_classes: int = 90, **options) -> GeneralizedRCNN:
    """torchvision's model of that name: 44,454,513 parameters at 90 classes (COCO's ids less one)."""
    return _resnet50_fpn(num_classes, MaskHead(num_classes), **options)


def _resnet50_fpn(num_classes, mask_head, *, frozen_norm=True, norm_epsilon=1e-5, axis_name=None, **options):
    """Batch norm is frozen by default: few images a device make bad statistics, and published weights expect it."""
    backbone = get_model(
        "resnet50", num_classes=0, frozen_norm=frozen_norm, norm_epsilon=norm_epsilon, axis_name=axis_name
    )
    return rcnn_fpn(backbone, num_classes=num_classes, mask_head=mask_head, axis_name=axis_name, **options)


@register(task="detection")
def fasterrcnn_resnet50_fpn_v2(*, num_classes: int = 90, **options) -> GeneralizedRCNN:
    """torchvision's model of that name: 43,712,278 parameters at 90 classes (COCO's ids less one)."""
    return _resnet50_fpn_v2(num_classes, **options)


@register(task="detection")
def maskrcnn_resnet50_fpn_v2(*, num_classes: int = 90, **options) -> GeneralizedRCNN:
    """torchvision's model of that name: 46,359,409 parameters at 90 classes (COCO's ids less one)."""
    return _resnet50_fpn_v2(num_classes, masks=True, **options)


def _resnet50_fpn_v2(num_classes, *, masks=False, frozen_norm=False, axis_name=None, **options):
    """Batch norm also in the pyramid and the heads, and a deeper RPN (torchvision's recipe after arXiv:2111.11429)."""
    norm = BatchNorm(frozen=frozen_norm, axis_name=axis_name)
    return rcnn_fpn(
        get_model("resnet50", num_classes=0, frozen_norm=frozen_norm, axis_name=axis_name),
        num_classes=num_classes,
        rpn=RPN(num_convs=2),
        mask_head=MaskHead(num_classes, norm=norm) if masks else None,
        norm=norm,
        axis_name=axis_name,
        **options,
    )


@register(task="detection")
def maskrcnn_small(
    *,
    num_classes: int = 10,
    anchor_sizes: Sequence[int | float] = (16, 28, 44, 64, 96),
    regions: int = 64,
    axis_name: str | None = None,
    **options,
) -> GeneralizedRCNN:
    """A Mask R-CNN that trains from scratch on two CPU cores in minutes: every part is the full model's, only narrower.

    The defaults suit 128-pixel images with objects of 10 to 64 pixels. regions: proposals an image, and how many of
    them are sampled in training. Half of the sample may be positive, not a quarter: from scratch that learns faster.
    """
    defaults = {
        "canonical_size": 112.0,
        "samples": regions,
        "positive_fraction": 0.5,
        "mask_samples": regions // 8,
        "candidates": 4 * regions,
        "max_detections": 20,
    }
    return rcnn_fpn(
        ResNet((2, 2, 2, 1), "basic", num_classes=0, width=32, axis_name=axis_name),
        num_classes=num_classes,
        channels=64,
        box_hidden=256,
        mask_head=MaskHead(num_classes, channels=32, num_convs=2),
        rpn=RPN(
            sizes=tuple((float(size),) for size in anchor_sizes),
            pre_nms=(4 * regions, 2 * regions),
            post_nms=(regions, regions),
            samples=64,
        ),
        axis_name=axis_name,
        **(defaults | options),
    )


@register(task="detection")
def fasterrcnn_small(**options) -> GeneralizedRCNN:
    """``maskrcnn_small`` without masks."""
    return maskrcnn_small(**options).clone(mask_head=None)
