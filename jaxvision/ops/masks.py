"""Masks of instances: into the image and out of it, and to and from the polygons and RLE of COCO.

``paste``, ``crop`` and ``to_boxes`` are functions of arrays on the device. ``from_polygons``, ``from_rle`` and
``to_rle`` run on the host, in numpy; RLE is read and written by pycocotools alone.
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from pycocotools import mask as coco

from jaxvision.ops.roi import adaptive_weights
from jaxvision.typing import Array, Bool, Float, Int, UInt8

__all__ = ["crop", "from_polygons", "from_rle", "paste", "to_boxes", "to_rle"]


def paste(
    masks: Float[Array, "n m m"],
    boxes: Float[Array, "n 4"],
    *,
    image_size: tuple[int, int],
    snap: bool = True,
) -> Float[Array, "n h w"]:
    """Resample the mask of each box into the plane of the image (Mask R-CNN, arXiv:1703.06870, section 3).

    masks: usually probabilities; threshold the result at 0.5. boxes: xyxy, pixels. Outside its box a mask is 0.
    snap=True follows torchvision: one pixel of zeros around the mask, the box enlarged to match and truncated to whole
    pixels. snap=False follows Detectron2: samples at pixel centres, fading to 0 within half a mask cell around the box.
    Gradients: to masks; to boxes with snap=False only, zero with snap=True because of the truncation. A box without
    area gives zeros with snap=False, one pixel at least with snap=True.
    """
    masks, boxes = jnp.asarray(masks), jnp.asarray(boxes)
    weights = _snapped_weights if snap else _centre_weights
    rows = weights(boxes[:, 1], boxes[:, 3], cells=masks.shape[1], length=image_size[0])
    columns = weights(boxes[:, 0], boxes[:, 2], cells=masks.shape[2], length=image_size[1])
    in_columns = jnp.einsum("nij,nwj->niw", masks, columns, precision="highest")
    return jnp.einsum("nhi,niw->nhw", rows, in_columns, precision="highest").astype(masks.dtype)


def _snapped_weights(low, high, *, cells, length):
    """[n, length, cells]: torchvision's rule along one axis. The two cells of padding are zero and left out."""
    low, high = lax.stop_gradient(low), lax.stop_gradient(high)
    half = (high - low) * 0.5 * ((cells + 2) / cells)
    centre = (high + low) * 0.5
    first, last = jnp.trunc(centre - half)[:, None], jnp.trunc(centre + half)[:, None]
    pixels = jnp.maximum(last - first + 1, 1)
    pixel = jnp.arange(length, dtype=low.dtype)[None, :] - first
    position = jnp.clip((pixel + 0.5) * ((cells + 2) / pixels) - 0.5, 0, cells + 1)
    return _hat(position - 1, cells) * ((pixel >= 0) & (pixel < pixels))[..., None]


def _centre_weights(low, high, *, cells, length):
    """[n, length, cells]: Detectron2's rule along one axis."""
    low, extent = low[:, None], (high - low)[:, None]
    pixel = jnp.arange(length, dtype=low.dtype)[None, :] + 0.5
    has_area = extent > 0
    position = (pixel - low) / jnp.where(has_area, extent, 1) * cells - 0.5
    return _hat(position, cells) * has_area[..., None]


def _hat(position, cells):
    return jnp.maximum(1 - jnp.abs(position[..., None] - jnp.arange(cells, dtype=position.dtype)[None, None, :]), 0)


def crop(
    masks: Bool[Array, "g h w"] | Float[Array, "g h w"] | UInt8[Array, "g h w"],
    boxes: Float[Array, "n 4"],
    indices: Int[Array, " n"],
    *,
    size: int,
    frames: Float[Array, "g 4"] | None = None,
    image_size: tuple[int, int] | None = None,
) -> Float[Array, "n size size"]:
    """The mask ``indices[i]`` inside box i, resampled to size x size: the training target of a mask head.

    torchvision's rule: ``roi_align`` of the mask's plane with ``sampling_ratio=-1``, ``aligned=False``. boxes: xyxy,
    pixels. masks: planes in [0, 1], or with ``frames`` grids on these (shares of 255 if uint8, see
    ``jaxvision.typing``), of which each pixel of the plane of ``image_size`` gets the mean over what it covers.
    The result lies in [0, 1] where the masks do; targets are used as they are or after a threshold of 0.5.
    Indices are clamped; without any mask (g = 0) the result is zeros. Gradients: to masks, if float, and to boxes, as
    ``roi_align``; to frames where a border of a cell lies inside a pixel.
    Raises: ValueError if size < 1, or frames come without image_size.
    """
    if size < 1:
        raise ValueError(f"size={size} must be at least 1")
    if frames is not None and image_size is None:
        raise ValueError("masks on frames need the image_size of the plane they lie in")
    masks, boxes = jnp.asarray(masks), jnp.asarray(boxes)
    count, *grid = masks.shape
    if count == 0:
        return jnp.zeros((boxes.shape[0], size, size), boxes.dtype)
    unit = 255 if masks.dtype == jnp.uint8 else 1
    frames = None if frames is None else jnp.asarray(frames)

    def one(item):
        box, index = item
        plane = tuple(grid) if frames is None else image_size
        rows, columns = (weights[0] for weights in adaptive_weights(box[None], size=(size, size), plane=plane))
        mask = masks[index].astype(boxes.dtype) / unit
        if frames is not None:
            left, top, right, bottom = frames[index]
            rows = rows @ _shares(top, bottom, cells=grid[0], length=plane[0])
            columns = columns @ _shares(left, right, cells=grid[1], length=plane[1])
        in_rows = jnp.einsum("ph,hw->pw", rows, mask, precision="highest")
        return jnp.einsum("pw,qw->pq", in_rows, columns, precision="highest")

    return lax.map(one, (boxes, jnp.clip(jnp.asarray(indices), 0, count - 1)))


