"""Tables and figures of maps of classes against loops over pixels."""

import jax
import numpy as np

from jaxvision import evaluate
from jaxvision.typing import IGNORE


def maps(seed=0, k=4, shape=(2, 9, 11)):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, k, shape)
    labels = np.where(rng.random(shape) < 0.6, truth, rng.integers(0, k, shape))
    truth[rng.random(shape) < 0.2] = IGNORE
    return labels, truth


def test_confusion_counts_pixels():
    labels, truth = maps()
    want = np.zeros((4, 4), int)
    for row, column in zip(truth.ravel(), labels.ravel()):
        if row != IGNORE:
            want[row, column] += 1
    count = jax.jit(evaluate.confusion, static_argnames="num_classes")
    np.testing.assert_array_equal(count(labels, truth.astype(np.uint8), num_classes=4), want)
    padding = np.where(truth == IGNORE, -1, labels)  # as a segmenter marks what is outside the image
    np.testing.assert_array_equal(count(padding, truth, num_classes=4), want)
    assert not np.asarray(evaluate.confusion(labels, np.full_like(truth, IGNORE), num_classes=4)).any()


def test_figures_by_their_definitions():
    labels, truth = maps()
    table = np.asarray(evaluate.confusion(labels, truth, num_classes=4))
    known = truth != IGNORE
    iou = [((labels == k) & (truth == k)).sum() / (((labels == k) | (truth == k)) & known).sum() for k in range(4)]
    share = [(truth == k).sum() / known.sum() for k in range(4)]
    figures = evaluate.segmentation_figures(table)
    np.testing.assert_allclose(figures["IoU"], iou)
    np.testing.assert_allclose(figures["mIoU"], np.mean(iou))
    np.testing.assert_allclose(figures["fwIoU"], np.dot(share, iou))
    np.testing.assert_allclose(figures["pixel_accuracy"], (labels == truth)[known].mean())
    recall = [(labels == k)[truth == k].mean() for k in range(4)]
    np.testing.assert_allclose(figures["mean_accuracy"], np.mean(recall))


def test_classes_that_are_not_there():
    """A class that is neither there nor found has no IoU; one that is only found has 0; nothing at all is NaN."""
    table = np.array([[5, 1, 0], [0, 0, 0], [0, 0, 0]])
    figures = evaluate.segmentation_figures(table)
    np.testing.assert_array_equal(figures["IoU"], [5 / 6, 0, np.nan])
    assert figures["mIoU"] == 5 / 12 and figures["mean_accuracy"] == 5 / 6
    nothing = evaluate.segmentation_figures(np.zeros((3, 3), int))
    assert all(np.isnan(value).all() for value in nothing.values())


def border(mask, known):
    """Pixels of the mask with a known neighbour in their row or column that is outside it."""
    found = set()
    for y, x in zip(*np.nonzero(mask)):
        for j, i in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= j < mask.shape[0] and 0 <= i < mask.shape[1] and known[j, i] and not mask[j, i]:
                found.add((y, x))
    return found


def near(pixels, others, tolerance):
    return sum(any(max(abs(y - j), abs(x - i)) <= tolerance for j, i in others) for y, x in pixels)


def test_border_counts_by_loops():
    labels, truth = maps(seed=1, k=3, shape=(1, 12, 13))
    got = np.asarray(evaluate.border_counts(labels, truth, num_classes=3, tolerance=1))
    known = truth[0] != IGNORE
    for k in range(3):
        found, true = border((labels[0] == k) & known, known), border(truth[0] == k, known)
        assert got[k].tolist() == [near(found, true, 1), len(found), near(true, found, 1), len(true)]


def test_border_score():
    truth = np.zeros((1, 20, 20), int)
    truth[0, :, 10:] = 1

    def score(by, tolerance=3):
        moved = np.roll(truth, by, axis=2)
        moved[:, :, :5], moved[:, :, 15:] = 0, 1
        return evaluate.border_score(evaluate.border_counts(moved, truth, num_classes=3, tolerance=tolerance))

    assert score(0) == score(2) == 1 and score(2, tolerance=1) == 0
    assert np.isnan(evaluate.border_score(np.zeros((3, 4), int)))
