"""Pictures of predictions: arrays in, an RGB uint8 array [h, w, 3] out; nothing is shown or saved.

A class has the same colour in every picture. ``scale`` enlarges the picture first, so that text and outlines on a small
image stay fine: boxes and masks are always given in pixels of the image as passed. Where no font on this machine has
the characters of a class's name, its number is written instead; the logger "jaxvision" says so.
"""

import colorsys
import functools
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxvision.typing import IGNORE, Array, Bool, Detections, Float, Int, Integer, Targets

logger = logging.getLogger("jaxvision")

__all__ = [
    "class_color",
    "color_map",
    "draw_boxes",
    "draw_classes",
    "draw_detections",
    "draw_masks",
    "draw_segmentation",
    "draw_table",
    "draw_targets",
    "grid",
    "label_picture",
]

PLACEHOLDERS = "Last Resort"  # a font that matplotlib brings: every character is a box
LONGEST_NAME = 100  # characters; no tag has room for as many
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def class_color(label: int) -> tuple[int, int, int]:
    """The RGB colour of a class: hues a golden ratio apart, so that any few neighbours differ well."""
    hue = (0.02 + int(label) * GOLDEN_RATIO) % 1
    # Yellow to cyan look lighter than red and blue of the same value.
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.78, 0.86 if 0.12 < hue < 0.55 else 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(
    image: Array,
    boxes: Float[Array, "n 4"],
    *,
    labels: Int[Array, " n"] | None = None,
    scores: Float[Array, " n"] | None = None,
    names: Sequence[Any] | None = None,
    scale: int = 1,
) -> np.ndarray:
    """Boxes with a tag of class and score; the best score is drawn last, on top.

    image: RGB uint8. boxes: xyxy in its pixels. labels: choose the colour; without them each box has its own.
    names: of the classes, which ``str`` writes; numbers otherwise.
    Raises: ValueError if the image is not RGB uint8, or a label has no name.
    """
    picture = Image.fromarray(_enlarged(image, scale))
    boxes = np.asarray(boxes, np.float64) * scale
    draw = ImageDraw.Draw(picture)
    line = max(2, round(min(picture.size) / 250))
    font_size = max(11, min(24, round(min(picture.size) / 32)))
    colors = _colors(labels, len(boxes))
    order = list(range(len(boxes))) if scores is None else np.argsort(scores, kind="stable").tolist()
    # Tags after all outlines: a line through a word makes it unreadable.
    for i in order:
        left, top, right, bottom = _on_picture(boxes[i], picture.size)
        dark = tuple(channel // 4 for channel in colors[i])
        draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=dark, width=line + 2)
        draw.rectangle((left, top, right, bottom), outline=colors[i], width=line)
    for i in order:
        name = "" if labels is None else _name(int(labels[i]), names)
        score = "" if scores is None else f"{100 * float(scores[i]):.0f}%"
        if name or score:
            _draw_tag(draw, name, score, _on_picture(boxes[i], picture.size), colors[i], font_size, picture.size)
    return np.asarray(picture)


def draw_masks(
    image: Array,
    masks: Bool[Array, "n h w"] | Float[Array, "n m m"],
    *,
    boxes: Float[Array, "n 4"] | None = None,
    labels: Int[Array, " n"] | None = None,
    opacity: float = 0.45,
    scale: int = 1,
) -> np.ndarray:
    """Masks as a tint with a solid outline; the first mask is drawn last, on top.

    masks: bool in the plane of the image or, with ``boxes``, probabilities on each box's own grid, cut at 0.5.
    labels: choose the colour; without them each mask has its own.
    Raises: ValueError if the image is not RGB uint8, or full masks have another size than the image.
    """
    picture = _enlarged(image, scale).astype(np.float32)
    masks = np.asarray(masks)
    if boxes is None and len(masks) and masks.shape[1:] != np.shape(image)[:2]:
        raise ValueError(f"masks of {masks.shape[1:]} on an image of {np.shape(image)[:2]}; give boxes to paste them")
    thick = max(1, round(min(picture.shape[:2]) / 350))
    colors = _colors(labels, len(masks))
    for i in reversed(range(len(masks))):
        if boxes is None:
            inside = np.repeat(np.repeat(masks[i], scale, 0), scale, 1)
        else:
            inside = _pasted(masks[i], np.asarray(boxes[i], np.float64) * scale, picture.shape[:2])
        color = np.array(colors[i], np.float32)
        picture[inside] += (color - picture[inside]) * opacity
        picture[_outline(inside, thick)] = color
    return np.round(picture).astype(np.uint8)


