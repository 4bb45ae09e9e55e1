"""Region proposal network (Ren et al., Faster R-CNN, arXiv:1506.01497, section 3.1), on one map or a pyramid."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers
from jax import lax

from jaxvision import losses, ops
from jaxvision.layers.convolution import Conv
from jaxvision.ops import anchors, boxes, matching
from jaxvision.typing import Array, Bool, Float, Key, Targets


class RPN(nn.Module):
    """Objectness and box offsets for every anchor, the proposals made of them, and their loss.

    One tuple of ``sizes`` (anchor sides in pixels) a feature level; every level takes all ``aspect_ratios`` (height
    over width). Pairs are (training, inference). Defaults, anchor order and rounding are torchvision's.
    rounded: whether the anchors' corners are rounded, around their centre, to whole pixels.
    num_convs: 3x3 convolutions before the two outputs.
    """

    sizes: tuple[tuple[float, ...], ...] = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    rounded: bool = True
    num_convs: int = 1
    pre_nms: tuple[int, int] = (2000, 1000)  # a level
    post_nms: tuple[int, int] = (2000, 1000)  # an image
    nms_threshold: float = 0.7
    min_size: float = 1e-3
    foreground_iou: float = 0.7
    background_iou: float = 0.3
    samples: int = 256
    positive_fraction: float = 0.5
    beta: float = 1 / 9
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, levels: Sequence[Float[Array, "b _ _ c"]]
    ) -> tuple[list[Float[Array, "b _"]], list[Float[Array, "b _ 4"]]]:
        """Objectness logits and box offsets of each level, in the order (row, column, anchor)."""
        if len(levels) != len(self.sizes):
            raise ValueError(f"{len(levels)} feature levels, but anchor sizes for {len(self.sizes)}: {self.sizes}")
        init = initializers.normal(0.01)
        per_cell = len(self.sizes[0]) * len(self.aspect_ratios)
        channels = levels[0].shape[-1]
        shared = [
            Conv(channels, 3, padding=1, kernel_init=init, name=f"conv_{index}_0") for index in range(self.num_convs)
        ]
        objectness = Conv(per_cell, 1, kernel_init=init, name="cls_logits")
        offsets = Conv(4 * per_cell, 1, kernel_init=init, name="bbox_pred")
        hidden = list(levels)
        for conv in shared:
            hidden = [nn.relu(conv(level)) for level in hidden]
        batch = levels[0].shape[0]
        return (
            [objectness(level).reshape(batch, -1) for level in hidden],
            [offsets(level).reshape(batch, -1, 4) for level in hidden],
        )

    def anchors(
        self, levels: Sequence[Float[Array, "b _ _ c"]], image_size: tuple[int, int]
    ) -> tuple[Float[Array, "_ 4"], ...]:
        """The anchors of each level, in pixels of the padded input of that size."""
        return anchors.anchor_boxes(
            tuple(level.shape[1:3] for level in levels),
            image_size,
            sizes=self.sizes,
            aspect_ratios=(self.aspect_ratios,) * len(self.sizes),
            rounded=self.rounded,
        )

    def propose(
        self,
        logits: Sequence[Float[Array, "b _"]],
        offsets: Sequence[Float[Array, "b _ 4"]],
        anchors: Sequence[Float[Array, "_ 4"]],
        image_sizes: Float[Array, "b 2"],
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "b p 4"], Bool[Array, "b p"]]:
        """The best boxes of each image: top of each level, NMS within it, then the top over all levels.

        Clipped to the image; sides of at least ``min_size``. Gradients flow to the offsets through the boxes, and not
        to the logits, which only choose.
        """
        pre_nms, post_nms = self.pre_nms[not train], self.post_nms[not train]

        def one_level(logits, offsets, anchors, image_size):
            score, top = lax.top_k(logits, min(pre_nms, logits.shape[0]))
            proposals = boxes.clip(boxes.decode(offsets[top], anchors[top]), image_size)
            score = jnp.where(_sides_at_least(proposals, self.min_size), score, -jnp.inf)
            kept, valid = ops.nms(
                proposals, score, iou_threshold=self.nms_threshold, max_output=min(post_nms, score.shape[0])
            )
            return proposals[kept], jnp.where(valid, score[kept], -jnp.inf)

        def one_image(logits, offsets, image_size):
            found = [one_level(*level, image_size) for level in zip(logits, offsets, anchors)]
            proposals, score = (jnp.concatenate(parts) for parts in zip(*found))
            score, top = lax.top_k(score, min(post_nms, score.shape[0]))
            return proposals[top], score > -jnp.inf

        return jax.vmap(one_image)(list(logits), list(offsets), image_sizes)

    def loss(
        self,
        keys: Key[Array, " b"],
        logits: Sequence[Float[Array, "b _"]],
        offsets: Sequence[Float[Array, "b _ 4"]],
        anchors: Sequence[Float[Array, "_ 4"]],
        targets: Targets,
    ) -> dict[str, Float[Array, ""]]:
        """``loss_objectness`` (cross-entropy, mean over the sampled anchors) and ``loss_rpn_box`` (smooth L1 of the
        positive anchors' offsets, over the number of sampled anchors)."""
        logits, offsets = jnp.concatenate(logits, axis=1), jnp.concatenate(offsets, axis=1)
        anchors = jnp.concatenate(anchors)

        def assign(key, truth, valid):
            """What each anchor should say: sampled, positive, and the box it should be."""
            match = matching.threshold_match(
                boxes.pairwise(boxes.iou, truth, anchors),
                valid,
                high=self.foreground_iou,
                low=self.background_iou,
                allow_low_quality=True,
            )
            return match, *matching.sample(
                key, match >= 0, match == -1, size=self.samples, positive_fraction=self.positive_fraction
            )

        match, index, positive, sampled = jax.vmap(assign)(keys, targets.boxes, targets.valid)
        pick = jax.vmap(lambda values, index: values[index])
        truth = pick(targets.boxes, jnp.maximum(pick(match, index), 0))
        wanted = boxes.encode(truth, anchors[index])
        error = losses.smooth_l1(pick(offsets, index) - wanted, beta=self.beta).sum(-1)
        mean = dict(count=jnp.sum(sampled), axis_name=self.axis_name)
        return {
            "loss_objectness": losses.weighted_mean(
                losses.binary_cross_entropy(pick(logits, index), positive.astype(logits.dtype)),
                sampled,
                **mean,
            ),
            "loss_rpn_box": losses.weighted_mean(error, positive, **mean),
        }


def _sides_at_least(proposals: Float[Array, "n 4"], size: float) -> Bool[Array, " n"]:
    return jnp.all(proposals[:, 2:] - proposals[:, :2] >= size, axis=-1)