def _shares(low, high, *, cells, length):
    """[length, cells]: the part of each pixel of an axis that lies in each cell of a grid from ``low`` to ``high``."""
    lines = low + (high - low) / cells * jnp.arange(cells + 1, dtype=low.dtype)
    pixel = jnp.arange(length, dtype=low.dtype)[:, None]
    before = jnp.clip(lines[None] - pixel, 0, 1)  # of the pixel, what lies before each line
    return before[:, 1:] - before[:, :-1]


def to_boxes(masks: Bool[Array, "n h w"] | Float[Array, "n h w"]) -> Float[Array, "n 4"]:
    """The tightest xyxy box, float32, around the non-zero pixels of each mask; an empty mask gives zeros.

    Continuous convention: a single pixel (x, y) gives (x, y, x + 1, y + 1). No gradients.
    """
    masks = jnp.asarray(masks) != 0

    def span(occupied):
        length = occupied.shape[1]
        return jnp.argmax(occupied, axis=1), length - jnp.argmax(occupied[:, ::-1], axis=1)

    (left, right), (top, bottom) = span(masks.any(1)), span(masks.any(2))
    boxes = jnp.stack([left, top, right, bottom], axis=1)
    return jnp.where(masks.any((1, 2))[:, None], boxes, 0).astype(jnp.float32)


def from_polygons(polygons: Sequence, *, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Rasterise polygons, the union of all, as COCO does; ``size`` = (h, w).

    Each polygon is a flat list x0, y0, x1, y1, ... in pixels. No polygons give an empty mask. Host only.
    Raises: ValueError, with its number, on a polygon with fewer than three points, an odd count or a value that is not
    a finite number.
    """
    _check_size(size)
    flat = []
    for number, polygon in enumerate(polygons):
        try:
            points = np.asarray(polygon, np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"polygon {number}: {polygon!r} is not a flat list of numbers") from None
        if points.ndim != 1:
            raise ValueError(f"polygon {number} has shape {points.shape}; give a flat list x0, y0, x1, y1, ...")
        if points.size < 6 or points.size % 2:
            raise ValueError(f"polygon {number} has {points.size} numbers; it needs an even count of at least 6")
        if not np.isfinite(points).all():
            raise ValueError(f"polygon {number} has a coordinate that is not finite")
        flat.append(points.tolist())
    if not flat:
        return np.zeros(size, bool)
    return coco.decode(coco.merge(coco.frPyObjects(flat, *size))).astype(bool)


def from_rle(rle: Mapping, *, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Decode a COCO run-length encoding: ``{"size": [h, w], "counts": ...}`` with counts as a list (uncompressed) or as
    str or bytes (compressed). ``size`` = (h, w) is what the image has. Host only.

    Raises: ValueError on a missing key, another size, or counts that do not fill the mask exactly.
    """
    _check_size(size)
    missing = {"size", "counts"} - set(rle)
    if missing:
        raise ValueError(f"RLE without {', '.join(sorted(missing))}; it has {', '.join(map(str, rle)) or 'no keys'}")
    if tuple(rle["size"]) != tuple(size):
        raise ValueError(f"RLE of size {rle['size']} for an image of size {list(size)} (height, width)")
    counts = rle["counts"]
    if isinstance(counts, str | bytes):
        try:
            code = counts.encode("ascii") if isinstance(counts, str) else counts
            mask = coco.decode({"size": list(size), "counts": code}).astype(bool)
        except (ValueError, UnicodeEncodeError) as error:
            raise ValueError(f"compressed RLE counts do not decode: {error}") from error
        if _fits({"size": [size[0] * size[1] - 1, 1], "counts": code}):
            raise ValueError(f"compressed RLE counts end before the {size[0]} x {size[1]} pixels of the mask")
        return mask
    values = np.asarray(counts)
    if values.ndim != 1 or values.dtype.kind not in "iu" or (values < 0).any():
        raise ValueError("RLE counts must be str, bytes or a list of integers that are not negative")
    if values.sum() != size[0] * size[1]:
        raise ValueError(f"RLE counts sum to {values.sum()}, but the mask has {size[0]} x {size[1]} pixels")
    return coco.decode(coco.frPyObjects({"size": list(size), "counts": values.tolist()}, *size)).astype(bool)


def _fits(rle):
    """Whether the counts stay inside a mask of this size. pycocotools refuses counts that are too long, but leaves what
    short ones do not reach uninitialised: counts that fit into one pixel less than the mask are short."""
    try:
        coco.decode(rle)
    except ValueError:
        return False
    return True


def to_rle(mask: Bool[Array, "h w"]) -> dict:
    """COCO's compressed run-length encoding, ready for JSON: ``{"size": [h, w], "counts": str}``. Host only."""
    rle = coco.encode(np.asfortranarray(np.asarray(mask), dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def _check_size(size):
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size={size} must be (height, width), both at least 1")
