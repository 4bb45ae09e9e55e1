"""Malformed pictures, folders of classes and VOC folders."""

import io
import struct
import zlib

import numpy as np
import pytest
from case import Case, by_name, check
from PIL import Image

from jaxvision import get_record
from jaxvision.data import ImageFolder, VocDetection
from jaxvision.data.images import read_image, read_picture
from jaxvision.inference import predict

# Pillow says so of TIFF before it raises
pytestmark = pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning")

HEIGHT, WIDTH = 30, 40


def encoded(kind, image=None, **options):
    buffer = io.BytesIO()
    image = Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)) if image is None else image
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_of(width, height):
    """A PNG of a few bytes that says it has so many pixels."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(ran) print\nshowpage\n%%EOF\n"
JPEG, PNG = encoded("jpeg"), encoded("png")
PICTURES = {
    "empty": (b"", "not a readable image"),
    "one byte": (b"\xff", "not a picture in one of the formats"),
    "text": (b"a photograph", "not a picture in one of the formats"),
    "HTML of a failed download": (b"<!DOCTYPE html><html>404</html>", "not a picture in one of the formats"),
    "EPS, which would start Ghostscript": (EPS, "JPEG, PNG"),
    "PDF": (b"%PDF-1.7\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF", "JPEG, PNG"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "JPEG, PNG"),
    "Windows metafile": (b"\xd7\xcd\xc6\x9a" + bytes(60), "JPEG, PNG"),
    "icon": (encoded("ico"), "JPEG, PNG"),
    "TGA": (encoded("tga"), "JPEG, PNG"),
    "JPEG cut off": (JPEG[: len(JPEG) // 2], "not a readable image"),
    "JPEG of a header": (JPEG[:40], "not a readable image"),
    "JPEG without tables": (JPEG[:2] + JPEG[-30:], "not a readable image"),
    "PNG cut off": (PNG[: len(PNG) // 2], "not a readable image"),
    "PNG of a signature": (PNG[:8], "not a readable image"),
    "PNG with a wrong checksum": (PNG[:30] + bytes([PNG[30] ^ 1]) + PNG[31:], "not a readable image"),
    "PNG of 16 bits": (encoded("png", Image.fromarray(np.zeros((9, 9), np.uint16))), "more than 8 bits"),
    "TIFF of floats": (encoded("tiff", Image.fromarray(np.zeros((9, 9), np.float32))), "more than 8 bits"),
    "TIFF cut off": (encoded("tiff")[:60], "not a readable image"),
    "GIF cut off": (encoded("gif")[:20], "not a readable image"),
    "WebP cut off": (encoded("webp")[:24], "not a readable image"),
    "BMP cut off": (encoded("bmp")[:60], "not a readable image"),
    "50,000 x 1 pixels": (png_of(50_000, 1), "50000×1"),
    "1 x 50,000 pixels": (png_of(1, 50_000), "1×50000"),
    "20,000 x 20,000 pixels": (png_of(20_000, 20_000), "67,108,864 pixels"),
    "10,000 x 10,000 pixels, where Pillow warns": (png_of(10_000, 10_000), "67,108,864 pixels"),
    "2,000,000,000 x 2,000,000,000 pixels": (png_of(2_000_000_000, 2_000_000_000), "pixels"),
    "no pixels": (png_of(0, 10), "not a readable image"),
}


def picture(name):
    content, word = PICTURES[name]

    def run(folder):
        (folder / "photo.jpg").write_bytes(content)
        return read_image(folder / "photo.jpg")

    return Case(f"picture: {name}", run, ("photo.jpg", word))


def in_predict(name):
    """The same file, given to ``jv.predict`` and to a record's preprocessing."""
    content, _ = PICTURES[name]

    def run(folder):
        (folder / "photo.jpg").write_bytes(content)
        record = get_record("resnet18")
        with pytest.raises(ValueError, match=r"photo\.jpg"):
            record.preprocessing(folder / "photo.jpg")
        return predict(lambda *_: None, {}, [folder / "photo.jpg"], preprocessing=record.preprocessing)

    return Case(f"predict: {name}", run, ("image 0 of the list", "photo.jpg"))


OUTSIDE_OF_BOX = ("name", "difficult")
GOOD = {"name": "dog", "xmin": 11, "ymin": 6, "xmax": 20, "ymax": 15}