def draw_detections(
    image: Array,
    detections: Detections,
    *,
    names: Sequence[Any] | None = None,
    min_score: float = 0.5,
    scale: int | None = None,
) -> np.ndarray:
    """The detections of one image that are valid and reach ``min_score``: masks, boxes, classes, scores.

    scale: None enlarges a small image until text fits beside its objects.
    """
    scale = _readable(image) if scale is None else scale
    shown = np.flatnonzero(np.asarray(detections.valid) & (np.asarray(detections.scores) >= min_score))
    boxes, scores, labels = (np.asarray(x)[shown] for x in detections[:3])
    picture = _enlarged(image, scale)
    if detections.masks is not None:
        masks = np.asarray(detections.masks)[shown]
        picture = draw_masks(picture, masks, boxes=boxes * scale, labels=labels)
    return draw_boxes(picture, boxes * scale, labels=labels, scores=scores, names=names)


def draw_targets(image: Array, targets: Targets, *, names: Sequence[Any] | None = None, scale: int = 1) -> np.ndarray:
    """The ground truth of one image, which may be the part of the padded input inside the padding."""
    shown = np.flatnonzero(np.asarray(targets.valid))
    boxes, labels = np.asarray(targets.boxes)[shown], np.asarray(targets.labels)[shown]
    picture = _enlarged(image, scale)
    if targets.masks is not None and targets.mask_boxes is not None:
        shares, frames = np.asarray(targets.masks)[shown] / 255, np.asarray(targets.mask_boxes)[shown]
        picture = draw_masks(picture, shares, boxes=frames * scale, labels=labels)
    elif targets.masks is not None:
        height, width = np.shape(image)[:2]
        masks = np.asarray(targets.masks)[shown, :height, :width]
        picture = draw_masks(picture, np.repeat(np.repeat(masks, scale, 1), scale, 2), labels=labels)
    return draw_boxes(picture, boxes * scale, labels=labels, names=names)


def draw_classes(
    image: Array,
    probabilities: Float[Array, " c"],
    *,
    names: Sequence[Any] | None = None,
    top: int = 5,
    scale: int | None = None,
) -> np.ndarray:
    """An image with its ``top`` most probable classes beside it, as bars. scale: as in ``draw_detections``."""
    picture = _enlarged(image, _readable(image) if scale is None else scale)
    probabilities = np.asarray(probabilities, np.float64)
    best = np.argsort(-probabilities, kind="stable")[:top].tolist()
    row, width = 44, 280
    panel = Image.new("RGB", (width, row * len(best) + 8), "white")
    draw = ImageDraw.Draw(panel)
    for i, label in enumerate(best):
        name, percent = _name(label, names), f"{100 * probabilities[label]:.1f}%"
        font, plain = _font(name, 15), _font("", 15)
        name = _shortened(name, font, width - 24 - plain.getlength(percent))
        top_edge, end = 8 + i * row, 8 + round((width - 16) * float(np.clip(probabilities[label], 0, 1)))
        draw.text((8, top_edge), name, fill=(20, 20, 20), font=font)
        draw.text((width - 8, top_edge), percent, fill=(90, 90, 90), font=plain, anchor="ra")
        draw.rectangle((8, top_edge + 21, width - 9, top_edge + 28), fill=(235, 235, 235))
        draw.rectangle((8, top_edge + 21, max(end, 10), top_edge + 28), fill=class_color(label))
    return _beside(picture, panel)


