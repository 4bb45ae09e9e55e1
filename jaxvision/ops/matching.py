"""Which prediction answers for which object, and which predictions enter the loss.

For one image; use ``jax.vmap`` for a batch. Everything returned is discrete and has no gradient.
"""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxvision.typing import Array, Bool, Float, Int, Key

BACKGROUND = -1
IGNORED = -2


def threshold_match(
    similarity: Float[Array, "g n"], valid: Bool[Array, "g"], *, high: float, low: float, allow_low_quality: bool
) -> Int[Array, "n"]:
    """Index of the most similar valid ground truth of each prediction, -1 (background) where its similarity is below
    ``low``, -2 (ignored) from ``low`` to below ``high`` (Faster R-CNN, arXiv:1506.01497, section 3.1.2).

    ``allow_low_quality`` also matches every prediction than which none is more similar to some ground truth, ties
    included, to the ground truth most similar to it (not necessarily that one), as torchvision's ``Matcher`` does; but
    a ground truth to which no similarity is above 0, such as a box outside the image, matches none, where there all
    predictions tie. Without valid ground truth all are background; of equal ground truths the lower index wins.
    Raises: ValueError if ``low`` is above ``high``.
    """
    if low > high:
        raise ValueError(f"low must not exceed high, got low={low}, high={high}")
    count, n = similarity.shape
    if count == 0:
        return jnp.full(n, BACKGROUND, jnp.int32)
    similarity = jnp.where(jnp.asarray(valid)[:, None], lax.stop_gradient(similarity), -jnp.inf)

    def next_object(state, row):
        best, nearest, unsurpassed = state
        index, similarity = row
        unsurpassed |= (similarity == jnp.max(similarity, initial=-jnp.inf)) & (similarity > 0)
        nearest = jnp.where(similarity > best, index, nearest)
        return (jnp.maximum(best, similarity), nearest, unsurpassed), None

    # A loop over objects, because on CPU reductions over them are slow and recompute the overlaps.
    start = (jnp.full(n, -jnp.inf, similarity.dtype), jnp.zeros(n, jnp.int32), jnp.zeros(n, bool))
    objects = jnp.arange(count, dtype=jnp.int32)
    (best, nearest, unsurpassed), _ = lax.scan(next_object, start, (objects, similarity))
    match = jnp.where(best < low, BACKGROUND, jnp.where(best < high, IGNORED, nearest))
    if allow_low_quality:
        match = jnp.where(unsurpassed, nearest, match)
    return match.astype(jnp.int32)


def match_best(match: Int[Array, "n"], similarity: Float[Array, "g n"], valid: Bool[Array, "g"]) -> Int[Array, "n"]:
    """``match``, but with the prediction that is most similar to it given to every valid ground truth (SSD,
    arXiv:1512.02325, section 2.2).

    Of equally similar predictions the first is taken; of several ground truths that want one prediction the last has
    it, as in torchvision's ``SSDMatcher``. A ground truth to which no similarity is above 0 takes none.
    """
    count, n = similarity.shape
    if count == 0 or n == 0:
        return match
    similarity = lax.stop_gradient(similarity)
    wanted = jnp.argmax(similarity, axis=1)
    takes = jnp.asarray(valid) & (jnp.max(similarity, axis=1) > 0)
    place = jnp.where(takes, wanted, n)  # beyond the end, and so dropped
    owner = jnp.full(n, BACKGROUND, jnp.int32).at[place].max(jnp.arange(count, dtype=jnp.int32), mode="drop")
    return jnp.where(owner >= 0, owner, match)


def hardest(loss: Float[Array, "n"], eligible: Bool[Array, "n"], count: Int[Array, ""]) -> Bool[Array, "n"]:
    """Which ``count`` of the eligible have the largest losses (all, if there are fewer): hard negative mining (SSD,
    section 2.2). Of equal losses the first counts."""
    # Two sorts, because what inverts an order otherwise is a scatter, which is slow.
    order = jnp.argsort(jnp.where(eligible, -lax.stop_gradient(loss), jnp.inf), stable=True)
    return eligible & (jnp.argsort(order) < count)


