import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from jaxvision.evaluate.classification import Mean, mean, merge, top_k
from jaxvision.evaluate.coco import average_precision, to_results
from jaxvision.typing import Detections

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]


@given(seed=st.integers(0, 10_000), k=st.integers(1, 4), ties=st.booleans())
@settings(max_examples=25, deadline=None)
def test_top_k_is_lax_top_k(seed, k, ties):
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, 3, (9, 4)).astype(np.float32) if ties else rng.normal(size=(9, 4)).astype(np.float32)
    labels, valid = rng.integers(0, 4, 9), rng.random(9) < 0.7
    _, best = jax.lax.top_k(logits, k)
    expected = sum(label in row for label, row, v in zip(labels, np.asarray(best), valid) if v)
    state = top_k(logits, labels, valid, k=k)
    assert state.total == expected and state.count == valid.sum()


def test_mean_merges_by_addition():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(12, 5)).astype(np.float32), rng.integers(0, 5, 12)
    valid = np.arange(12) < 10  # the last batch is padded
    whole = top_k(logits, labels, valid, k=2)
    merged = Mean()
    for part in np.split(np.arange(12), 3):
        merged = merged.merge(jax.jit(top_k, static_argnames="k")(logits[part], labels[part], valid[part], k=2))
    assert merged.result() == whole.result() == float(whole.total) / 10
    assert np.isnan(Mean().result())
    assert np.isnan(top_k(logits[:0], labels[:0], valid[:0], k=1).result())


def test_mean_of_values_ignores_padding():
    values = np.array([1.0, 2.0, np.nan], np.float32)
    states = [mean(values, np.array([True, True, False])), mean(values, np.array([False, True, False]))]
    assert merge(states).result() == pytest.approx(5 / 3)
    gradient = jax.grad(lambda v: mean(v, np.array([True, False, False])).total)(values)
    np.testing.assert_array_equal(gradient, [1, 0, 0])
    assert np.isnan(merge([]).result())


def test_top_k_of_bad_rows():
    logits = np.array([[np.nan, 1, 2], [3, 2, 1], [3, 2, 1], [3, 2, 1]], np.float32)
    state = top_k(logits, np.array([2, -1, 3, 0]), np.ones(4, bool), k=1)
    assert state == (1, 4)
    with pytest.raises(ValueError, match="k=4"):
        top_k(logits, np.zeros(4, int), np.ones(4, bool), k=4)


def soft_disc():
    """A smooth edge, or the cut at 0.5 is a staircase of mask cells."""
    grid = (np.arange(28) + 0.5) / 28 * 2 - 1
    distance = np.sqrt(grid[:, None] ** 2 + grid[None, :] ** 2)
    return np.clip((1 - distance) * 14 + 0.5, 0, 1).astype(np.float32)


def scenes(number, *, seed=0, size=(120, 160)):
    """A COCO dataset of ellipses, and detections that are exactly these, on images shrunk by a half in a padding."""
    rng = np.random.default_rng(seed)
    images, annotations, boxes = [], [], np.zeros((number, 4, 4), np.float32)
    labels, masks = rng.integers(0, 2, (number, 4)), np.zeros((number, 4, 28, 28), np.float32)
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    for i in range(number):
        images.append({"id": 100 + i, "height": size[0], "width": size[1]})
        for j in range(4):
            w, h = rng.uniform(20, 60, 2)
            left, top = rng.uniform(0, size[1] - w), rng.uniform(0, size[0] - h)
            inside = ((x - left - w / 2) / (w / 2)) ** 2 + ((y - top - h / 2) / (h / 2)) ** 2 <= 1
            rle = coco_mask.encode(np.asfortranarray(inside.astype(np.uint8)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 + i,
                    "category_id": CATEGORIES[labels[i, j]]["id"],
                    "bbox": [left, top, w, h],
                    "area": float(inside.sum()),
                    "iscrowd": 0,
                    "segmentation": {"size": list(size), "counts": rle["counts"].decode()},
                }
            )
            boxes[i, j] = np.array([left, top, left + w, top + h]) / 2
            masks[i, j] = soft_disc()
    detections = Detections(
        boxes=boxes,
        scores=rng.uniform(0.5, 1, (number, 4)).astype(np.float32),
        labels=labels,
        valid=np.ones((number, 4), bool),
        masks=masks,
    )
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}, detections