def voc(case, /, *words, annotation=None, size=(HEIGHT, WIDTH), listing="a\n", categories=("dog",), **change):
    """A VOC folder with one object, changed; ``annotation`` is the XML itself."""

    def run(folder):
        root = folder / "VOC2007"
        for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / part).mkdir(parents=True)
        item = {key: value for key, value in (GOOD | change).items() if value is not ...}
        box = "".join(f"<{key}>{value}</{key}>" for key, value in item.items() if key not in OUTSIDE_OF_BOX)
        named = "".join(f"<{key}>{item[key]}</{key}>" for key in OUTSIDE_OF_BOX if key in item)
        sides = "".join(f"<{key}>{value}</{key}>" for key, value in zip(("height", "width"), size) if value is not ...)
        text = f"<annotation><size>{sides}</size><object>{named}<bndbox>{box}</bndbox></object></annotation>"
        (root / "JPEGImages" / "a.jpg").write_bytes(JPEG)
        if annotation is not ...:
            content = text if annotation is None else annotation
            (root / "Annotations" / "a.xml").write_bytes(content if isinstance(content, bytes) else content.encode())
        if listing is not ...:
            content = listing if isinstance(listing, bytes) else listing.encode()
            (root / "ImageSets" / "Main" / "all.txt").write_bytes(content)
        return VocDetection(folder, ["VOC2007/all"], categories=categories)[0]

    return Case(f"VOC: {case}", run, words)


BOMB = '<!DOCTYPE a [<!ENTITY x "aaaaaaaaaa"><!ENTITY y "&x;&x;&x;&x;&x;">]><annotation>&y;</annotation>'


def in_folder(name, files, *words, **options):
    def run(folder):
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        return ImageFolder(folder, **options)[0]

    return Case(f"folder: {name}", run, words)


def folder_with(folder, content):
    (folder / "cat").mkdir()
    (folder / "cat" / "a.jpg").write_bytes(content)
    return ImageFolder(folder)


def gone(folder):
    source = folder_with(folder, JPEG)
    (folder / "cat" / "a.jpg").unlink()
    return source


