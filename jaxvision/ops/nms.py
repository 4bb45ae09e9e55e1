"""Non-maximum suppression: hard, per class, soft, and a relaxation that can be differentiated.

All take one image; use ``jax.vmap`` for a batch. Boxes are ``xyxy`` in pixels, scores are of any range unless said
otherwise, and a box whose score is -inf or NaN takes no part, which is how padding is left out.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxvision.ops.boxes import iou, pairwise
from jaxvision.typing import Array, Bool, Float, Int

TILE = 128  # boxes resolved at once; fastest of 128, 256 and 512 on CPU at 2,000 and 8,000 boxes


@partial(jax.jit, static_argnames=("iou_threshold", "max_output"))
def nms(
    boxes: Float[Array, "n 4"], scores: Float[Array, "n"], *, iou_threshold: float, max_output: int
) -> tuple[Int[Array, "k"], Bool[Array, "k"]]:
    """Greedy suppression: indices of the kept boxes, best score first, padded with -1 to ``max_output``, and which are
    valid.

    A box is dropped if its IoU with a kept better one is above (not at) ``iou_threshold``; of equal scores the lower
    index comes first. Choice and order are torchvision's. Empty boxes overlap nothing and are kept.
    Gradients: the choice has none; gather boxes and scores by the indices, and theirs flow through the gather.
    ``relaxed_nms`` is the differentiable twin.
    Raises: ValueError if the threshold is outside [0, 1] or ``max_output`` negative.
    """
    return _hard_nms(boxes, scores, None, iou_threshold, max_output)


@partial(jax.jit, static_argnames=("iou_threshold", "max_output"))
def batched_nms(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, "n"],
    labels: Int[Array, "n"],
    *,
    iou_threshold: float,
    max_output: int,
) -> tuple[Int[Array, "k"], Bool[Array, "k"]]:
    """``nms`` in which a box suppresses only boxes of its own label; the output mixes all labels, best score first.

    Labels are compared, boxes are not shifted apart, so coordinates of any size keep their precision.
    """
    return _hard_nms(boxes, scores, labels, iou_threshold, max_output)


@partial(jax.jit, static_argnames=("method", "iou_threshold", "sigma", "min_score", "max_output"))
def soft_nms(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, "n"],
    *,
    method: Literal["linear", "gaussian"],
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 0.001,
    max_output: int,
) -> tuple[Int[Array, "k"], Float[Array, "k"], Bool[Array, "k"]]:
    """Soft-NMS (arXiv:1704.04503): repeatedly takes the best box and lowers the scores of those that overlap it.

    Returns indices in the order taken (-1 padded), the lowered scores (0 padded) and which are valid, that is, at least
    ``min_score``. ``linear`` multiplies by 1 - IoU where IoU is above ``iou_threshold``, ``gaussian`` by
    exp(-IoU² / sigma). Scores are probabilities. IoU is without the "+1" of the authors' code.
    Gradients: of the lowered scores with respect to scores and boxes; the order in which boxes are taken is held fixed.
    Raises: ValueError for an unknown method, a sigma that is not positive, or the options refused by ``nms``.
    """
    if method not in ("linear", "gaussian"):
        raise ValueError(f"soft_nms knows the methods 'linear' and 'gaussian', not {method!r}")
    if sigma <= 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    _check(iou_threshold, max_output)
    n = len(scores)
    if n == 0:
        return _nothing(max_output)[0], jnp.zeros(max_output, scores.dtype), _nothing(max_output)[1]

    def take_best(carry, _):
        scores, left = carry
        best = jnp.argmax(jnp.where(left, scores, -jnp.inf))
        taken = (best, scores[best], left[best] & (scores[best] >= min_score))
        overlap = iou(jnp.broadcast_to(boxes[best], boxes.shape), boxes)
        if method == "linear":
            decay = jnp.where(overlap > iou_threshold, 1 - overlap, 1)
        else:
            decay = jnp.exp(-(overlap**2) / sigma)
        return ((scores * decay).astype(scores.dtype), left.at[best].set(False)), taken

    left = scores > -jnp.inf
    _, (indices, lowered, valid) = lax.scan(take_best, (jnp.where(left, scores, 0), left), length=min(max_output, n))
    padding = (0, max_output - len(indices))
    indices = jnp.pad(jnp.where(valid, indices, -1).astype(jnp.int32), padding, constant_values=-1)
    return indices, jnp.pad(jnp.where(valid, lowered, 0), padding), jnp.pad(valid, padding)


def relaxed_nms(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, "n"],
    *,
    iou_threshold: float,
    temperature: float | Float[Array, ""],
) -> Float[Array, "n"]:
    """Weights in [0, 1] with which each box is kept; the mask of ``nms`` in the limit of temperature zero.

    Hard suppression obeys keep_i = prod_j (1 - keep_j [s_j > s_i] [IoU_ij > threshold]). Here both brackets become
    sigmoids of width ``temperature``, shifted and scaled to be exactly zero where there is no evidence (equal scores,
    disjoint boxes). So a box is still suppressed only by better ones: the system stays triangular in score order, has
    one solution, and one sweep from the best box down finds it, where symmetric sigmoids would need an iteration that
    can oscillate. Remote boxes have no effect at any temperature; the higher the temperature, the less is suppressed.

    Scores are probabilities, so one temperature suits both brackets; 0.1 is soft, 0.001 nearly hard. Boxes of exactly
    equal score do not suppress each other, and the limit is that of ``nms`` where scores differ and no IoU equals the
    threshold. Memory is n², time n steps: meant for up to about a thousand boxes.
    Gradients: with respect to boxes, scores and temperature; always finite, continuous values even where the order
    changes.
    Raises: ValueError if the threshold is outside [0, 1] or a temperature given as a number is not positive.
    """
    _check(iou_threshold, 0)
    if isinstance(temperature, int | float) and temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}; the limit of zero is ops.nms")
    return _relaxed_nms(boxes, scores, temperature, iou_threshold)


@partial(jax.jit, static_argnums=3)
def _relaxed_nms(boxes, scores, temperature, iou_threshold):
    if len(scores) == 0:
        return jnp.zeros_like(scores)

    def soft_step(x, at):
        """From 0 at x = 0 to 1: a step at ``at`` as the temperature falls."""
        ground = jax.nn.sigmoid(-at / temperature)
        return (jax.nn.sigmoid((x - at) / temperature) - ground) / (1 - ground)

    order = jnp.argsort(-scores, stable=True)
    present = scores[order] > -jnp.inf
    boxes, scores = boxes[order], jnp.where(present, scores[order], 0)
    better = soft_step(jnp.maximum(scores[:, None] - scores[None, :], 0), 0.0)
    suppression = better * soft_step(pairwise(iou, boxes, boxes), iou_threshold)  # row j: what box j does to others

    def suppress_worse(keep, row):
        box, suppression = row
        return keep * (1 - keep[box] * suppression), None

    keep, _ = lax.scan(suppress_worse, present.astype(scores.dtype), (jnp.arange(len(scores)), suppression))
    return keep[jnp.argsort(order)]


def _hard_nms(boxes, scores, labels, iou_threshold, max_output):
    """Tiles of boxes in score order: a tile is first thinned by the boxes kept before it, then resolved within."""
    _check(iou_threshold, max_output)
    n = len(scores)
    if n == 0:
        return _nothing(max_output)
    boxes, scores = lax.stop_gradient((boxes, scores))
    boxes = boxes.astype(jnp.promote_types(boxes.dtype, jnp.float32))
    threshold = _rounded_down(iou_threshold, boxes.dtype)

    tile = min(TILE, n)
    padded = -(-n // tile) * tile
    present = scores > -jnp.inf
    order = jnp.argsort(jnp.where(present, -scores, jnp.inf), stable=True)

    def sorted_and_padded(x):
        return jnp.pad(x[order], [(0, padded - n)] + [(0, 0)] * (x.ndim - 1))

    boxes, alive = sorted_and_padded(boxes), sorted_and_padded(present)
    labels = None if labels is None else sorted_and_padded(labels)
    earlier = jnp.arange(tile)[:, None] < jnp.arange(tile)[None, :]

    def at(x, start):
        return lax.dynamic_slice_in_dim(x, start, tile)

    def hits(i, j):
        """[tile, tile]: would the boxes from ``i`` on suppress those from ``j`` on?"""
        overlap = pairwise(iou, at(boxes, i), at(boxes, j)) > threshold
        return overlap if labels is None else overlap & (at(labels, i)[:, None] == at(labels, j)[None, :])

    def next_tile(state):
        start, alive, count = state

        def thin(k, candidates):
            return candidates & ~jnp.any(hits(k * tile, start) & at(alive, k * tile)[:, None], axis=0)

        candidates = lax.fori_loop(0, start // tile, thin, at(alive, start))
        kept = _resolve(hits(start, start) & earlier, candidates)
        return (
            start + tile,
            lax.dynamic_update_slice_in_dim(alive, kept, start, 0),
            count + jnp.sum(kept, dtype=jnp.int32),
        )

    number = jnp.sum(present)  # they come first

    def unfinished(state):
        start, _, count = state
        return (start < number) & (count < max_output)

    end, kept, _ = lax.while_loop(unfinished, next_tile, (jnp.int32(0), alive, jnp.int32(0)))
    kept = kept & (jnp.arange(padded) < end)
    rank = jnp.searchsorted(jnp.cumsum(kept, dtype=jnp.int32), jnp.arange(1, max_output + 1, dtype=jnp.int32))
    valid = rank < padded
    return jnp.where(valid, order[jnp.minimum(rank, n - 1)], -1).astype(jnp.int32), valid


def _resolve(suppresses, candidates):
    """The greedy choice among boxes in score order, as the fixed point of "kept = candidates that no kept box
    suppresses". Each sweep settles the next link of every chain of suppressions, and chains are short."""

    def sweep(state):
        kept, _ = state
        return candidates & ~jnp.any(suppresses & kept[:, None], axis=0), kept

    kept, _ = lax.while_loop(lambda state: jnp.any(state[0] != state[1]), sweep, sweep((candidates, candidates)))
    return kept


def _rounded_down(threshold: float, dtype):
    """The largest number of ``dtype`` not above the threshold: comparing with it gives what an exact comparison would,
    so that an IoU of 3/10 is above 0.3 or not as in torchvision, which compares in double precision."""
    rounded = np.asarray(threshold, dtype)
    return rounded if float(rounded) <= threshold else np.nextafter(rounded, np.asarray(-1, dtype))


def _nothing(max_output):
    return jnp.full(max_output, -1, jnp.int32), jnp.zeros(max_output, bool)


def _check(iou_threshold, max_output):
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold must lie in [0, 1], got {iou_threshold}")
    if max_output < 0:
        raise ValueError(f"max_output is a number of boxes, got {max_output}")
