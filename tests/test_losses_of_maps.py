"""Losses of maps of classes against slow loops from their papers, finite differences, and images without any class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxvision import losses
from jaxvision.typing import IGNORE

K = 3


def example(dtype=np.float64):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 5, 6, K)).astype(dtype)
    labels = rng.integers(0, K, (2, 5, 6))
    labels[0][labels[0] == 2] = 1  # an image without class 2
    labels[:, 1:3, 2] = IGNORE
    return logits, labels


def softmax(logits):
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


LOSSES = {
    "cross_entropy": lambda x, y: losses.weighted_mean(*losses.pixel_cross_entropy(x, y)),
    "focal": lambda x, y: losses.weighted_mean(*losses.pixel_cross_entropy(x, y, gamma=2.0)),
    "class_weights": lambda x, y: losses.weighted_mean(
        *losses.pixel_cross_entropy(x, y, class_weights=np.array([1.0, 2.0, 0.5]))
    ),
    "hardest": lambda x, y: hardest_mean(x, y),
    "dice": lambda x, y: jnp.mean(losses.dice(x, y)),
    "lovasz": lambda x, y: jnp.mean(losses.lovasz_softmax(x, y)),
    "boundary": lambda x, y: jnp.mean(losses.boundary(x, y)),
}


def hardest_mean(logits, labels):
    values, weights = losses.pixel_cross_entropy(logits, labels)
    return losses.weighted_mean(values, losses.hardest(values, weights, share=0.3))


def slow_pixels(logits, labels, class_weights=(1, 1, 1), gamma=0.0):
    total = count = 0.0
    for x, y in zip(logits.reshape(-1, K), labels.ravel()):
        if y != IGNORE:
            p = softmax(x)[y]
            total -= class_weights[y] * (1 - p) ** gamma * np.log(p)
            count += class_weights[y]
    return total / count


def slow_hardest(logits, labels):
    kept = []
    for image, own in zip(logits, labels):
        values = sorted((-np.log(softmax(x)[y]) for x, y in zip(image.reshape(-1, K), own.ravel()) if y != IGNORE))
        kept += values[-int(np.ceil(0.3 * len(values))) :]
    return np.mean(kept)


def slow_dice(logits, labels):
    result = []
    for image, own in zip(logits, labels):
        known, p = own != IGNORE, softmax(image)
        scores = [
            (2 * p[own == k, k].sum() + 1) / (p[known, k].sum() + (own == k).sum() + 1)
            for k in range(K)
            if (own == k).any()
        ]
        result.append(1 - np.mean(scores))
    return np.mean(result)


def slow_lovasz(logits, labels):
    """The extension as the sum over sorted errors of the increases of the Jaccard loss of growing sets of mistakes."""
    result = []
    for image, own in zip(logits, labels):
        known = own != IGNORE
        p, y = softmax(image)[known], own[known]
        terms = []
        for k in np.unique(y):
            errors = np.where(y == k, 1 - p[:, k], p[:, k])
            order, total, before, wrong = np.argsort(-errors), 0.0, 0.0, np.zeros(len(y), bool)
            for pixel in order:
                wrong[pixel] = True
                guess = (y == k) ^ wrong
                after = 1 - (guess & (y == k)).sum() / (guess | (y == k)).sum()
                total += errors[pixel] * (after - before)
                before = after
            terms.append(total)
        result.append(np.mean(terms))
    return np.mean(result)


SLOW = {
    "cross_entropy": slow_pixels,
    "focal": lambda x, y: slow_pixels(x, y, gamma=2.0),
    "class_weights": lambda x, y: slow_pixels(x, y, (1.0, 2.0, 0.5)),
    "hardest": slow_hardest,
    "dice": slow_dice,
    "lovasz": slow_lovasz,
}


@pytest.mark.parametrize("name", SLOW)
def test_by_the_definition(name, x64):
    logits, labels = example()
    np.testing.assert_allclose(jax.jit(LOSSES[name])(logits, labels), SLOW[name](logits, labels), rtol=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient(name, x64):
    logits, labels = example()
    check_grads(lambda x: LOSSES[name](x, labels), (logits,), order=1, modes=("fwd", "rev"), eps=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_without_any_class(name):
    """An image, or a batch, of which nothing is known: a finite loss of 0 and no gradient; one beside others changes
    nothing but the mean over images."""
    logits, labels = example(np.float32)
    unknown = np.full_like(labels, IGNORE)
    value, gradient = jax.value_and_grad(LOSSES[name])(logits * 30, unknown)
    assert value == 0 and not np.asarray(gradient).any()
    labels[1] = IGNORE
    value, gradient = jax.value_and_grad(LOSSES[name])(logits * 30, labels)
    assert np.isfinite(value) and np.isfinite(gradient).all() and not np.asarray(gradient[1]).any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_answer_costs_nothing(name):
    labels = np.zeros((1, 12, 12), int)
    labels[:, 3:8, 4:9] = 1
    labels[:, 9:, 9:] = 2
    labels[:, 0] = IGNORE
    logits = 60 * jax.nn.one_hot(labels, K)
    value, gradient = jax.value_and_grad(LOSSES[name])(logits, labels)
    assert abs(value) < 1e-5 and np.isfinite(gradient).all()
    assert LOSSES[name](-logits, labels) > 0.3


def test_boundary_knows_distance():
    """A border that is off by one or two pixels is found, one that is off by four is not."""

    def halves(at):
        return np.broadcast_to(np.arange(24) >= at, (1, 24, 24)).astype(int)

    def moved(by):
        return losses.boundary(60 * jax.nn.one_hot(halves(12 + by), 2), halves(12), radius=2)[0]

    assert moved(1) < 1e-4 and moved(2) < 1e-4 and moved(5) > 0.4


def test_hardest_refuses_other_shares():
    with pytest.raises(ValueError, match=r"share=0 must be above 0"):
        losses.hardest(np.ones((1, 2)), np.ones((1, 2)), share=0)
