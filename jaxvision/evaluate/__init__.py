"""How good predictions are: states that are merged by addition, COCO's and VOC's average precision, who is taken for
whom."""

from jaxvision.evaluate.classification import Mean, mean, merge, top_k
from jaxvision.evaluate.coco import average_precision, to_results
from jaxvision.evaluate.segmentation import border_counts, border_score, confusion, segmentation_figures
from jaxvision.evaluate.voc import confusion_table, voc_average_precision

__all__ = [
    "Mean",
    "average_precision",
    "border_counts",
    "border_score",
    "confusion",
    "confusion_table",
    "mean",
    "merge",
    "segmentation_figures",
    "to_results",
    "top_k",
    "voc_average_precision",
]