def _beside(picture: np.ndarray, panel: Image.Image) -> np.ndarray:
    """A picture and what stands to its right, both in the middle."""
    height = max(picture.shape[0], panel.height)
    canvas = Image.new("RGB", (picture.shape[1] + panel.width, height), "white")
    canvas.paste(Image.fromarray(picture), (0, (height - picture.shape[0]) // 2))
    canvas.paste(panel, (picture.shape[1], (height - panel.height) // 2))
    return np.asarray(canvas)


def color_map(labels: Integer[Array, "h w"]) -> np.ndarray:
    """A map of classes in their colours; white where there is none (255, or less than 0)."""
    labels = np.asarray(labels, np.int32)
    known = (labels >= 0) & (labels != IGNORE)
    colors = np.array([class_color(label) for label in range(int(labels[known].max(initial=0)) + 1)], np.uint8)
    return np.where(known[..., None], colors[np.where(known, labels, 0)], np.uint8(255))


def draw_segmentation(
    image: Array,
    labels: Integer[Array, "h w"],
    *,
    names: Sequence[Any] | None = None,
    opacity: float = 0.55,
    background: int | None = None,
    scale: int | None = None,
) -> np.ndarray:
    """An image under the colours of its classes, which a legend beside it names, the largest first.

    background: a class that is left as it is. scale: as in ``draw_detections``.
    """
    scale = _readable(image) if scale is None else scale
    labels = np.asarray(labels, np.int32)
    large = np.repeat(np.repeat(labels, scale, 0), scale, 1)
    picture = _enlarged(image, scale)
    painted = (large >= 0) & (large != IGNORE) & (large != (-1 if background is None else background))
    blend = (1 - opacity) * picture + opacity * color_map(large)
    picture = np.where(painted[..., None], np.round(blend), picture).astype(np.uint8)
    classes, pixels = np.unique(labels[(labels >= 0) & (labels != IGNORE)], return_counts=True)
    order = np.argsort(-pixels, kind="stable")
    row, width = 26, 250
    rows = [(int(classes[i]), pixels[i] / labels.size) for i in order][: max(1, (max(len(picture), 200) - 8) // row)]
    panel = Image.new("RGB", (width, row * len(rows) + 8), "white")
    draw = ImageDraw.Draw(panel)
    for i, (label, share) in enumerate(rows):
        name, percent = _name(label, names), f"{100 * share:.1f}%"
        font, plain = _font(name, 15), _font("", 15)
        top = 6 + i * row
        draw.rectangle((8, top, 26, top + 18), fill=class_color(label), outline=(120, 120, 120))
        draw.text((34, top), _shortened(name, font, width - 52 - plain.getlength(percent)), (20, 20, 20), font)
        draw.text((width - 8, top), percent, fill=(90, 90, 90), font=plain, anchor="ra")
    return _beside(picture, panel)


def label_picture(labels: Integer[Array, "h w"]) -> Image.Image:
    """A map of classes as a picture of numbers with a palette, which data sets hold as PNG; 255 where there is none."""
    picture = Image.fromarray(np.where(np.asarray(labels) < 0, IGNORE, np.asarray(labels)).astype(np.uint8), mode="L")
    palette = [channel for label in range(IGNORE) for channel in class_color(label)] + [255, 255, 255]
    picture = picture.convert("P")
    picture.putpalette(palette)
    return picture


def draw_table(table: Integer[Array, "k k"], *, names: Sequence[Any] | None = None) -> np.ndarray:
    """A table of ``evaluate.confusion``: of each class (rows) the shares of its pixels by what they were taken for."""
    table = np.asarray(table, np.float64)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    cell = 30 if len(table) <= 40 else 12
    labels = [_shortened(_name(i, names), _font(_name(i, names), 14), 150.0) for i in range(len(table))]
    margin = 14 + round(max(_font(label, 14).getlength(label) for label in labels))
    side = margin + cell * len(table) + 8
    canvas = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(canvas)
    turned = Image.new("L", (side, margin), 0)  # names of the columns, written along the rows and turned
    for i, label in enumerate(labels):
        place = margin + i * cell + cell // 2
        draw.text((margin - 6, place), label, fill=(20, 20, 20), font=_font(label, 14), anchor="rm")
        word = Image.new("L", (margin, cell), 0)
        ImageDraw.Draw(word).text((6, cell // 2), label, fill=255, font=_font(label, 14), anchor="lm")
        turned.paste(word.rotate(90, expand=True), (margin + i * cell, 0))
        for j, share in enumerate(shares[i]):
            left, grey = margin + j * cell, round(255 * (1 - share))
            shade = (grey, grey, 255) if i == j else (255, grey, grey)
            draw.rectangle((left, place - cell // 2, left + cell - 2, place + cell - cell // 2 - 2), fill=shade)
            if cell == 30 and share >= 0.005:
                text = (255, 255, 255) if share > 0.6 else (60, 60, 60)
                draw.text((left + cell // 2, place), f"{100 * share:.0f}", text, _font("", 12), anchor="mm")
    canvas.paste((20, 20, 20), (0, 0), turned)
    return np.asarray(canvas)


def grid(images: Sequence[Array], *, columns: int | None = None, gap: int = 6) -> np.ndarray:
    """Pictures side by side on white, row by row; smaller ones are centred. columns: about square if None.

    Raises: ValueError if there are no images.
    """
    if not len(images):
        raise ValueError("grid needs at least one image")
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    height, width = (max(np.shape(image)[axis] for image in images) for axis in (0, 1))
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        image = _enlarged(image, 1)
        h, w = image.shape[:2]
        top = gap + i // columns * (height + gap) + (height - h) // 2
        left = gap + i % columns * (width + gap) + (width - w) // 2
        canvas[top : top + h, left : left + w] = image
    return canvas


def _readable(image: Array) -> int:
    """The scale at which the shorter side has about 360 pixels; at most 8."""
    return max(1, min(8, round(360 / max(1, min(np.shape(image)[:2])))))


def _enlarged(image: Array, scale: int) -> np.ndarray:
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image is RGB uint8 [h, w, 3], not {image.dtype}{list(image.shape)}")
    if scale == 1:
        return image
    height, width = image.shape[:2]
    return np.asarray(Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.BICUBIC))


def _colors(labels: Array | None, number: int) -> list[tuple[int, int, int]]:
    return [class_color(label) for label in (range(number) if labels is None else np.asarray(labels).tolist())]


def _on_picture(box: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box's outer pixels, inside the picture, and in order even for a box that is all outside or degenerate."""
    left, right = np.clip(np.nan_to_num(box[[0, 2]]), 0, size[0] - 1)
    top, bottom = np.clip(np.nan_to_num(box[[1, 3]]), 0, size[1] - 1)
    return round(left), round(top), round(max(left, right)), round(max(top, bottom))


def _name(label: int, names: Sequence[Any] | None) -> str:
    """What is written for a class, on one line: its name, or its number where there is none that can be written."""
    if names is None:
        return str(label)
    if not 0 <= label < len(names):
        raise ValueError(f"label {label} has no name among {len(names)}")
    name = " ".join("".join(one if one.isprintable() else " " for one in str(names[label])[:LONGEST_NAME]).split())
    return name if name and _font_file(name) is not None else str(label)


@functools.lru_cache(maxsize=10_000)
def _font_file(text: str) -> str | None:
    """A font that has all characters of a text: the one that matplotlib brings, or one of this machine."""
    from matplotlib import font_manager

    own = font_manager.findfont("DejaVu Sans")
    others = sorted({font.fname for font in font_manager.fontManager.ttflist if not font.name.startswith(PLACEHOLDERS)})
    for path in (own, *others):
        if _characters(path).issuperset(map(ord, text)):
            return path
    logger.warning("no font on this machine has the characters of %r; pictures show the number of the class", text)
    return None


@functools.cache
def _characters(path: str) -> frozenset[int]:
    """The code points that a font draws; none for one that lacks what scores need, or has no outlines."""
    from matplotlib.ft2font import FT2Font

    try:
        _load_font(path, 15)
        found = frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
    return found if found.issuperset(map(ord, "0123456789% …")) else frozenset()


def _font(text: str, size: int) -> ImageFont.FreeTypeFont:
    return _load_font(_font_file(text) or _font_file(""), size)


@functools.lru_cache(maxsize=100)
def _load_font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def _shortened(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """As much of a text as fits into so many pixels, with an ellipsis if that is not all; empty if nothing fits."""
    if font.getlength(text) <= room:
        return text
    fitting = (f"{text[:end].rstrip()}…" for end in range(len(text) - 1, 0, -1))
    return next((part for part in fitting if font.getlength(part) <= room), "")


def _draw_tag(
    draw: ImageDraw.ImageDraw,
    name: str,
    score: str,
    box: tuple[int, int, int, int],
    color: tuple[int, int, int],
    font_size: int,
    size: tuple[int, int],
) -> None:
    """Above the box's left corner, or just inside it where there is no room. A name that is wider than the picture is
    shortened, the score is not."""
    font = _font(name, font_size)
    room = size[0] - 6 - font.getlength(f" {score}" if score else "")
    text = " ".join(part for part in (_shortened(name, font, room), score) if part)
    ascent, descent = font.getmetrics()
    width, height = round(font.getlength(text)) + 6, ascent + descent + 1
    left = max(min(box[0] - 1, size[0] - width), 0)
    top = max(box[1] - height if box[1] >= height else min(box[1], size[1] - height), 0)
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=color)
    light = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
    draw.text((left + 3, top), text, fill=(0, 0, 0) if light else (255, 255, 255), font=font)


def _pasted(mask: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Where bilinear samples of a box's probabilities [m, m] reach 0.5, in a picture of ``size`` (h, w)."""
    width, height = box[2] - box[0], box[3] - box[1]
    if not (width > 0 and height > 0):
        return np.zeros(size, bool)
    across, down = mask.shape[1] / width, mask.shape[0] / height
    sampled = Image.fromarray(mask.astype(np.float32)).transform(
        (size[1], size[0]),
        Image.Transform.AFFINE,
        (across, 0, -box[0] * across, 0, down, -box[1] * down),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(sampled) >= 0.5


def _outline(inside: np.ndarray, thick: int) -> np.ndarray:
    """The pixels of a mask within ``thick`` of its edge; the picture's border is no edge."""
    kept = inside
    for _ in range(thick):
        padded = np.pad(kept, 1, constant_values=True)
        kept = kept & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~kept
