"""COCO results and average precision, through pycocotools."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvision.typing import Array, Bool, Detections, Float, Int

__all__ = ["average_precision", "to_results"]


def to_results(
    detections: Detections,
    *,
    image_ids: Int[Array, " b"],
    image_sizes: Float[Array, "b 2"] | Int[Array, "b 2"],
    original_sizes: Float[Array, "b 2"] | Int[Array, "b 2"],
    category_ids: Sequence[int],
    valid: Bool[Array, " b"] | None = None,
) -> list[dict[str, Any]]:
    """Detections of a batch as COCO results, in pixels of the original images; ready for JSON.

    image_sizes: (h, w) of each image inside the padding, which is what boxes are relative to. original_sizes: (h, w)
    of the files. category_ids: of each label. valid: the rows that are images, not padding; all if None.
    Boxes become [x, y, width, height]; masks are pasted with bilinear samples at the pixel centres, cut at 0.5 and
    stored as RLE; keypoints lose the half pixel (COCO's coordinates count from the centre of the first pixel).
    """
    detections = Detections(*(None if field is None else np.asarray(field) for field in detections))
    image_sizes, original_sizes = np.asarray(image_sizes, np.float64), np.asarray(original_sizes, np.float64)
    results = []
    for i in range(len(detections.boxes)):
        if valid is not None and not valid[i]:
            continue
        scale = (original_sizes[i] / image_sizes[i])[::-1]  # x, y
        size = (int(original_sizes[i, 0]), int(original_sizes[i, 1]))
        for j in np.flatnonzero(detections.valid[i]):
            box = detections.boxes[i, j].astype(np.float64) * np.tile(scale, 2)
            result = {
                "image_id": int(image_ids[i]),
                "category_id": int(category_ids[detections.labels[i, j]]),
                "bbox": [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])],
                "score": float(detections.scores[i, j]),
            }
            if detections.masks is not None:
                result["segmentation"] = _pasted(detections.masks[i, j].astype(np.float32), box, size)
            if detections.keypoints is not None:
                points = detections.keypoints[i, j].astype(np.float64)
                points[:, :2] = points[:, :2] * scale[None, :] - 0.5
                result["keypoints"] = points.reshape(-1).tolist()
            results.append(result)
    return results


def average_precision(
    ground_truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    iou_type: str = "bbox",
    class_agnostic: bool = False,
) -> dict[str, float]:
    """COCO's average precision and recall as fractions, over all images of ``ground_truth``.

    ground_truth: a COCO dataset (``images``, ``annotations``, ``categories``). iou_type: ``bbox``, ``segm`` or
    ``keypoints``. class_agnostic: any box may be any object, whatever their categories.
    Keys: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl (for keypoints: AP, AP50, AP75, APm, APl, AR,
    ARm, ARl); R10_50, the recall at an IoU of 0.5 with the 10 best boxes of an image (not for keypoints); and
    ``AP/<category name>`` of each class, unless class_agnostic. NaN where there is nothing to find; without results
    everything else is 0. Keypoint sigmas are the category's own ``sigmas``, else COCO's for 17 points, else 0.05.
    Raises: ValueError for another ``iou_type``, or results for images that are not in ``ground_truth``.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if iou_type not in ("bbox", "segm", "keypoints"):
        raise ValueError(f"iou_type={iou_type!r}; choose bbox, segm or keypoints")
    known = {image["id"] for image in ground_truth["images"]}
    unknown = sorted({result["image_id"] for result in results} - known)
    if unknown:
        raise ValueError(f"results for images that the ground truth has not: {unknown[:10]}")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints as it goes
        truth, found = COCO(), COCO()
        truth.dataset = {**ground_truth, "annotations": _annotations(ground_truth["annotations"])}
        truth.createIndex()
        found.dataset = {**ground_truth, "annotations": _detected(results, iou_type)}
        found.createIndex()
        evaluation = COCOeval(truth, found, iou_type)
        if iou_type == "keypoints":
            evaluation.params.kpt_oks_sigmas = _sigmas(ground_truth["categories"])
        evaluation.params.useCats = int(not class_agnostic)
        evaluation.evaluate()
        evaluation.accumulate()
    return _summary(evaluation)


def _pasted(mask: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """RLE of a box's probabilities [m, m], sampled at the pixel centres of an image and cut at 0.5. Only the box is
    touched: a full image for each mask takes 50 times as long."""
    left, top, right, bottom = box
    rows, first_row = _samples(top, bottom, size=size[0], cells=mask.shape[0])
    columns, first_column = _samples(left, right, size=size[1], cells=mask.shape[1])
    bitmap = columns @ mask.T @ rows.T >= 0.5  # [columns, rows], the order of the run lengths
    return _rle(bitmap, first_row, first_column, size)


def _samples(low: float, high: float, *, size: int, cells: int) -> tuple[np.ndarray, int]:
    """Bilinear weights [pixels, cells] of the pixels in low … high, inside the image, and the first of them; zero lies
    beyond the outer cells' centres, as in ops.masks.paste."""
    # Half a cell further than the box, as a sample there still sees the outer cell.
    margin = (high - low) / cells / 2
    first = max(int(np.floor(low - margin)), 0)
    last = max(min(int(np.ceil(high + margin)), size), first)
    centres = np.arange(first, last) + 0.5
    at = (centres - low) * (cells / max(high - low, 1e-6)) - 0.5
    weights = np.maximum(1 - np.abs(at[:, None] - np.arange(cells)[None, :]), 0)
    return weights.astype(np.float32), first


def _rle(bitmap: np.ndarray, first_row: int, first_column: int, size: tuple[int, int]) -> dict[str, Any]:
    """COCO's compressed run lengths (down the columns) of an image of zeros with ``bitmap`` [columns, rows] in it."""
    from pycocotools import mask as coco_mask

    columns, rows = bitmap.shape
    padded = np.zeros((columns, rows + 2), bool)
    padded[:, 1:-1] = bitmap
    changes = np.flatnonzero(padded[:, 1:] != padded[:, :-1])  # where runs begin and end, in turn
    column, row = np.divmod(changes, rows + 1)
    edges = (column + first_column) * size[0] + row + first_row
    begins, ends = edges[0::2], edges[1::2]
    # A run to the bottom and one from the top of the next column are one.
    apart = begins[1:] != ends[:-1]
    begins = begins[np.concatenate([[True], apart])] if len(begins) else begins
    ends = ends[np.concatenate([apart, [True]])] if len(ends) else ends
    edges = np.stack([begins, ends], axis=1).reshape(-1)
    counts = np.diff(np.concatenate([[0], edges, [size[0] * size[1]]]))
    rle = coco_mask.frPyObjects({"size": list(size), "counts": counts.tolist()}, *size)
    return {"size": list(size), "counts": rle["counts"].decode("ascii")}


def _annotations(annotations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """With ``iscrowd`` and ``area``, which own data often lacks."""
    return [
        {"iscrowd": 0, "area": annotation["bbox"][2] * annotation["bbox"][3], **annotation}
        for annotation in annotations
    ]


def _detected(results: Sequence[Mapping[str, Any]], iou_type: str) -> list[dict[str, Any]]:
    """Results as annotations; their area, which sorts them into small, medium and large, is that of what is judged."""
    from pycocotools import mask as coco_mask

    annotations = []
    for number, result in enumerate(results, start=1):
        if iou_type == "bbox":
            area = result["bbox"][2] * result["bbox"][3]
        elif iou_type == "segm":
            area = float(coco_mask.area(result["segmentation"]))
        else:
            points = np.reshape(result["keypoints"], (-1, 3))[:, :2]
            area = float(np.prod(points.max(0) - points.min(0)))
        annotations.append({**result, "id": number, "iscrowd": 0, "area": area})
    return annotations


def _sigmas(categories: Sequence[Mapping[str, Any]]) -> np.ndarray:
    from pycocotools.cocoeval import Params

    category = next(category for category in categories if "keypoints" in category)
    if "sigmas" in category:
        return np.asarray(category["sigmas"], np.float64)
    standard = Params(iouType="keypoints").kpt_oks_sigmas
    points = len(category["keypoints"])
    return standard if points == len(standard) else np.full(points, 0.05)


def _summary(evaluation: Any) -> dict[str, float]:
    params = evaluation.params
    precision = evaluation.eval["precision"]  # [IoU, recall, class, area, most detections]; -1 where nothing is to find
    recall = evaluation.eval["recall"]  # [IoU, class, area, most detections]

    def mean(values: np.ndarray) -> float:
        values = values[values > -1]
        return float(values.mean()) if values.size else float("nan")

    def at(iou: float) -> int:
        return int(np.argmin(np.abs(params.iouThrs - iou)))

    areas = {name[0]: i for i, name in enumerate(params.areaRngLbl) if name != "all"}
    summary = {
        "AP": mean(precision[:, :, :, 0, -1]),
        "AP50": mean(precision[at(0.5), :, :, 0, -1]),
        "AP75": mean(precision[at(0.75), :, :, 0, -1]),
    }
    summary |= {f"AP{letter}": mean(precision[:, :, :, i, -1]) for letter, i in areas.items()}
    if len(params.maxDets) == 1:
        summary["AR"] = mean(recall[:, :, 0, 0])
    else:
        summary |= {f"AR{most}": mean(recall[:, :, 0, i]) for i, most in enumerate(params.maxDets)}
    summary |= {f"AR{letter}": mean(recall[:, :, i, -1]) for letter, i in areas.items()}
    if 10 in params.maxDets:
        summary["R10_50"] = mean(recall[at(0.5), :, 0, params.maxDets.index(10)])
    if not params.useCats:
        return summary
    names = {category["id"]: category["name"] for category in evaluation.cocoGt.dataset["categories"]}
    for i, identifier in enumerate(params.catIds):
        summary[f"AP/{names[identifier]}"] = mean(precision[:, :, i, 0, -1])
    return summary
