"""Loss primitives shared by the models. Element-wise losses leave the mean to ``weighted_mean``, which alone knows how
to divide when the batch lies on several devices.

All of them compute in float32 at least: a network may work in bfloat16, its losses do not."""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxvision import ops
from jaxvision.typing import IGNORE, Array, Float, Int, Integer


def smooth_l1(difference: Float[Array, "*n"], *, beta: float) -> Float[Array, "*n"]:
    """``x^2 / (2 beta)`` where ``|x| < beta``, ``|x| - beta / 2`` beyond (Fast R-CNN, arXiv:1504.08083, section 2.3).

    beta = 0 is the absolute value. Gradient: within [-1, 1], continuous for beta > 0.
    """
    if beta < 0:
        raise ValueError(f"beta must not be negative, got {beta}")
    difference = _precise(difference)
    if beta == 0:
        return jnp.abs(difference)
    return optax.losses.huber_loss(difference, delta=beta) / beta


def cross_entropy(
    logits: Float[Array, "*n k"], labels: Int[Array, "*n"] | Float[Array, "*n k"], *, label_smoothing: float = 0.0
) -> Float[Array, "*n"]:
    """Softmax cross-entropy of each row in nats. Labels are classes, or probabilities of the classes, to which
    gradients flow too; ``label_smoothing`` mixes the uniform distribution into them as torch does."""
    logits = _precise(logits)
    if jnp.issubdtype(labels.dtype, jnp.floating):
        uniform = 1 / logits.shape[-1]
        return optax.losses.softmax_cross_entropy(logits, (1 - label_smoothing) * labels + label_smoothing * uniform)
    loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    if label_smoothing == 0.0:
        return loss
    uniform = -jnp.mean(jax.nn.log_softmax(logits), axis=-1)
    return (1 - label_smoothing) * loss + label_smoothing * uniform


def binary_cross_entropy(logits: Float[Array, "*n"], targets: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Cross-entropy in nats between ``sigmoid(logits)`` and targets in [0, 1], element by element."""
    return optax.losses.sigmoid_binary_cross_entropy(_precise(logits), targets)


def focal(
    logits: Float[Array, "*n"], targets: Float[Array, "*n"], *, alpha: float = 0.25, gamma: float = 2.0
) -> Float[Array, "*n"]:
    """Binary cross-entropy that well-classified elements hardly enter (arXiv:1708.02002, section 3): times
    ``(1 - p)^gamma`` for the probability p of the target, and alpha for targets of 1, 1 - alpha for 0."""
    logits = _precise(logits)
    targets = jnp.asarray(targets, logits.dtype)
    probability = jax.nn.sigmoid(logits)
    wrong = probability * (1 - targets) + (1 - probability) * targets
    balance = alpha * targets + (1 - alpha) * (1 - targets)
    return balance * wrong**gamma * binary_cross_entropy(logits, targets)


def weighted_mean(
    values: Float[Array, "*n"],
    weights: Array,
    *,
    count: Array | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """``sum(values * weights) / count``, with ``count = sum(weights)`` by default; 0 where nothing counts.

    axis_name: inside ``pmap`` over that axis the division is by the mean count of the devices, so that the mean of the
    devices' losses (and gradients) is the loss of the whole batch however unevenly the counted elements are spread.
    Values of weight 0 may be anything finite. No gradient flows to the weights or the count.
    """
    values = _precise(values)
    weights = lax.stop_gradient(jnp.asarray(weights, values.dtype))
    count = jnp.sum(weights) if count is None else lax.stop_gradient(jnp.asarray(count, values.dtype))
    if axis_name is not None:
        count = lax.pmean(count, axis_name)
    total = jnp.sum(jnp.where(weights > 0, values, 0) * weights)
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0)


# Of maps of classes, where 255 (IGNORE) neither trains nor counts. What a whole image enters into is computed for each
# image, so that the mean over a batch does not depend on how many devices share it.


def pixel_cross_entropy(
    logits: Float[Array, "*b k"],
    labels: Integer[Array, "*b"],
    *,
    class_weights: Float[Array, " k"] | None = None,
    gamma: float = 0.0,
) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
    """(loss in nats, weight) of each pixel, for ``weighted_mean``: the weight is 0 where no class is known, and that of
    the pixel's class else. Multiply it by a map of weights where there is one.

    gamma: of the focal loss (arXiv:1708.02002, section 3), times ``(1 - p)^gamma`` for the probability of the class.
    """
    logits = _precise(logits)
    known = labels != IGNORE
    own = jnp.where(known, labels, 0).astype(jnp.int32)
    values = cross_entropy(logits, own)
    if gamma:
        values = (-jnp.expm1(-jnp.maximum(values, 1e-6))) ** gamma * values  # 0 has no slope below gamma = 1
    weights = jnp.ones_like(values) if class_weights is None else jnp.asarray(class_weights, values.dtype)[own]
    return values, weights * known


def hardest(values: Float[Array, "b *n"], weights: Float[Array, "b *n"], *, share: int | float) -> Float[Array, "b *n"]:
    """The weights of the ``share`` of each image's counted pixels that have the largest loss, rounded up; 0 elsewhere
    (online bootstrapping, arXiv:1605.06885, section 3.2). Of equal losses at the threshold all stay.
    Raises: ValueError for a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share} must be above 0 and at most 1")
    flat = jnp.where(weights > 0, lax.stop_gradient(values), -jnp.inf).reshape(len(values), -1)
    count = jnp.sum(flat > -jnp.inf, axis=1)
    place = jnp.clip(jnp.ceil(share * count).astype(int) - 1, 0)
    threshold = jnp.take_along_axis(-jnp.sort(-flat, axis=1), place[:, None], axis=1)
    return weights * (flat >= threshold).reshape(values.shape)


