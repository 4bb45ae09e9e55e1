"""How good maps of classes are: tables of counts that are added over batches and devices, and figures of their sum."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxvision import ops
from jaxvision.typing import IGNORE, Array, Float, Int, Integer

__all__ = ["border_counts", "border_score", "confusion", "segmentation_figures"]


def confusion(
    labels: Integer[Array, "*b h w"], truth: Integer[Array, "*b h w"], *, num_classes: int
) -> Int[Array, "k k"]:
    """How many pixels of each class (rows) were taken for which (columns); those whose truth is 255 do not count."""
    cells = jnp.where(truth == IGNORE, num_classes**2, truth.astype(jnp.int32) * num_classes + labels)
    return jnp.bincount(cells.ravel(), length=num_classes**2 + 1)[:-1].reshape(num_classes, num_classes)


def segmentation_figures(table: Int[Array, "k k"]) -> dict[str, float | Float[np.ndarray, " k"]]:
    """Of a table of ``confusion``: mIoU, pixel_accuracy, mean_accuracy, fwIoU (Long et al., arXiv:1411.4038, section
    5), and IoU of each class.

    The mean IoU is over the classes that were there or were found, the mean accuracy over those that were there; NaN
    where there is none.
    """
    table = np.asarray(table, np.float64)
    right, there, found = np.diag(table), table.sum(1), table.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou, accuracy = right / (there + found - right), right / there
        total = np.float64(there.sum())
        return {
            "mIoU": _mean(iou),
            "pixel_accuracy": float(right.sum() / total),
            "mean_accuracy": _mean(accuracy),
            "fwIoU": float(np.nansum(there * iou) / total) if total else float("nan"),
            "IoU": iou,
        }


def border_counts(
    labels: Integer[Array, "b h w"], truth: Integer[Array, "b h w"], *, num_classes: int, tolerance: int = 3
) -> Int[Array, "k 4"]:
    """Of each class's border pixels how many found ones lie within ``tolerance`` pixels (in rows and columns) of a true
    one, all found ones, how many true ones lie near a found one, all true ones (Csurka et al., BMVC 2013).

    A border pixel has a neighbour of another class in its row or column. What is found where the truth is 255 is
    nothing.
    """
    known = truth != IGNORE
    masks = (jax.nn.one_hot(jnp.where(known, x, -1), num_classes) for x in (labels, truth))
    found, true = (_borders(mask, known[..., None]) for mask in masks)
    near = dict(window=2 * tolerance + 1, strides=1, padding=tolerance)
    hits = [found * ops.max_pool(true, **near), found, true * ops.max_pool(found, **near), true]
    return jnp.stack([jnp.sum(x, (0, 1, 2)) for x in hits], axis=1).astype(jnp.int32)


def _borders(mask, known):
    """Pixels of the mask with a known neighbour outside it, as 0 and 1."""
    outside = (1 - mask) * known
    rows = jnp.pad(outside, ((0, 0), (1, 1), (0, 0), (0, 0)))
    columns = jnp.pad(outside, ((0, 0), (0, 0), (1, 1), (0, 0)))
    near = jnp.maximum(jnp.maximum(rows[:, :-2], rows[:, 2:]), jnp.maximum(columns[:, :, :-2], columns[:, :, 2:]))
    return mask * near


def border_score(counts: Int[Array, "k 4"]) -> float:
    """The mean F-score of the borders of the classes that have true ones; NaN where none has."""
    near, found, hit, true = np.asarray(counts, np.float64).T
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = np.where(found > 0, near / found, 0), hit / true
        score = np.where(precision + recall > 0, 2 * precision * recall / (precision + recall), 0)
    return _mean(np.where(true > 0, score, np.nan))


def _mean(values: Float[np.ndarray, " k"]) -> float:
    """Over those that are no NaN."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
