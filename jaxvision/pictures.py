"""Opening picture files: which formats, of what size, the right way up."""

import io
import os
from typing import Any

__all__ = ["FORMATS", "MAX_ASPECT", "MAX_PIXELS", "check_picture", "open_picture", "upright", "upright_size"]

# What is asked of Pillow, which would hand other files to further programs, Ghostscript for one.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
MAX_PIXELS = 2**26
MAX_ASPECT = 64  # of the longer side to the shorter, lest a thin picture grow beyond memory where that is enlarged
ORIENTATION = 0x0112


def open_picture(file: str | os.PathLike | io.BytesIO) -> Any:
    """The picture as Pillow opens it, its pixels not yet decoded.

    Raises: ValueError for another format than ``FORMATS``, and as ``check_picture``; and what Pillow raises for files
    that are missing or damaged.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError(f"not a picture in one of the formats {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"more than the {MAX_PIXELS:,} pixels that are read; make it smaller") from error
    try:
        check_picture(picture)
    except ValueError:
        picture.close()
        raise
    return picture


def check_picture(picture: Any) -> None:
    """Raises: ValueError for a picture that is too large, too thin or too deep."""
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}×{height} are more than the {MAX_PIXELS:,} pixels that are read; make it smaller")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"{width}×{height}: one side is more than {MAX_ASPECT} times the other; cut it into parts")
    if picture.mode.startswith(("I", "F")):  # Pillow would cut values beyond 255 off without a word
        raise ValueError(f"mode {picture.mode}: more than 8 bits a channel; scale it to 8 bits first")


def upright(picture: Any) -> Any:
    """The picture turned as its EXIF tag says."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(picture) if picture.getexif().get(ORIENTATION, 1) != 1 else picture


def upright_size(picture: Any) -> tuple[int, int]:
    """(height, width) once it is turned as its EXIF tag says."""
    lies = picture.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    return picture.size if lies else picture.size[::-1]