CASES = (
    *(picture(name) for name in PICTURES),
    *(
        in_predict(name)
        for name in ("EPS, which would start Ghostscript", "50,000 x 1 pixels", "JPEG cut off", "empty")
    ),
    Case("picture: missing", lambda folder: read_image(folder / "x.png"), ("x.png", "no such image file")),
    Case("picture: a folder", lambda folder: read_image(folder), ("not a readable image",)),
    Case("picture: scaled and missing", lambda f: read_picture(f / "x.jpg", at_least=(9, 9)), ("x.jpg", "no such")),
    voc("no list", "all.txt", "no such list", listing=...),
    voc("list in Latin-1", "all.txt", "UTF-8", listing="é\n".encode("latin-1")),
    voc("list is empty", "no usable image", listing="\n"),
    voc("list names another image", "b.jpg", "no such image file", listing="b\n"),
    voc("no annotation", "a.xml", "no such annotation", annotation=...),
    voc("annotation empty", "a.xml", "no element found", annotation=""),
    voc("annotation cut off", "a.xml", annotation="<annotation><size>"),
    voc("annotation is JSON", "a.xml", annotation="{}"),
    voc("annotation of entities", "a.xml", "DOCTYPE", annotation=BOMB),
    voc("annotation in another encoding", "a.xml", annotation="<annotation>é</annotation>".encode("latin-1")),
    voc("annotation of entities in UTF-16", "a.xml", "UTF-8", annotation=BOMB.encode("utf-16")),
    voc("annotation in no encoding", "a.xml", annotation='<?xml version="1.0" encoding="latin-9000"?><a/>'),
    voc("list leads out", "all.txt", "'../../b'", "leads out of the folder", listing="a\n../../b\n"),
    voc("list has absolute paths", "all.txt", "'/data/b'", "leads out of the folder", listing="/data/b 1\n"),
    voc("of 400 Mpixel", "a.xml", "20000×20000", "67,108,864 pixels", size=(20_000, 20_000)),
    voc("of one line", "a.xml", "50000×1", "64 times", size=(1, 50_000)),
    voc("difficult text", "a.xml", "object 0", "difficult", "'maybe'", difficult="maybe"),
    voc("difficult 2", "a.xml", "difficult", "'2'", difficult="2"),
    voc("no size", "a.xml", "size/height", annotation="<annotation/>"),
    voc("no height", "a.xml", "size/height", size=(..., WIDTH)),
    voc("height text", "a.xml", "size/height", "tall", size=("tall", WIDTH)),
    voc("height zero", "a.xml", "size/height", size=(0, WIDTH)),
    voc("width NaN", "a.xml", "size/width", "finite", size=(HEIGHT, "nan")),
    voc("width a fraction", "a.xml", "size/width", "whole number", size=(HEIGHT, 40.5)),
    voc("size of another picture", "a.jpg", "30×40", "60×80", size=(60, 80)),
    voc("size turned", "a.jpg", "30×40", "40×30", size=(WIDTH, HEIGHT)),
    voc("no name", "a.xml", "object 0", "name", name=...),
    voc("unknown name", "a.xml", "object 0", "'unicorn'", name="unicorn"),
    voc("another case of the name", "a.xml", "'Dog'", name="Dog"),
    voc("no xmin", "a.xml", "object 0", "bndbox/xmin", xmin=...),
    voc("xmin text", "a.xml", "bndbox/xmin", "left", xmin="left"),
    voc("ymin infinite", "a.xml", "bndbox/ymin", "finite", ymin="inf"),
    voc("xmax NaN", "a.xml", "bndbox/xmax", "finite", xmax="nan"),
    voc("xmax below xmin", "a.xml", "object 0", "is empty", xmax=3),
    voc("ymax below ymin", "a.xml", "is empty", ymax=-4),
    voc("box right of the image", "a.xml", "outside its image of 30×40", xmin=41, xmax=50),
    voc("box below the image", "a.xml", "outside its image", ymin=31, ymax=33),
    voc("box far to the right", "a.xml", "object 0", "1e+09", "far outside its image of 30×40", xmax=1e9),
    voc("box far above", "a.xml", "object 0", "far outside", ymin=-1e39),
    voc("box left of the image", "a.xml", "outside its image", xmin=-20, xmax=-5),
    in_folder("no classes", {"a.jpg": JPEG}, "no folders inside"),
    in_folder("a class without pictures", {"cat/a.jpg": JPEG, "dog/readme.txt": b"x"}, "dog", "no pictures"),
    in_folder("a picture cut off", {"cat/a.jpg": JPEG[:-200], "cat/b.jpg": JPEG}, "cat/a.jpg", "not a readable image"),
    in_folder("EPS as .jpg", {"cat/a.jpg": EPS}, "cat/a.jpg", "JPEG, PNG"),
    in_folder("a class in Latin-1", {"cat/a.jpg": JPEG, "caf\udce9/b.jpg": JPEG}, "caf\\udce9", "UTF-8"),
    in_folder("EPS as .eps alone", {"cat/a.eps": EPS}, "cat", "no pictures"),
    in_folder("another on_error", {"cat/a.jpg": JPEG}, "on_error", "warn", on_error="warn"),
    Case("folder: size of no picture", lambda folder: folder_with(folder, EPS).size(0), ("cat/a.jpg", "JPEG, PNG")),
    Case("folder: size of a picture that is gone", lambda folder: gone(folder).size(0), ("a.jpg", "no such image")),
    Case("folder: missing", lambda folder: ImageFolder(folder / "train"), ("train", "no such folder")),
    Case("folder: a file", lambda folder: ImageFolder(__file__), ("test_images_and_voc.py", "no such folder")),
)


@by_name(CASES)
def test_is_refused_by_name(case, tmp_path):
    check(case, tmp_path)


def test_the_good_ones_are_read(tmp_path):
    assert voc("good").run(tmp_path)["boxes"].tolist() == [[10, 5, 20, 15]]
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.JPG").write_bytes(JPEG)
    assert read_image(tmp_path / "cat" / "a.JPG").shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_scaled_decoding_keeps_what_is_asked_for(tmp_path, orientation):
    """A half, a quarter or an eighth of a JPEG, upright, no smaller than asked for; other formats come whole."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (5, 8, 3), np.uint8)).resize((640, 400), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth.save(tmp_path / "a.jpg", exif=exif, quality=95)
    smooth.save(tmp_path / "a.png")
    whole = read_picture(tmp_path / "a.jpg")
    assert whole.size == whole.pixels.shape[:2] == ((640, 400) if orientation > 4 else (400, 640))
    for at_least, factor in (((1, 1), 8), ((51, 70), 4), ((110, 110), 2), ((201, 10), 2 if orientation > 4 else 1)):
        small = read_picture(tmp_path / "a.jpg", at_least=at_least)
        assert small.size == whole.size
        assert small.pixels.shape == (whole.size[0] // factor, whole.size[1] // factor, 3)
        reference = Image.fromarray(whole.pixels).resize(small.pixels.shape[1::-1], Image.Resampling.BOX)
        assert np.abs(np.asarray(reference).astype(int) - small.pixels).mean() < 2
    assert read_picture(tmp_path / "a.png", at_least=(1, 1)).pixels.shape[:2] == (400, 640)
