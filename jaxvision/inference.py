"""Detection and segmentation for people: images of any size in, what is in them in their own pixels out.

A ``Detect`` is any function (variables, images [b, h, w, c], image_sizes [b, 2]) -> Detections or Segmentation:
``detect_with(model)``, or one that ``flipped_and_scaled`` or ``tiled`` made of another. They are pure, so they compose,
and ``jax.jit`` takes them whole. A detector that is given its regions takes those as a fourth argument, and in no views
but the image itself.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxvision import ops
from jaxvision.layers.segmenter import Segmenter, segmentation
from jaxvision.pictures import DAMAGE, open_picture, upright, upright_size
from jaxvision.typing import Array, Bool, Detections, Float, Regions, Segmentation, Variables

__all__ = ["Detect", "detect_with", "flipped_and_scaled", "predict", "tiled"]

Detect = Callable[..., Detections | Segmentation]


@functools.cache
def detect_with(model: nn.Module) -> Detect:
    """The model's own detections, or segmentation; compiled once a shape, however often it is asked for."""
    method = "segment" if isinstance(model, Segmenter) else "detect"
    return jax.jit(lambda variables, *inputs: model.apply(variables, *inputs, method=method))


@functools.cache
def detect_in_bytes(detect: Detect, mean: tuple[float, ...], std: tuple[float, ...], scale: float) -> Detect:
    """``detect`` of images uint8 [b, h, w, c], which it normalises first."""

    def detect_in(variables, images, image_sizes, *regions):
        pixels = ops.normalize(images, image_sizes, mean=mean, std=std, scale=scale)
        return detect(variables, pixels, image_sizes, *regions)

    return jax.jit(detect_in)


def predict(
    model: nn.Module | Detect,
    variables: Variables,
    images: Sequence[Any],
    *,
    preprocessing: Any,
    regions: Sequence[Float[np.ndarray, "_ 4"]] | None = None,
    batch_size: int = 4,
    shapes: Sequence[tuple[int, int]] | None = None,
    bucket: int | None = None,
    min_score: int | float = 0.0,
) -> list[Detections] | list[Segmentation]:
    """What is in each image: NumPy arrays with a row a detection, best first, boxes in pixels of the image as given; or
    the classes and probabilities of its pixels, whose probabilities are resized to the image as given, bilinear.

    images: files, Pillow images or uint8 arrays, whatever ``preprocessing`` takes: that of a weights record
    (``get_record(...).preprocessing``) or of a run. Its ``pixels`` makes bytes of the size that the network takes, and
    its ``mean``, ``std`` and ``scale`` normalise them on the device; a function without these makes normalised images.
    They are padded to the first of ``shapes`` = (height, width) that they fit into, or else to multiples of ``bucket``
    pixels, so that few shapes compile: by default of the network's own input size, or of 128 if it takes any. Images of
    segmenters are not padded by default, as that changes what they say of the pixels near it. A batch is filled up with
    zeros. Photographs are turned upright by their EXIF tag before.
    regions: for a detector that is given them, the boxes of each image in its own pixels (``data.selective_search``);
    they are padded to a multiple of 64.
    Raises: what ``preprocessing`` raises, with the image's place in the list.
    """
    detect = detect_with(model) if isinstance(model, nn.Module) else model
    if hasattr(preprocessing, "pixels"):
        detect = detect_in_bytes(detect, preprocessing.mean, preprocessing.std, preprocessing.scale)
    bucket = bucket or (1 if isinstance(model, Segmenter) else getattr(model, "init_size", 128))
    prepared = [_prepared(index, image, preprocessing) for index, image in enumerate(images)]
    padded = [_padded_shape(pixels.shape, shapes or (), bucket) for pixels, _ in prepared]
    if regions is not None:
        if len(regions) != len(prepared):
            raise ValueError(f"{len(prepared)} images, but regions for {len(regions)}")
        room = _multiple(max(map(len, regions), default=1), 64)
    found: dict[int, Detections | Segmentation] = {}
    for shape in dict.fromkeys(padded):
        members = [index for index, other in enumerate(padded) if other == shape]
        for first in range(0, len(members), batch_size):
            rows = members[first : first + batch_size]
            sizes = np.ones((batch_size, 2), np.float32)
            batch = np.zeros((batch_size, *shape), prepared[rows[0]][0].dtype)
            for row, index in enumerate(rows):
                pixels, _ = prepared[index]
                batch[row, : pixels.shape[0], : pixels.shape[1]] = pixels
                sizes[row] = pixels.shape[:2]
            inputs = [batch, sizes]
            if regions is not None:
                inputs.append(_padded_regions([regions[index] for index in rows], rows, prepared, (batch_size, room)))
            together = jax.device_get(detect(variables, *inputs))
            for row, index in enumerate(rows):
                pixels, original = prepared[index]
                one = jax.tree.map(lambda leaf, row=row: leaf[row], together)
                if isinstance(one, Segmentation):
                    found[index] = _at_original_size(one, pixels.shape[:2], original)
                else:
                    found[index] = _in_original_pixels(one, pixels.shape[:2], original, min_score)
    return [found[index] for index in range(len(prepared))]