def results_of(detections, *, size=(120, 160), **options):
    number = len(detections.boxes)
    return to_results(
        detections,
        image_ids=np.arange(number) + 100,
        image_sizes=np.tile(np.array(size) / 2, (number, 1)),
        original_sizes=np.tile(np.array(size), (number, 1)),
        category_ids=[3, 7],
        **options,
    )


def test_perfect_detections(capsys):
    truth, detections = scenes(5)
    results = results_of(jax.device_put(detections))
    assert json.loads(json.dumps(results)) == results
    assert set(results[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    box = average_precision(truth, results)
    assert box["AP"] == pytest.approx(1) and box["AR100"] == pytest.approx(1)
    assert box["AP/cat"] == pytest.approx(1) and box["AP/dog"] == pytest.approx(1)
    assert np.isnan(box["APl"])  # no object is that large
    assert average_precision(truth, results, iou_type="segm")["AP"] > 0.95
    assert capsys.readouterr().out == ""


def test_the_same_numbers_as_pycocotools_prints():
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, detections = scenes(8)
    rng = np.random.default_rng(1)
    detections = detections._replace(
        boxes=detections.boxes + rng.normal(size=detections.boxes.shape).astype(np.float32) * 2,
        labels=np.where(rng.random(detections.labels.shape) < 0.2, 1 - detections.labels, detections.labels),
    )
    results = results_of(detections)
    coco = COCO()
    coco.dataset = truth
    coco.createIndex()
    for iou_type in ("bbox", "segm"):
        judged = [{k: v for k, v in r.items() if iou_type == "bbox" or k != "bbox"} for r in results]
        evaluation = COCOeval(coco, coco.loadRes(judged), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        ours = list(average_precision(truth, results, iou_type=iou_type).values())[:12]
        np.testing.assert_allclose(np.nan_to_num(ours, nan=-1), evaluation.stats, atol=1e-12)
        assert 0.05 < ours[0] < 0.95


def test_nothing_found_and_nothing_to_find():
    truth, detections = scenes(2)
    nothing = detections._replace(valid=np.zeros((2, 4), bool))
    assert results_of(nothing) == []
    for iou_type in ("bbox", "segm"):
        summary = average_precision(truth, [], iou_type=iou_type)
        assert summary["AP"] == 0 and summary["AR100"] == 0 and summary["AP/cat"] == 0
    empty = {**truth, "annotations": []}
    assert np.isnan(average_precision(empty, results_of(detections))["AP"])
    with pytest.raises(ValueError, match=r"\[100, 101\]"):
        average_precision({**truth, "images": []}, results_of(detections))
    with pytest.raises(ValueError, match="'boxes'"):
        average_precision(truth, [], iou_type="boxes")


def test_class_agnostic_recall():
    """Wrong labels count; boxes beyond the tenth, of lower scores, do not; no box is two objects."""
    truth, detections = scenes(3)
    wrong = results_of(detections._replace(labels=1 - detections.labels))
    assert average_precision(truth, wrong)["R10_50"] < 0.2
    found = average_precision(truth, wrong, class_agnostic=True)
    assert found["R10_50"] == found["AR10"] == pytest.approx(1)
    assert "AP/cat" not in found
    far = [{**wrong[0], "bbox": [0.0, 0.0, 1.0, 1.0], "score": 2.0}] * 8  # only two of the first image's four are left
    assert average_precision(truth, wrong + far, class_agnostic=True)["R10_50"] == pytest.approx(10 / 12)
    x, y, w, h = wrong[0]["bbox"]
    shifted = [{**result, "bbox": [x, y, w, h]} for result in wrong[:4]] + wrong[4:]
    assert average_precision(truth, shifted, class_agnostic=True)["R10_50"] == pytest.approx(9 / 12)
    loose = [{**result, "bbox": [*result["bbox"][:3], 0.6 * result["bbox"][3]]} for result in wrong]
    found = average_precision(truth, loose, class_agnostic=True)
    assert found["R10_50"] == pytest.approx(1) and 0.1 < found["AR10"] < 0.4


def test_padding_rows_and_invalid_detections_are_left_out():
    _, detections = scenes(3)
    detections = detections._replace(valid=np.array([[1, 0, 0, 1], [1, 1, 1, 1], [0, 1, 0, 0]], bool))
    results = results_of(detections, valid=np.array([True, False, True]))
    assert [result["image_id"] for result in results] == [100, 100, 102]
    expected = detections.boxes[2, 1] * 2
    np.testing.assert_allclose(results[2]["bbox"], [*expected[:2], *(expected[2:] - expected[:2])], rtol=1e-5)


def slow_paste(mask, box, size):
    """Bilinear samples of a mask at each pixel centre, zeros around it, in plain loops."""
    m, out = len(mask), np.zeros(size)
    for y in range(size[0]):
        for x in range(size[1]):
            v = (y + 0.5 - box[1]) / (box[3] - box[1]) * m - 0.5
            u = (x + 0.5 - box[0]) / (box[2] - box[0]) * m - 0.5
            for i in range(int(np.floor(v)), int(np.floor(v)) + 2):
                for j in range(int(np.floor(u)), int(np.floor(u)) + 2):
                    if 0 <= i < m and 0 <= j < m:
                        out[y, x] += mask[i, j] * (1 - abs(v - i)) * (1 - abs(u - j))
    return out >= 0.5


BOXES = [
    [3.2, 4.1, 14.8, 15.9],
    [-5, -4, 9.5, 30],  # beyond three sides
    [0, 0, 20, 17],  # the whole image: runs pass from column to column
    [18.5, 2, 40, 11],
    [-20, -20, -3, -3],  # outside
    [25, 20, 30, 30],
    [5, 5, 5, 12],  # empty
    [7.4, 7.4, 7.5, 7.5],  # within a pixel, off its centre
]


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # pycocotools' own decode
@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("full", [False, True])
def test_masks_are_pasted_in_the_original_image(box, full):
    size = (17, 20)
    mask = np.ones((7, 7)) if full else np.random.default_rng(0).random((7, 7))
    detections = Detections(
        boxes=np.array(box, np.float32).reshape(1, 1, 4) / 2,
        scores=np.ones((1, 1), np.float32),
        labels=np.zeros((1, 1), int),
        valid=np.ones((1, 1), bool),
        masks=mask.reshape(1, 1, 7, 7).astype(np.float32),
    )
    rle = results_of(detections, size=size)[0]["segmentation"]
    pasted = coco_mask.decode(rle).astype(bool)
    expected = np.zeros(size, bool) if box[2] == box[0] else slow_paste(mask, box, size)
    np.testing.assert_array_equal(pasted, expected)
    assert rle == {**coco_mask.encode(np.asfortranarray(expected, np.uint8)), "counts": rle["counts"]}


def test_keypoints_of_any_number():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform(10, 60, (1, 2, 5, 2)), np.full((1, 2, 5, 1), 2.0)], -1).astype(np.float32)
    corners = np.concatenate([points[..., :2].min(2), points[..., :2].max(2)], -1)
    detections = Detections(
        boxes=corners, scores=np.full((1, 2), 0.9, np.float32), labels=np.zeros((1, 2), int),
        valid=np.ones((1, 2), bool), keypoints=points,
    )  # fmt: skip
    results = results_of(detections)
    np.testing.assert_allclose(results[1]["keypoints"][3:5], points[0, 1, 1, :2] * 2 - 0.5, rtol=1e-5)
    category = {"id": 3, "name": "cat", "keypoints": list("abcde")}
    annotations = [{**result, "id": i + 1, "num_keypoints": 5, "iscrowd": 0} for i, result in enumerate(results)]
    truth = {"images": [{"id": 100}], "annotations": annotations, "categories": [category]}
    summary = average_precision(truth, results, iou_type="keypoints")
    assert summary["AP"] == pytest.approx(1)
    assert set(summary) == {"AP", "AP50", "AP75", "APm", "APl", "AR", "ARm", "ARl", "AP/cat"}
