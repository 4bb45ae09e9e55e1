"""Importing this package registers every model; one line a family."""

from jaxvision.models import generalized_rcnn, resnet, squeezenet

__all__ = ["generalized_rcnn", "resnet", "squeezenet"]