def flipped_and_scaled(detect: Detect, *, flip: bool = True, scales: tuple[int | float, ...] = (1.0,)) -> Detect:
    """Test-time augmentation: the detections in views of the image, mirrored and at several scales, merged by NMS; or
    the mean of the probabilities that its pixels have in them.

    Every view is a window of the image, sampled by RoIAlign onto the input's own grid enlarged by the largest scale (to
    multiples of 32), and all views of an image are one batch of the network. Merging keeps as many detections as
    ``detect`` makes, and drops those that overlap a better one of their class by more than half.
    """

    def views(canvas, size):
        """Windows [v, 4] in the image's pixels that fill the canvas, whether mirrored, and the image's size in each."""
        scale = jnp.repeat(jnp.asarray(scales, jnp.float32), 1 + flip)
        mirrored = jnp.tile(jnp.arange(1 + flip) > 0, len(scales))
        height, width = canvas[0] / scale, canvas[1] / scale
        left = jnp.where(mirrored, size[1] - width, 0)
        windows = jnp.stack([left, jnp.zeros_like(left), left + width, height], axis=1)
        return windows, mirrored, scale[:, None] * size[None]

    def canvas(shape):
        return tuple(_multiple(side * max(*scales, 1.0), 32) for side in shape)

    def mean(found, windows, mirrored, size):
        return jax.vmap(functools.partial(_mean_of_views, size=size))(found, windows, mirrored)

    return _over_views(detect, views, canvas, mean)


