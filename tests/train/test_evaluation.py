"""Validation on many devices and processes: the figures of one, each image computed once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import classification, detection
from jaxvision import data, get_model, train
from jaxvision.data.source import ground_truth_of
from tests.train.test_detector import CLASSES, CONFIG, SIZE, Blocks
from tests.train.two_processes import CONFIG as OF_CLASSES
from tests.train.two_processes import Pictures, Small

DETECTION = dataclasses.replace(CONFIG, image_size=(SIZE, (64, 60)), eval_batch_size=2, mask_side=28)


class Seen(Blocks):
    """Counts how often each picture is read; with the truth for evaluation."""

    def __init__(self, count):
        super().__init__(count)
        self.read = np.zeros(count, int)

    def __getitem__(self, index):
        self.read[index] += 1
        return super().__getitem__(index)

    def size(self, index):
        return super().__getitem__(index)["image"].shape[:2]

    def ground_truth(self, indices=None):
        chosen = (super(Seen, self).__getitem__(index) for index in (indices or range(len(self))))
        return ground_truth_of(chosen, categories=self.categories, category_ids=self.category_ids)


@pytest.fixture(scope="module")
def detector():
    model = get_model("maskrcnn_small", num_classes=CLASSES, regions=16, score_threshold=0.0)
    return model, jax.jit(model.init)(jax.random.key(0, impl="rbg"), jnp.zeros((1, *SIZE, 3)))


def evaluated(detector, devices, monkeypatch):
    """(figures, results, ids of the images computed, how often each was read) on so many devices."""
    (model, variables), source, ids, found = detector, Seen(21), [], []

    def record(function, chosen):
        place, call = original(function, chosen)

        def recorded(variables, batch):
            ids.extend(batch["image_ids"][batch["valid"]].tolist())
            return call(variables, batch)

        return place, recorded

    def precision(model, part, results):
        found.extend(results)
        return measure(model, part, results)

    original, measure = train.per_device, detection.precision
    with monkeypatch.context() as patched:
        patched.setattr(train, "per_device", record)
        patched.setattr(detection, "precision", precision)
        figures = detection.evaluator(DETECTION, model, source, jax.devices()[:devices])(variables)
    order = np.lexsort([[-one["score"] for one in found], [one["image_id"] for one in found]])
    return figures, [found[place] for place in order], ids, source.read


def test_eight_devices_evaluate_as_one(detector, monkeypatch):
    """Box and mask figures exactly; 21 images in two shapes, so that no batch is full on eight devices."""
    alone, results, ids, read = evaluated(detector, 1, monkeypatch)
    together, shared_results, shared_ids, shared_read = evaluated(detector, 8, monkeypatch)
    for once in (ids, shared_ids):
        assert sorted(once) == list(range(21))
    assert (read == 1).all() and (shared_read == 1).all()
    assert shared_results == results and len(results) > 100
    for name, value in alone.items():
        if name.startswith("val_"):
            np.testing.assert_allclose(together[name], value, rtol=1e-5, err_msg=name)
        else:
            np.testing.assert_equal(together[name], value, err_msg=name)


def test_the_first_images_alone(detector):
    model, variables = detector
    source = Seen(21)
    figures = detection.evaluator(DETECTION, model, source, jax.devices()[:2])(variables, 3)
    assert source.read.tolist() == [1] * 3 + [0] * 18 and figures["val_loss"] > 0


def test_gaps_do_not_count():
    """Rows that are not valid show their device's first valid image, or its first row if none is."""
    valid = np.array([False, True, True, False, False, False])
    batch = {"images": np.arange(6), "valid": valid}
    filled = detection.without_gaps(batch, 3)
    assert filled["images"].tolist() == [1, 1, 2, 2, 4, 4] and filled["valid"] is valid


def test_classifiers_evaluate_on_eight_devices_as_on_one():
    source = Pictures()
    variables = Small().init(jax.random.key(0), jnp.zeros((1, 12, 12, 3)))
    alone, together = (
        classification.evaluator(OF_CLASSES, Small(), source, jax.devices()[:count])(variables) for count in (1, 8)
    )
    assert together == alone and set(alone) == {"top1", "top3", "val_loss"}


def test_subsets_of_sources_without_truth_have_sizes():
    assert data.Subset(Pictures(), [3, 4]).size(1) == (12, 12)
