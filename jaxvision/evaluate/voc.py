"""PASCAL VOC's average precision, and who is taken for whom."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvision.typing import Float, Int

__all__ = ["confusion_table", "voc_average_precision"]


def voc_average_precision(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    iou_threshold: float = 0.5,
    method: str = "all",
) -> dict[str, float]:
    """AP of each category, ``AP/<name>``, and ``mAP``, their mean, as fractions; NaN where there is nothing to find.

    ground_truth: in COCO format; what is ``iscrowd`` counts as difficult, neither found nor missed. results: as COCO's,
    see ``to_results``. method: the area under the precision that is at least so large at some higher recall ("all",
    since 2010), or the mean of that at the recalls 0, 0.1 … 1 ("11", 2007).
    In each image a detection, best first, belongs to the object it overlaps most; it is right if their IoU is at least
    the threshold and no better detection has the object. IoU is of continuous boxes; VOC's own code counts a pixel more
    along each side.
    Raises: ValueError for another method.
    """
    if method not in ("all", "11"):
        raise ValueError(f"method={method!r}; there are 'all' (since 2010) and '11' (2007)")
    summary = {}
    for category in ground_truth["categories"]:
        truth = [item for item in ground_truth["annotations"] if item["category_id"] == category["id"]]
        found = [item for item in results if item["category_id"] == category["id"]]
        summary[f"AP/{category['name']}"] = _average_precision(truth, found, iou_threshold, method)
    known = [value for value in summary.values() if not np.isnan(value)]
    return {"mAP": float(np.mean(known)) if known else float("nan"), **summary}


def confusion_table(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    iou_threshold: float = 0.5,
    min_score: float = 0.5,
) -> Int[np.ndarray, "k1 k1"]:
    """How often an object of a category (row) was found as another (column), categories in the order of the ground
    truth; the last row are detections of no object, the last column objects that were not found.

    Detections of at least ``min_score`` take the object they overlap most among those not yet taken, whatever its
    category, best first, if their IoU is at least the threshold. Crowds take no part.
    """
    place = {category["id"]: index for index, category in enumerate(ground_truth["categories"])}
    table = np.zeros((len(place) + 1, len(place) + 1), int)
    for image in ground_truth["images"]:
        truth = [a for a in ground_truth["annotations"] if a["image_id"] == image["id"] and not a.get("iscrowd")]
        found = [r for r in results if r["image_id"] == image["id"] and r["score"] >= min_score]
        overlap, free = _overlaps(truth, found), np.ones(len(truth), bool)
        for column in np.argsort([-item["score"] for item in found], kind="stable"):
            candidates = np.where(free, overlap[:, column], -1)
            row = int(candidates.argmax()) if len(truth) else -1
            actual = len(place)
            if row >= 0 and candidates[row] >= iou_threshold:
                free[row], actual = False, place[truth[row]["category_id"]]
            table[actual, place[found[column]["category_id"]]] += 1
        for row in np.flatnonzero(free):
            table[place[truth[row]["category_id"]], -1] += 1
    return table


def _average_precision(truth, found, iou_threshold: float, method: str) -> float:
    count = sum(not item.get("iscrowd") for item in truth)
    if count == 0:
        return float("nan")
    right, scores = [], []
    for image in sorted({item["image_id"] for item in found}):
        objects = [item for item in truth if item["image_id"] == image]
        detections = sorted((item for item in found if item["image_id"] == image), key=lambda item: -item["score"])
        overlap, taken = _overlaps(objects, detections), set()
        for column, detection in enumerate(detections):
            row = int(overlap[:, column].argmax()) if objects else -1
            hit = row >= 0 and overlap[row, column] >= iou_threshold
            if hit and objects[row].get("iscrowd"):
                continue
            right.append(hit and row not in taken)
            scores.append(detection["score"])
            taken |= {row} if hit else set()
    order = np.argsort(-np.array(scores, np.float64), kind="stable")
    hits = np.cumsum(np.array(right, np.float64)[order])
    return _area(hits / count, hits / np.arange(1, len(hits) + 1), method)


def _area(recall: Float[np.ndarray, " n"], precision: Float[np.ndarray, " n"], method: str) -> float:
    """Of the envelope: at each recall the best precision at that recall or a higher one."""
    if method == "11":
        at = [precision[recall >= level - 1e-12].max(initial=0) for level in np.linspace(0, 1, 11)]
        return float(np.mean(at))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0) * envelope))


def _overlaps(truth, found) -> Float[np.ndarray, "g n"]:
    """IoU of each object with each detection."""
    from pycocotools import mask as coco_mask

    if not truth or not found:
        return np.zeros((len(truth), len(found)))
    boxes = (np.array([item["bbox"] for item in items], np.float64) for items in (found, truth))
    return coco_mask.iou(*boxes, [0] * len(truth)).T