def tiled(
    detect: Detect, *, size: tuple[int, int], overlap: int | float = 0.25, margin: int = 0, stride: int = 1
) -> Detect:
    """For images larger than the network's input: detections in overlapping tiles of ``size`` = (height, width), merged
    by NMS within each class; or the mean of the probabilities that pixels have in the tiles.

    Neighbours share at least ``overlap`` of a side; an object larger than that may be found in parts.
    margin, for segmenters: pixels so near to a tile's border, unless it is the image's, are taken from other tiles
    alone (the overlap-tile strategy of U-Net, arXiv:1505.04597, figure 2). With half the receptive field as margin, and
    tiles that start at multiples of the network's ``stride``, the result is that of the whole image. Where tiles reach
    beyond the image they see zeros.
    Raises: ValueError if the overlap is not in [0, 1), or has no room for two margins.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap={overlap}: neighbouring tiles share a part in [0, 1) of their side")
    if 2 * margin + stride - 1 > overlap * min(size):
        raise ValueError(
            f"margin={margin}: tiles of {size} that share {overlap} of a side leave gaps between what is inside their "
            "margins; take a larger overlap or larger tiles"
        )

    def detect_in_tiles(variables, images, image_sizes, regions=None):
        starts = [_starts(n, side, overlap, stride) for n, side in zip(images.shape[1:3], size)]
        top, left = np.meshgrid(*starts, indexing="ij")
        corners = np.stack([top.ravel(), left.ravel()], axis=1)
        low = corners[:, ::-1].astype(np.float32)
        windows = jnp.asarray(np.concatenate([low, low + np.array(size[::-1], np.float32)], axis=1))
        mirrored = jnp.zeros(len(low), bool)

        def views(_, true_size):
            inside = jnp.clip(true_size[None] - windows[:, 1::-1], 0, jnp.asarray(size, jnp.float32)[None])
            return windows, mirrored, inside

        def mean(found, windows, mirrored, size):
            place = functools.partial(_mean_of_tiles, corners=corners, size=size, margin=margin)
            return jax.vmap(place)(found.probabilities)

        return _over_views(detect, views, lambda _: size, mean)(variables, images, image_sizes, regions)

    return detect_in_tiles


def _starts(length: int, side: int, overlap: int | float, stride: int) -> np.ndarray:
    """Where the tiles along an axis begin: the first at 0, the last so that it reaches the end, or beyond it where that
    is no multiple of ``stride``."""
    count = 1 if length <= side else int(np.ceil((length - side) / (side * (1 - overlap)))) + 1
    starts = np.linspace(0, max(length - side, 0), count).round().astype(int)
    return np.unique(np.append(starts[:-1] // stride, -(-starts[-1:] // stride))) * stride


def _over_views(detect: Detect, views: Callable, canvas: Callable, mean: Callable) -> Detect:
    """``detect`` in all views of each image at once, their boxes taken back into the image and merged; of maps the
    ``mean`` of the views' [b, v, ...], and where these lie."""

    @jax.jit
    def detect_in_views(variables, images, image_sizes, regions=None):
        if regions is not None:
            raise ValueError("regions lie in the image, not in its views: give predict the detector itself")
        size = canvas(images.shape[1:3])

        def cut(image, image_size):
            windows, mirrored, inside = views(size, image_size)
            crops = ops.roi_align(image, windows, size=size, sampling_ratio=-1, aligned=True)
            crops = jnp.where(mirrored[:, None, None, None], crops[:, :, ::-1], crops)
            rows, columns = (jnp.arange(side)[None] < inside[:, axis, None] for axis, side in enumerate(size))
            return crops * (rows[:, :, None, None] & columns[:, None, :, None]), windows, mirrored, inside

        crops, windows, mirrored, inside = jax.vmap(cut)(images, image_sizes)
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (crops, inside))
        found = detect(variables, *flat)
        if isinstance(found, Segmentation):
            found = jax.tree.map(lambda leaf: leaf.reshape(len(images), -1, *leaf.shape[1:]), found)
            return segmentation(mean(found, windows, mirrored, images.shape[1:3]), image_sizes)
        limit = found.boxes.shape[1]
        found = jax.vmap(functools.partial(_into_image, canvas=size))(
            found, *(leaf.reshape(-1, *leaf.shape[2:]) for leaf in (windows, mirrored))
        )
        merged = jax.tree.map(lambda leaf: leaf.reshape(len(images), -1, *leaf.shape[2:]), found)
        clipped = jax.vmap(ops.boxes.clip)(merged.boxes, image_sizes)
        return jax.vmap(functools.partial(_merge, limit=limit))(merged._replace(boxes=clipped))

    return detect_in_views


def _into_image(found: Detections, window: Float[Array, "4"], mirrored: Bool[Array, ""], *, canvas) -> Detections:
    """Boxes of a view in the pixels of the image that its window was cut from; masks are mirrored back."""
    left, top, right, bottom = window
    x, y = (right - left) / canvas[1], (bottom - top) / canvas[0]
    boxes = found.boxes
    turned = jnp.stack([canvas[1] - boxes[:, 2], boxes[:, 1], canvas[1] - boxes[:, 0], boxes[:, 3]], axis=1)
    boxes = jnp.where(mirrored, turned, boxes)
    boxes = boxes * jnp.stack([x, y, x, y])[None] + jnp.stack([left, top, left, top])[None]
    masks = found.masks
    if masks is not None:
        masks = jnp.where(mirrored, masks[:, :, ::-1], masks)
    return found._replace(boxes=boxes, masks=masks)


def _merge(found: Detections, *, limit: int, iou_threshold: float = 0.5) -> Detections:
    scores = jnp.where(found.valid, found.scores, -jnp.inf)
    kept, valid = ops.batched_nms(found.boxes, scores, found.labels, iou_threshold=iou_threshold, max_output=limit)
    merged = jax.tree.map(lambda leaf: leaf[kept], found)

    def blank(leaf, value):
        return jnp.where(valid.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, value)

    return jax.tree.map(lambda leaf: blank(leaf, 0), merged)._replace(labels=blank(merged.labels, -1), valid=valid)


