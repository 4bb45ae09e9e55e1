"""VOC's AP by hand, and the confusion table."""

import numpy as np
import pytest

from jaxvision import evaluate

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 9, "name": "cow"}]


def truth(*annotations):
    """(image, category, box, crowd)"""
    return {
        "images": [{"id": 1}, {"id": 2}],
        "categories": CATEGORIES,
        "annotations": [dict(image_id=i, category_id=c, bbox=b, iscrowd=d) for i, c, b, d in annotations],
    }


def result(image, category, box, score):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


A, B, C = [0, 0, 10, 10], [20, 0, 10, 10], [0, 20, 10, 10]
TRUTH = truth((1, 3, A, 0), (1, 3, B, 0), (2, 3, A, 0), (2, 3, C, 1), (2, 7, B, 0))
FOUND = [
    result(1, 3, A, 0.9),  # right
    result(1, 3, [0, 1, 10, 10], 0.8),  # again: wrong
    result(2, 3, C, 0.7),  # difficult: does not count
    result(2, 3, A, 0.6),  # right
    result(2, 3, B, 0.5),  # there is a dog: wrong
    result(1, 3, B, 0.4),  # right
]


def test_area_under_the_envelope():
    """Right, wrong, right, wrong, right of three: recalls 1/3, 2/3, 1 at precisions 1, 2/3, 3/5."""
    found = evaluate.voc_average_precision(TRUTH, FOUND)
    assert found["AP/cat"] == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert found["AP/dog"] == 0 and np.isnan(found["AP/cow"])
    assert found["mAP"] == pytest.approx(found["AP/cat"] / 2)


def test_eleven_points():
    """Recalls 0 ... 0.3 are reached at precision 1, 0.4 ... 0.6 at 2/3, 0.7 ... 1 at 3/5."""
    found = evaluate.voc_average_precision(TRUTH, FOUND, method="11")
    assert found["AP/cat"] == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 * 3 / 5) / 11)


def test_recalls_that_are_not_reached_count_as_nothing():
    found = evaluate.voc_average_precision(TRUTH, FOUND[:1], method="11")
    assert found["AP/cat"] == pytest.approx(4 / 11)
    assert evaluate.voc_average_precision(TRUTH, FOUND[:1])["AP/cat"] == pytest.approx(1 / 3)


def test_an_overlap_at_the_threshold_is_right():
    half = [result(1, 3, [0, 0, 10, 5], 0.9)]
    assert evaluate.voc_average_precision(truth((1, 3, A, 0)), half)["AP/cat"] == 1
    assert evaluate.voc_average_precision(truth((1, 3, A, 0)), half, iou_threshold=0.51)["AP/cat"] == 0


def test_nothing_found_and_nothing_to_find():
    assert evaluate.voc_average_precision(TRUTH, [])["mAP"] == 0
    assert np.isnan(evaluate.voc_average_precision(truth(), FOUND)["mAP"])
    with pytest.raises(ValueError, match="'12'"):
        evaluate.voc_average_precision(TRUTH, FOUND, method="12")


def test_confusion_table():
    table = evaluate.confusion_table(TRUTH, FOUND, min_score=0.45)
    wanted = np.zeros((4, 4), int)
    wanted[0, 0] = 2  # two cats as cats
    wanted[0, 3] = 1  # a cat was missed
    wanted[1, 0] = 1  # the dog was taken for a cat
    wanted[3, 0] = 2  # no object: found again, and the difficult one, which takes no part
    np.testing.assert_array_equal(table, wanted)
