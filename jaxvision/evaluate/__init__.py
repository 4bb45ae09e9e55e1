"""How good predictions are: states that are merged by addition, and COCO's average precision."""

from jaxvision.evaluate.classification import Mean, mean, merge, top_k
from jaxvision.evaluate.coco import average_precision, to_results

__all__ = ["Mean", "average_precision", "mean", "merge", "to_results", "top_k"]