def _mean_of_tiles(probabilities, corners, size, margin):
    """Of pixels in the tiles [v, h, w, k] whose corners (top, left) are given, outside the margins; [h, w, k]."""
    tile, (height, width) = probabilities.shape[1:3], size
    reach = [max(int(corner) + side for corner in column) for column, side in zip(corners.T, tile)]
    total = jnp.zeros((*reach, probabilities.shape[-1]), probabilities.dtype)
    count = np.zeros((*reach, 1), np.float32)
    for own, corner in zip(probabilities, corners.tolist()):
        inner = [
            slice(0 if low == 0 else low + margin, low + side if low + side >= length else low + side - margin)
            for low, side, length in zip(corner, tile, (height, width))
        ]
        part = tuple(slice(cut.start - low, cut.stop - low) for cut, low in zip(inner, corner))
        total = total.at[tuple(inner)].add(own[part])
        count[tuple(inner)] += 1
    return (total / np.maximum(count, 1))[:height, :width]


def _mean_of_views(found: Segmentation, windows, mirrored, *, size):
    """Of what the views [v, h, w, k] show of each pixel of an image, by bilinear samples; [h, w, k]."""
    height, width = size
    maps = jnp.concatenate([found.probabilities, found.valid[..., None].astype(found.probabilities.dtype)], axis=-1)
    maps = jnp.where(mirrored[:, None, None, None], maps[:, :, ::-1], maps)
    total = jnp.zeros((height, width, maps.shape[-1]), maps.dtype)
    for view, (left, top, right, bottom) in zip(maps, windows):
        x, y = view.shape[1] / (right - left), view.shape[0] / (bottom - top)
        whole = jnp.stack([-left * x, -top * y, (width - left) * x, (height - top) * y])  # the image in the view
        shown = ops.roi_align(view, whole[None], size=size, sampling_ratio=1, aligned=True)[0]
        rows, columns = jnp.arange(height) + 0.5, jnp.arange(width) + 0.5
        inside = ((rows > top) & (rows < bottom))[:, None] & ((columns > left) & (columns < right))[None, :]
        total = total + jnp.where(inside[..., None], shown, 0)
    return total[..., :-1] / jnp.maximum(total[..., -1:], 1e-6)


def _prepared(index: int, image: Any, preprocessing: Any) -> tuple[np.ndarray, tuple[int, int]]:
    """The bytes of the network's image, or the normalised image, and the (height, width) it had."""
    from PIL import Image

    try:
        if isinstance(image, Image.Image):
            image = upright(image)
            original = image.height, image.width
        elif isinstance(image, np.ndarray):
            original = image.shape[:2]
        else:
            original = _size_of_file(image)
        if hasattr(preprocessing, "pixels"):
            return preprocessing.pixels(image), original
        return np.asarray(preprocessing(image), np.float32), original
    except (OSError, ValueError) as error:
        raise ValueError(f"image {index} of the list: {error}") from error


def _size_of_file(path: Any) -> tuple[int, int]:
    try:
        with open_picture(path) as picture:
            return upright_size(picture)
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        raise ValueError(f"{path}: {error}") from error


def _padded_regions(regions, rows, prepared, shape: tuple[int, int]) -> Regions:
    """The regions of a batch in the pixels of the network's images."""
    boxes, valid = np.zeros((*shape, 4), np.float32), np.zeros(shape, bool)
    for row, (index, own) in enumerate(zip(rows, regions)):
        pixels, original = prepared[index]
        scale = np.array([pixels.shape[1] / original[1], pixels.shape[0] / original[0]] * 2, np.float32)
        boxes[row, : len(own)], valid[row, : len(own)] = own * scale, True
    return Regions(boxes, valid)


def _padded_shape(shape: tuple[int, ...], shapes: Sequence[tuple[int, int]], bucket: int) -> tuple[int, ...]:
    height, width, channels = shape
    fitting = (known for known in shapes if height <= known[0] and width <= known[1])
    return (*next(fitting, (_multiple(height, bucket), _multiple(width, bucket))), channels)


def _multiple(length: int | float, of: int) -> int:
    return int(-(-length // of) * of)


def _in_original_pixels(found: Detections, size, original, min_score: float) -> Detections:
    """The valid rows, their boxes scaled from the network's image to the one as given."""
    scale = np.array([original[1] / size[1], original[0] / size[0]] * 2, np.float32)
    kept = found.valid & (found.scores >= min_score)
    return jax.tree.map(lambda leaf: leaf[kept], found._replace(boxes=found.boxes * scale))


def _at_original_size(found: Segmentation, size, original) -> Segmentation:
    """The part inside the padding, its probabilities resized to the image as given."""
    probabilities = found.probabilities[: size[0], : size[1]]
    if size != original:
        probabilities = np.asarray(ops.resize(probabilities, size=original))
    return Segmentation(probabilities.argmax(-1), probabilities, np.ones(original, bool))