@jax.jit
def bipartite_match(similarity: Float[Array, "g n"], valid: Bool[Array, "g"]) -> Int[Array, "g"]:
    """Column of each row, taken greedily: the largest similarity of the table first, each row and column used once.

    -1 for invalid rows and for those left when the columns run out. Of equal similarities the lower row, then the
    lower column is taken. An entry of -inf or NaN is never taken.
    """
    rows, columns = similarity.shape
    if rows == 0 or columns == 0:
        return jnp.full(rows, BACKGROUND, jnp.int32)
    similarity = lax.stop_gradient(similarity)
    similarity = jnp.where(valid[:, None] & (similarity > -jnp.inf), similarity, -jnp.inf)

    def take_best(_, state):
        similarity, match = state
        row, column = jnp.unravel_index(jnp.argmax(similarity), similarity.shape)
        match = match.at[row].set(jnp.where(similarity[row, column] > -jnp.inf, column, match[row]))
        return similarity.at[row].set(-jnp.inf).at[:, column].set(-jnp.inf), match

    state = (similarity, jnp.full(rows, BACKGROUND, jnp.int32))
    return lax.fori_loop(0, min(rows, columns), take_best, state)[1]


@jax.jit
def minimum_cost_match(cost: Float[Array, "g n"], valid: Bool[Array, "g"]) -> Int[Array, "g"]:
    """Column of each row, every column used once, so that the costs of the chosen entries have the smallest sum.

    Exact (the Hungarian algorithm), in about ``g * g * n`` operations. -1 for invalid rows; of valid rows as few as
    possible go without a column, which also get -1. An entry that is not finite counts as dearer than all others.
    """
    rows, columns = cost.shape
    if rows == 0 or columns == 0:
        return jnp.full(rows, BACKGROUND, jnp.int32)
    cost = lax.stop_gradient(cost)
    usable = jnp.asarray(valid)[:, None] & jnp.isfinite(cost)  # the algorithm would not end on NaN
    known = jnp.where(usable, cost, 0)
    dear = 2 * jnp.max(known) - jnp.min(known) + 1  # so that no row of padding takes a column that a valid one wants
    row, column = optax.assignment.hungarian_algorithm(jnp.where(usable, cost, dear))
    match = jnp.full(rows, BACKGROUND, jnp.int32).at[row].set(column.astype(jnp.int32))
    return jnp.where(valid, match, BACKGROUND)


def sample(
    key: Key[Array, ""],
    positive: Bool[Array, "n"],
    negative: Bool[Array, "n"],
    *,
    size: int,
    positive_fraction: float,
) -> tuple[Int[Array, "k"], Bool[Array, "k"], Bool[Array, "k"]]:
    """Draws ``size`` candidates uniformly without replacement: indices (-1 padded), which are positive, which valid.

    At most ``int(size * positive_fraction)`` are positive; negatives fill the rest as far as there are any, and no
    candidate may be both. Positives come first, then negatives, then padding, so rows from
    ``int(size * positive_fraction)`` on are never positive and a loss over positives can stop there.
    Raises: ValueError if the size is negative or the fraction outside [0, 1].
    """
    if size < 0 or not 0 <= positive_fraction <= 1:
        raise ValueError(f"size must be >= 0 and positive_fraction in [0, 1], got {size} and {positive_fraction}")
    n = len(positive)
    if n == 0:
        return jnp.full(size, BACKGROUND, jnp.int32), jnp.zeros(size, bool), jnp.zeros(size, bool)
    limit = int(size * positive_fraction)
    number_positive = jnp.minimum(jnp.sum(positive), limit)
    number = number_positive + jnp.minimum(jnp.sum(negative), size - number_positive)

    # The largest of one random number each are a uniform choice. In float32 XLA's top-k is quick on CPU, a sort is not.
    ticket = jax.random.uniform(key, (n,), jnp.float32)
    positives = lax.top_k(jnp.where(positive, ticket, -1), min(limit, n))[1]
    negatives = lax.top_k(jnp.where(negative, ticket, -1), min(size, n))[1]

    row = jnp.arange(size, dtype=jnp.int32)
    is_positive, valid = row < number_positive, row < number
    drawn = jnp.where(is_positive, _padded(positives, size), jnp.roll(_padded(negatives, size), number_positive))
    return jnp.where(valid, drawn, BACKGROUND).astype(jnp.int32), is_positive, valid


def _padded(indices, size):
    return jnp.pad(indices, (0, size - len(indices)), constant_values=BACKGROUND)
