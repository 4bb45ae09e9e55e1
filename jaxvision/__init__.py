"""Computer vision as differentiable programming: pure functions in JAX and Flax, from classification to dense pose.

    import jaxvision as jv

    model = jv.get_model("resnet50", num_classes=10)
    variables = model.init(key, images)
    logits, features = model.apply(variables, images)

``jaxvision.data``, ``train``, ``evaluate`` and ``visualize`` are imported by name; which load more.
"""

from jaxvision import losses, models, ops, typing
from jaxvision.inference import predict
from jaxvision.models.folding import fold_batch_norm
from jaxvision.registry import get_model, list_models, register
from jaxvision.saliency import explain
from jaxvision.typing import Detections, Segment, Segmentation, Targets
from jaxvision.version import __version__
from jaxvision.weights import from_torch, get_record, list_weights, load_weights, save_weights, to_torch

__all__ = [
    "Detections",
    "Segment",
    "Segmentation",
    "Targets",
    "__version__",
    "explain",
    "fold_batch_norm",
    "from_torch",
    "get_model",
    "get_record",
    "list_models",
    "list_weights",
    "load_weights",
    "losses",
    "models",
    "ops",
    "predict",
    "register",
    "save_weights",
    "to_torch",
    "typing",
]