def dice(
    logits: Float[Array, "b h w k"], labels: Integer[Array, "b h w"], *, smooth: float = 1.0
) -> Float[Array, " b"]:
    """One minus the mean soft Dice coefficient ``(2 sum p y + smooth) / (sum p + sum y + smooth)`` of the classes that
    an image has (V-Net, arXiv:1606.04797, section 3, with sums where that squares); 0 without any known pixel."""
    probabilities, truth = _shares(logits, labels)
    overlap, size = jnp.sum(probabilities * truth, (1, 2)), jnp.sum(truth, (1, 2))
    coefficient = (2 * overlap + smooth) / (jnp.sum(probabilities, (1, 2)) + size + smooth)
    return _mean_over(1 - coefficient, size > 0)


def lovasz_softmax(logits: Float[Array, "b h w k"], labels: Integer[Array, "b h w"]) -> Float[Array, " b"]:
    """The Lovász extension of the Jaccard loss of each class that an image has, their mean (arXiv:1705.08790, section
    3.2, algorithm 1); 0 without any known pixel. A sort of all pixels a class."""
    probabilities, truth = (x.reshape(x.shape[0], -1, x.shape[-1]) for x in _shares(logits, labels))
    errors = jnp.abs(truth - probabilities)  # 0 where no class is known, and there last
    order = jnp.argsort(-lax.stop_gradient(errors), axis=1, stable=True)
    errors, sorted_truth = (jnp.take_along_axis(x, order, axis=1) for x in (errors, truth))
    size = jnp.sum(truth, axis=1, keepdims=True)
    missed = size - jnp.cumsum(sorted_truth, axis=1)
    union = size + jnp.cumsum(1 - sorted_truth, axis=1)
    jaccard = 1 - missed / union
    slopes = jnp.diff(jaccard, axis=1, prepend=0)
    return _mean_over(jnp.sum(errors * lax.stop_gradient(slopes), axis=1), size[:, 0] > 0)


def boundary(
    logits: Float[Array, "b h w k"], labels: Integer[Array, "b h w"], *, radius: int = 2
) -> Float[Array, " b"]:
    """One minus the mean soft F1 score of the borders of the classes that an image has, where a border within
    ``radius`` pixels of another counts as found (arXiv:1905.07852, section 3.2); 0 without any known pixel."""
    probabilities, truth = _shares(logits, labels)
    found, wanted = (_border(x) for x in (probabilities, truth))
    near = dict(window=2 * radius + 1, strides=1, padding=radius)
    precision = _ratio(jnp.sum(found * ops.max_pool(wanted, **near), (1, 2)), jnp.sum(found, (1, 2)))
    recall = _ratio(jnp.sum(wanted * ops.max_pool(found, **near), (1, 2)), jnp.sum(wanted, (1, 2)))
    return _mean_over(1 - _ratio(2 * precision * recall, precision + recall), jnp.sum(wanted, (1, 2)) > 0)


def _border(inside):
    """Where a 3x3 window reaches out of what is inside."""
    return ops.max_pool(1 - inside, window=3, strides=1, padding=1) - (1 - inside)


def _shares(logits, labels):
    """Probabilities and the truth as 0 and 1, [b, h, w, k]; both 0 where no class is known."""
    logits = _precise(logits)
    known = (labels != IGNORE)[..., None]
    truth = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return jnp.where(known, jax.nn.softmax(logits), 0), jnp.where(known, truth, 0)


def _mean_over(values, present):
    return _ratio(jnp.sum(jnp.where(present, values, 0), axis=1), jnp.sum(present, axis=1, dtype=values.dtype))


def _ratio(part, whole):
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)


def _precise(x: Array) -> jax.Array:
    return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))
