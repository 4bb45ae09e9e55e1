"""Importing this package registers every model; one line a family."""

from jaxvision.models import generalized_rcnn, mnasnet, mobilenet, resnet, shufflenet, squeezenet

__all__ = ["generalized_rcnn", "mnasnet", "mobilenet", "resnet", "shufflenet", "squeezenet"]
