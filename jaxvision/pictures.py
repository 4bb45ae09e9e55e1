"""Opening picture files: which formats, of what size, the right way up."""

import io
import os
import struct
from typing import Any

__all__ = [
    "DAMAGE",
    "FORMATS",
    "MAX_ASPECT",
    "MAX_PIXELS",
    "check_picture",
    "check_size",
    "open_picture",
    "upright",
    "upright_size",
]

# What is asked of Pillow, which would hand other files to further programs, Ghostscript for one.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
MAX_PIXELS = 2**26
MAX_ASPECT = 64  # of the longer side to the shorter, lest a thin picture grow beyond memory where that is enlarged
ORIENTATION = 0x0112
TURNS = {  # what sets a picture of each orientation upright
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error)  # what Pillow raises of damaged files


def open_picture(file: str | os.PathLike | io.BytesIO, *, deep: bool = False) -> Any:
    """The picture as Pillow opens it, its pixels not yet decoded; ``deep``: it may have integers of more than 8 bits.

    Raises: ValueError for another format than ``FORMATS``, and as ``check_picture``; and what Pillow raises for files
    that are missing or damaged.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ValueError(f"not a picture in one of the formats {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # or where warnings are errors
        raise ValueError(f"more than the {MAX_PIXELS:,} pixels that are read; make it smaller") from error
    try:
        check_picture(picture, deep=deep)
    except ValueError:
        picture.close()
        raise
    return picture


def check_picture(picture: Any, *, deep: bool = False) -> None:
    """Raises: ValueError for a picture that is too large, too thin or too deep."""
    check_size(*picture.size)
    if picture.mode.startswith("F" if deep else ("I", "F")):  # Pillow would cut values beyond 255 off without a word
        raise ValueError(f"mode {picture.mode}: more than 8 bits a channel; scale it to 8 bits first")


def check_size(width: int, height: int) -> None:
    """Raises: ValueError for a size that no picture may have."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}×{height} are more than the {MAX_PIXELS:,} pixels that are read; make it smaller")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"{width}×{height}: one side is more than {MAX_ASPECT} times the other; cut it into parts")


def upright(picture: Any) -> Any:
    """The picture turned as its EXIF tag says. Pillow's own way writes all tags anew, and stumbles over odd ones."""
    from PIL import Image

    turn = TURNS.get(picture.getexif().get(ORIENTATION))
    return picture if turn is None else picture.transpose(Image.Transpose[turn])


def upright_size(picture: Any) -> tuple[int, int]:
    """(height, width) once it is turned as its EXIF tag says."""
    lies = picture.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    return picture.size if lies else picture.size[::-1]
