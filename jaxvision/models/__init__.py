"""Importing this package registers every model; one line a family."""

from jaxvision.models import (
    alexnet,
    densenet,
    generalized_rcnn,
    googlenet,
    inception,
    mnasnet,
    mobilenet,
    multibox,
    resnet,
    retinanet,
    shufflenet,
    squeezenet,
    ssd,
    vgg,
    yolo,
)

__all__ = [
    "alexnet",
    "densenet",
    "generalized_rcnn",
    "googlenet",
    "inception",
    "mnasnet",
    "mobilenet",
    "multibox",
    "resnet",
    "retinanet",
    "shufflenet",
    "squeezenet",
    "ssd",
    "vgg",
    "yolo",
]
