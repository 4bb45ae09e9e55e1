"""R-CNN: Rich feature hierarchies for accurate object detection and semantic segmentation (Girshick et al.,
arXiv:1311.2524), figure 1: regions with CNN features.

As a composition: there is no backbone but the pixels, each region is cut out of them and warped to the network's square
with 16 pixels of what lies around it (appendix A), and the head is a whole classifier. The warp is a bilinear RoIAlign
of one sample a pixel, so it is differentiable, to the pixels and to the boxes. Outside the image lie zeros, the mean.

Training is the paper's: first the network by a softmax over classes and background (section 2.3), which is ``loss``;
then a linear support vector machine a class and a ridge regression of boxes on the fixed features (appendices B, C),
which ``experiments/rcnn_svm.py`` fits and puts in place of the last layers. Deviations: ``loss`` trains the layer of
the boxes together with the network, so that the detector is complete without the second step; regions are sampled in
each image instead of over a batch; scores of the machines pass through a sigmoid, which keeps their order.
Parameter count: AlexNet's layers but its last, and the outputs at VOC's 20 classes.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax.linen import initializers

from jaxvision.layers.convolution import Dense
from jaxvision.layers.dropout import Dropout
from jaxvision.models.generalized_rcnn import GeneralizedRCNN
from jaxvision.models.resnet import ResNet
from jaxvision.registry import get_model, register
from jaxvision.typing import Array, Float, Regions, Variables


class Pixels(nn.Module):
    """The backbone that computes nothing: its map ``c0`` is the image."""

    in_channels: int = 3

    feature_names: ClassVar[tuple[str, ...]] = ("c0",)

    def __call__(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Float[Array, "b c"], dict[str, Float[Array, "b h w c"]]]:
        return jnp.mean(images, axis=(1, 2)), {"c0": images}


class RegionNetwork(nn.Module):
    """A classifier's maps, two dense layers, and on top of them the class logits (background first); the box offsets of
    each class stand on the classifier's last map, as in appendix C.

    network: the classifier, without its own dense layers. pool_size: side of the warped regions in pixels.
    """

    network: nn.Module
    num_classes: int
    hidden: int = 4096
    pool_size: int = 227
    dropout: float = 0.5
    axis_name: str | None = None

    def setup(self):
        outputs = self.num_classes + 1
        self.fc6, self.fc7 = Dense(self.hidden), Dense(self.hidden)
        self.cls_score = Dense(outputs, kernel_init=initializers.normal(0.01))
        self.bbox_pred = Dense(4 * outputs, kernel_init=initializers.normal(0.001))
        self.drop = Dropout(self.dropout, self.axis_name)

    def __call__(
        self, crops: Float[Array, "n s s c"], *, train: bool = False
    ) -> tuple[Float[Array, "n classes_and_background"], Float[Array, "n classes_and_background 4"]]:
        codes, maps = self.codes(crops, train=train)
        return self.cls_score(codes), self.bbox_pred(maps).reshape(len(crops), -1, 4)

    def codes(
        self, crops: Float[Array, "n s s c"], *, train: bool = False
    ) -> tuple[Float[Array, "n h"], Float[Array, "n d"]]:
        """What the machines see of each region, and what the regression of its box does: the outputs of ``fc7``, and
        the last map in (channel, row, column) order."""
        features = self.network(crops, train=train)[1]
        maps = features[self.network.feature_names[-1]].transpose(0, 3, 1, 2).reshape(len(crops), -1)
        x = self.drop(nn.relu(self.fc6(maps)), train=train)
        return self.drop(nn.relu(self.fc7(x)), train=train), maps


def region_codes(
    model: GeneralizedRCNN, variables: Variables, images: Float[Array, "b h w c"], regions: Regions
) -> tuple[Float[Array, "b n code"], Float[Array, "b n map"]]:
    """``RegionNetwork.codes`` of the regions of each image."""

    def codes(model):
        pooled = model.pool(model.features(images), images.shape[1:3], regions.boxes, model.box_head.pool_size)
        return model.box_head.codes(pooled)

    return tuple(x.reshape(*regions.valid.shape, -1) for x in nn.apply(codes, model)(variables))


def _rcnn(head: RegionNetwork, *, in_channels: int, axis_name: str | None, **options) -> GeneralizedRCNN:
    defaults = {
        "samples": 64,
        "positive_fraction": 0.25,
        "sampling_ratio": 1,
        "aligned": True,
        "nms_threshold": 0.3,
    }
    return GeneralizedRCNN(
        backbone=Pixels(in_channels),
        neck=None,
        proposals=None,
        box_head=head,
        roi_levels=("c0",),
        axis_name=axis_name,
        **(defaults | options),
    )


@register(task="detection")
def rcnn_alexnet(
    backbone: str = "alexnet_2012",
    *,
    num_classes: int = 20,
    in_channels: int = 3,
    axis_name: str | None = None,
    **options,
) -> GeneralizedRCNN:
    """The paper's network (T-Net): 57,728,489 parameters at VOC's 20 classes. backbone: any registered classifier, by
    name."""
    network = get_model(backbone, num_classes=0, in_channels=in_channels, axis_name=axis_name)
    head = RegionNetwork(network, num_classes, axis_name=axis_name)
    return _rcnn(head, in_channels=in_channels, axis_name=axis_name, **({"context": 16} | options))


@register(task="detection")
def rcnn_small(
    *, num_classes: int = 10, in_channels: int = 3, axis_name: str | None = None, **options
) -> GeneralizedRCNN:
    """An R-CNN that trains from scratch on two CPU cores in minutes: regions of 32 pixels with 3 of context, a narrow
    ResNet."""
    network = ResNet((1, 1, 1, 1), "basic", num_classes=0, in_channels=in_channels, width=32, axis_name=axis_name)
    head = RegionNetwork(network, num_classes, hidden=256, pool_size=32, axis_name=axis_name)
    defaults = {"context": 3, "samples": 32, "max_detections": 20, "candidates": 400}
    return _rcnn(head, in_channels=in_channels, axis_name=axis_name, **(defaults | options))
