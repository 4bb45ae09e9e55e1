"""Faster R-CNN (Ren et al., arXiv:1506.01497) on a single map of a residual network, as Detectron2 has it.

C4 is what He et al. (arXiv:1512.03385, appendix A) made of it: regions are proposed on ``c4``, at stride 16, and pooled
from it to 14 x 14 cells, and what is left of the ResNet, its last stage, sees each of them. DC5 keeps the whole ResNet
in the backbone, with its last stage dilated by two so that ``c5`` has stride 16 too; two dense layers see 7 x 7 cells
of each region.

Variant: Detectron2 0.6's faster_rcnn_R_50_C4 and _DC5, whose C4 ``tests/parity/test_detectron2_c4.py`` compares:
bottlenecks stride in their first 1x1, batch norm is frozen, anchors of five sizes and three ratios are not rounded,
RoIAlign takes cells where their centres are and adapts the number of its samples, losses of boxes are absolute
differences, and NMS chooses from 12,000 anchors in training and 6,000 in inference. Its weights expect BGR in 0 ... 255
less (103.53, 116.28, 123.675).

Deviations: within a cell anchors are in torchvision's order, the ratio slowest; the background, which comes first
here, has box offsets that nothing uses; anchors are (image size // map size) pixels apart, which is 16 where sides of
images are multiples of 16; losses of the RPN are divided by the number of sampled anchors, not by 256 an image, which
is the same unless fewer can be sampled. Detectron2 does not train the stem and the first stage.
Parameter counts: Detectron2's at COCO's 80 classes, and 8,196 (DC5: 4,100) for the offsets of the background.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from jaxvision.layers.roi_heads import BoxHead, class_and_box
from jaxvision.layers.rpn import RPN
from jaxvision.models.generalized_rcnn import GeneralizedRCNN
from jaxvision.models.resnet import Block, ResNet, stage
from jaxvision.registry import get_model, register
from jaxvision.typing import Array, Float


class StageHead(nn.Module):
    """The last stage of a ResNet on each region, the mean of its map, then class logits (background first) and box
    offsets for each class.

    first, blocks: the stage's first block, and how many it has. pool_size: side of the RoI feature map it takes.
    In training a norm that is not frozen sees rows of padding as it sees regions.
    """

    num_classes: int
    first: Block
    blocks: int
    pool_size: int = 14

    @nn.compact
    def __call__(
        self, features: Float[Array, "n s s c"], *, train: bool = False
    ) -> tuple[Float[Array, "n classes_and_background"], Float[Array, "n classes_and_background 4"]]:
        x = stage(self, features, self.first, 4, self.blocks, train=train)
        return class_and_box(self, jnp.mean(x, axis=(1, 2)), self.num_classes)


def rcnn_c4(
    network: ResNet, *, num_classes: int, rpn: RPN | None = None, axis_name: str | None = None, **options
) -> GeneralizedRCNN:
    """Faster R-CNN on the map c4 of a ResNet, whose last stage, undilated, becomes the head. ``options`` go to
    ``GeneralizedRCNN``. Raises: ValueError if the network does not have four stages."""
    _check_stages(network)
    *kept, last = network.stage_sizes
    head = StageHead(num_classes, network.first_block(4), last)
    return _on_last_map(network.clone(stage_sizes=tuple(kept)), head, rpn, axis_name, **options)


def rcnn_dc5(
    network: ResNet,
    *,
    num_classes: int,
    box_hidden: int = 1024,
    rpn: RPN | None = None,
    axis_name: str | None = None,
    **options,
) -> GeneralizedRCNN:
    """Faster R-CNN on the map c5 of a ResNet, whose last stage alone is dilated. ``options`` go to ``GeneralizedRCNN``.
    Raises: ValueError if the network does not have four stages."""
    _check_stages(network)
    dilated = network.clone(dilate=(False, False, True), dilate_first=True)
    return _on_last_map(dilated, BoxHead(num_classes, box_hidden), rpn, axis_name, **options)


def _check_stages(network: ResNet) -> None:
    if len(network.stage_sizes) != 4:
        raise ValueError(f"a ResNet of four stages is needed, not of {len(network.stage_sizes)}")


def _on_last_map(
    backbone: ResNet, head: nn.Module, rpn: RPN | None, axis_name: str | None, **options
) -> GeneralizedRCNN:
    rpn = rpn or RPN(
        sizes=((32.0, 64.0, 128.0, 256.0, 512.0),),
        rounded=False,
        pre_nms=(12000, 6000),
        post_nms=(2000, 1000),
        beta=0.0,
    )
    defaults = {"sampling_ratio": 0, "aligned": True, "beta": 0.0}
    return GeneralizedRCNN(
        backbone=backbone,
        neck=None,
        proposals=rpn.clone(axis_name=axis_name),
        box_head=head,
        roi_levels=(backbone.feature_names[-1],),
        axis_name=axis_name,
        **(defaults | options),
    )


@register(task="detection")
def fasterrcnn_c4(backbone: str = "resnet50_paper", **options) -> GeneralizedRCNN:
    """Faster R-CNN on c4 of any registered ResNet, by name."""
    return _over_resnet(rcnn_c4, backbone, **options)


@register(task="detection")
def fasterrcnn_dc5(backbone: str = "resnet50_paper", **options) -> GeneralizedRCNN:
    """Faster R-CNN on the dilated c5 of any registered ResNet, by name."""
    return _over_resnet(rcnn_dc5, backbone, **options)


@register(task="detection")
def fasterrcnn_resnet50_c4(**options) -> GeneralizedRCNN:
    """Detectron2's faster_rcnn_R_50_C4: 33,852,960 parameters at 80 classes."""
    return fasterrcnn_c4("resnet50_paper", **options)


@register(task="detection")
def fasterrcnn_resnet50_dc5(**options) -> GeneralizedRCNN:
    """Detectron2's faster_rcnn_R_50_DC5: 165,638,688 parameters at 80 classes."""
    return fasterrcnn_dc5("resnet50_paper", **options)


def _over_resnet(
    compose: Callable[..., GeneralizedRCNN],
    backbone: str,
    *,
    num_classes: int = 80,
    frozen_norm: bool = True,
    axis_name: str | None = None,
    **options,
) -> GeneralizedRCNN:
    network = get_model(backbone, num_classes=0, axis_name=axis_name)
    if not isinstance(network, ResNet):
        raise ValueError(
            f"the backbone must be a ResNet, whose last stage is put elsewhere or dilated, not {backbone!r}"
        )
    return compose(network.clone(frozen_norm=frozen_norm), num_classes=num_classes, axis_name=axis_name, **options)
