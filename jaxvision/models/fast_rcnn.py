"""Fast R-CNN (Girshick, arXiv:1504.08083), figure 1: the whole image passes through the convolutions once, and regions
that come from outside, such as those of selective search, are pooled from its last map.

``fastrcnn_vgg16`` is the paper's network: RoIPool of 7 x 7 cells from conv5_3, two dense layers of 4,096 with dropout,
class scores and a box for each class; section 2.3's sampling and loss. Deviations: offsets are divided by the constant
standard deviations (0.1, 0.1, 0.2, 0.2) of the author's later code instead of the training set's own, regions are
sampled in each image instead of over a batch of two, and all convolutions learn (the paper leaves conv1 and conv2 as
they were; an optimiser's mask freezes them). ``fastrcnn_fpn`` is the same on a feature pyramid, as Detectron
has it. Parameter count: VGG-16's convolutions and the four dense layers at VOC's 20 classes.
"""

from jaxvision.layers.roi_heads import BoxHead
from jaxvision.models.generalized_rcnn import GeneralizedRCNN, fasterrcnn_fpn, fasterrcnn_small
from jaxvision.models.vgg import VGG, D
from jaxvision.registry import register


@register(task="detection")
def fastrcnn_vgg16(
    *, num_classes: int = 20, in_channels: int = 3, axis_name: str | None = None, **options
) -> GeneralizedRCNN:
    """The paper's largest network (its model L): 134,690,729 parameters at VOC's 20 classes."""
    defaults = {
        "samples": 64,
        "positive_fraction": 0.25,
        "background_iou": 0.1,
        "beta": 1.0,
        "nms_threshold": 0.3,
    }
    return GeneralizedRCNN(
        backbone=VGG(D, num_classes=0, in_channels=in_channels, axis_name=axis_name),
        neck=None,
        proposals=None,
        box_head=BoxHead(num_classes, hidden=4096, dropout=0.5, axis_name=axis_name),
        roi_levels=("c4",),
        pooling="max",
        axis_name=axis_name,
        **(defaults | options),
    )


@register(task="detection")
def fastrcnn_fpn(backbone: str = "resnet50", **options) -> GeneralizedRCNN:
    """Fast R-CNN with a pyramid over any registered classifier, by name."""
    return fasterrcnn_fpn(backbone, **options).clone(proposals=None)


@register(task="detection")
def fastrcnn_small(**options) -> GeneralizedRCNN:
    """``fasterrcnn_small`` on given regions: trains from scratch on two CPU cores in minutes."""
    return fasterrcnn_small(**options).clone(proposals=None)
