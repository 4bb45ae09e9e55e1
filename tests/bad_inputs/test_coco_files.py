"""Malformed files in COCO's format: JSON, boxes, polygons, RLE, keypoints, images and categories."""

import copy
import json

import numpy as np
import pytest
from case import Case, by_name, check
from PIL import Image

from jaxvision.data import CocoDetection

# pycocotools' own decode warns under numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

HEIGHT, WIDTH = 20, 30
GOOD = {
    "images": [{"id": 7, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
    "annotations": [
        {"id": 5, "image_id": 7, "category_id": 2, "bbox": [2, 3, 8, 5], "area": 40.0, "iscrowd": 0,
         "segmentation": [[2, 3, 10, 3, 10, 8, 2, 8]]}
    ],
    "categories": [{"id": 2, "name": "cat"}],
}  # fmt: skip


def read(folder, content, **options):
    """Reads a file with this content (text, bytes or what JSON holds) beside the one picture."""
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(folder / "a.png")
    file = folder / "instances.json"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    return CocoDetection(folder, file, **options)[0]


def with_(part, change, *, text=None, **options):
    """Reads the good file with a record changed: values replaced, or taken out where they are ``...``. text: a value
    that JSON cannot be made of here, written as it stands for the string "TEXT"."""

    def run(folder):
        content = copy.deepcopy(GOOD)
        record = content[part][0]
        record |= change
        for name in [name for name, value in record.items() if value is ...]:
            del record[name]
        written = json.dumps(content)
        return read(folder, written if text is None else written.replace('"TEXT"', text), **options)

    return run


def annotation(name, change, *words, **options):
    return Case(
        f"annotation: {name}", with_("annotations", change, **options), ("instances.json", "annotation", *words)
    )


def image(name, change, *words, **options):
    return Case(f"image: {name}", with_("images", change, **options), ("instances.json", "image", *words))


def category(name, change, *words, **options):
    return Case(f"category: {name}", with_("categories", change, **options), ("instances.json", "categor", *words))


def whole(name, content, *words):
    return Case(f"file: {name}", lambda folder: read(folder, content), ("instances.json", *words))


def without(key):
    return {name: value for name, value in GOOD.items() if name != key}


HUGE = "9" * 400
RLE = {"size": [HEIGHT, WIDTH], "counts": [0, 600]}

CASES = (
    whole("empty", "", "not valid JSON"),
    whole("cut off", json.dumps(GOOD)[:-20], "not valid JSON"),
    whole("two documents", json.dumps(GOOD) + json.dumps(GOOD), "not valid JSON"),
    whole("Latin-1", json.dumps(GOOD).replace("cat", "chaîne").encode("latin-1"), "UTF-8"),
    whole("UTF-16", json.dumps(GOOD).encode("utf-16"), "UTF-8"),
    whole("a picture", b"\x89PNG\r\n\x1a\n" + bytes(100), "UTF-8"),
    whole("nested without end", "[" * 200_000, "not valid JSON"),
    whole("an integer of 5,000 digits", json.dumps(GOOD).replace("40.0", "4" * 5000), "not valid JSON"),
    whole("a list", [1, 2], "'images' is missing"),
    whole("null", "null", "'images' is missing"),
    whole("a number", "17", "'images' is missing"),
    whole("no images", without("images"), "'images' is missing"),
    whole("no annotations", without("annotations"), "'annotations' is missing"),
    whole("no categories", without("categories"), "'categories' is missing"),
    whole("images null", {**GOOD, "images": None}, "'images' must be a list"),
    whole("annotations an object", {**GOOD, "annotations": {"5": {}}}, "'annotations' must be a list"),
    whole("annotations of numbers", {**GOOD, "annotations": [5]}, "'annotations' must be a list"),
    whole("categories of names", {**GOOD, "categories": ["cat"]}, "'categories' must be a list"),
    whole("images empty", {**GOOD, "images": [], "annotations": []}, "no usable image"),
    whole("categories empty", {**GOOD, "categories": [], "annotations": []}, "'categories' is empty"),
    Case("file: missing", lambda folder: CocoDetection(folder, folder / "no.json"), ("no.json", "no such annotation")),
    Case("file: a folder", lambda folder: CocoDetection(folder, folder), ("no such annotation file",)),
    Case(
        "folder of images: missing",
        lambda folder: CocoDetection(folder / "pictures", folder / "x.json"),
        ("pictures", "no such folder"),
    ),
    annotation("no bbox", {"bbox": ...}, "bbox", "5"),
    annotation("no image_id", {"image_id": ...}, "image_id"),
    annotation("no category_id", {"category_id": ...}, "category_id"),
    annotation("no segmentation", {"segmentation": ...}, "segmentation", "with_masks=False"),
    annotation("image_id unknown", {"image_id": 8}, "image_id 8"),
    annotation("image_id text", {"image_id": "7"}, "image_id '7'"),
    annotation("image_id a list", {"image_id": [7]}, "image_id [7]"),
    annotation("image_id null", {"image_id": None}, "image_id None"),
    annotation("image_id a fraction", {"image_id": 7.0}, "image_id 7.0"),
    annotation("image_id true", {"image_id": True}, "image_id True"),
    annotation("image_id of 400 digits", {"image_id": "TEXT"}, "over 40 digits", text=HUGE),
    annotation("category_id unknown", {"category_id": 3}, "category_id 3"),
    annotation("category_id text", {"category_id": "cat"}, "category_id 'cat'"),
    annotation("category_id null", {"category_id": None}, "category_id None"),
    annotation("category_id an object", {"category_id": {}}, "category_id {}"),
    annotation("bbox null", {"bbox": None}, "bbox", "None"),
    annotation("bbox text", {"bbox": "2 3 8 5"}, "bbox", "2 3 8 5"),
    annotation("bbox of three", {"bbox": [2, 3, 8]}, "four finite numbers"),
    annotation("bbox of five", {"bbox": [2, 3, 8, 5, 1]}, "four finite numbers"),
    annotation("bbox empty", {"bbox": []}, "four finite numbers"),
    annotation("bbox with text", {"bbox": [2, 3, "8", 5]}, "four finite numbers"),
    annotation("bbox with null", {"bbox": [2, 3, None, 5]}, "four finite numbers"),
    annotation("bbox with true", {"bbox": [True, 3, 8, 5]}, "four finite numbers"),
    annotation("bbox nested", {"bbox": [[2, 3], [8, 5]]}, "four finite numbers"),
    annotation("bbox NaN", {"bbox": [2, 3, "TEXT", 5]}, "four finite numbers", text="NaN"),
    annotation("bbox infinite", {"bbox": [2, 3, "TEXT", 5]}, "four finite numbers", text="Infinity"),
    annotation("bbox 1e999", {"bbox": [2, 3, "TEXT", 5]}, "four finite numbers", text="1e999"),
    annotation("bbox of 400 digits", {"bbox": [2, 3, "TEXT", 5]}, "four finite numbers", text=HUGE),
    annotation("bbox of negative width", {"bbox": [10, 3, -8, 5]}, "negative width", "[10, 3, -8, 5]"),
    annotation("bbox of negative height", {"bbox": [2, 8, 8, -5]}, "negative width or height"),
    annotation("bbox without width", {"bbox": [2, 3, 0, 5]}, "no area"),
    annotation("bbox without height", {"bbox": [2, 3, 8, 0.0]}, "no area"),
    annotation("bbox right of the image", {"bbox": [30, 3, 8, 5]}, "outside its image of 20×30"),
    annotation("bbox below the image", {"bbox": [2, 20, 8, 5]}, "outside its image"),
    annotation("bbox left of the image", {"bbox": [-9, 3, 8, 5]}, "outside its image"),
    annotation("bbox above the image", {"bbox": [2, -6, 8, 5]}, "outside its image"),
    annotation("bbox 1e39 wide", {"bbox": [2, 3, 1e39, 5]}, "[2, 3, 1e+39, 5]", "far outside"),
    annotation("bbox from -1e39 to 1e39", {"bbox": [-1e39, 3, 2e39, 5]}, "bbox", "far outside"),
    annotation("bbox in the pixels of a larger image", {"bbox": [2, 3, 8, 40]}, "[2, 3, 8, 40]", "far outside"),
    annotation("iscrowd true", {"iscrowd": True}, "iscrowd", "True"),
    annotation("iscrowd 1.0", {"iscrowd": 1.0}, "iscrowd", "1.0"),
    annotation("iscrowd text", {"iscrowd": "0"}, "iscrowd", "'0'"),
    annotation("iscrowd null", {"iscrowd": None}, "iscrowd", "None"),
    annotation("iscrowd 2", {"iscrowd": 2}, "iscrowd", "2"),
    annotation("iscrowd a list", {"iscrowd": [0]}, "iscrowd", "[0]"),
    annotation("iscrowd a fraction", {"iscrowd": 0.5}, "iscrowd", "0.5"),
    annotation("area null", {"area": None}, "area", "None"),
    annotation("area text", {"area": "40"}, "area", "'40'"),
    annotation("area negative", {"area": -1}, "area", "-1"),
    annotation("area true", {"area": True}, "area", "True"),
    annotation("area infinite", {"area": "TEXT"}, "area", "inf", text="Infinity"),
    annotation("area NaN", {"area": "TEXT"}, "area", "nan", text="NaN"),
    annotation("area of 400 digits", {"area": "TEXT"}, "area", "over 40 digits", text=HUGE),
    annotation("polygons empty", {"segmentation": []}, "segmentation is empty"),
    annotation("polygon empty", {"segmentation": [[]]}, "at least three points"),
    annotation("polygon of two points", {"segmentation": [[2, 3, 10, 8]]}, "at least three points"),
    annotation("polygon of an odd count", {"segmentation": [[2, 3, 10, 3, 10, 8, 2]]}, "polygons"),
    annotation("polygon not nested", {"segmentation": [2, 3, 10, 3, 10, 8]}, "polygons"),
    annotation("polygon of points", {"segmentation": [[[2, 3], [10, 3], [10, 8]]]}, "polygons"),
    annotation("polygon with text", {"segmentation": [[2, 3, "10", 3, 10, 8]]}, "polygons"),
    annotation("polygon with null", {"segmentation": [[2, 3, None, 3, 10, 8]]}, "polygons"),
    annotation("polygon with NaN", {"segmentation": [[2, 3, "TEXT", 3, 10, 8]]}, "polygons", text="NaN"),
    annotation("polygon null", {"segmentation": [None]}, "polygons"),
    annotation("second polygon broken", {"segmentation": [[2, 3, 10, 3, 10, 8], [1, 1]]}, "polygons"),
    annotation("polygon at 1e7", {"segmentation": [[2, 3, 1e7, 3, 10, 8]]}, "10000000.0", "far outside"),
    annotation("polygon at 1e8", {"segmentation": [[2, 3, 10, 1e8, 10, 8]]}, "100000000.0", "far outside"),
    annotation("polygon at -1e8", {"segmentation": [[2, 3, -1e8, 3, 10, 8]]}, "-100000000.0", "far outside"),
    annotation("polygon at 1e300", {"segmentation": [[2, 3, 1e300, 3, 10, 8]]}, "1e+300", "far outside"),
    annotation("polygon of 400 digits", {"segmentation": [[2, 3, "TEXT", 3, 10, 8]]}, "polygons", text=HUGE),
    annotation("polygon with true", {"segmentation": [[2, 3, True, 3, 10, 8]]}, "polygons"),
    annotation("polygon to and fro", {"segmentation": [[0, 0, 29, 19] * 40_000]}, "outline", "1,048,576 pixels"),
    annotation("segmentation null", {"segmentation": None}, "polygons, or an RLE"),
    annotation("segmentation text", {"segmentation": "RLE"}, "polygons, or an RLE"),
    annotation("segmentation a number", {"segmentation": 5}, "polygons, or an RLE"),
    annotation("RLE without counts", {"segmentation": {"size": [20, 30]}}, "'size' and 'counts'"),
    annotation("RLE without size", {"segmentation": {"counts": [600]}}, "'size' and 'counts'"),
    annotation("RLE of another size", {"segmentation": {**RLE, "size": [30, 20]}}, "[30, 20]", "[20, 30]"),
    annotation("RLE of size null", {"segmentation": {**RLE, "size": None}}, "None", "[20, 30]"),
    annotation("RLE of size 600", {"segmentation": {**RLE, "size": 600}}, "600", "[20, 30]"),
    annotation("RLE of size text", {"segmentation": {**RLE, "size": "20x30"}}, "20x30", "[20, 30]"),
    annotation("RLE of three sizes", {"segmentation": {**RLE, "size": [20, 30, 1]}}, "[20, 30, 1]"),
    annotation("RLE counts null", {"segmentation": {**RLE, "counts": None}}, "do not add up"),
    annotation("RLE counts a number", {"segmentation": {**RLE, "counts": 600}}, "do not add up"),
    annotation("RLE counts empty", {"segmentation": {**RLE, "counts": []}}, "do not add up"),
    annotation("RLE counts too short", {"segmentation": {**RLE, "counts": [0, 599]}}, "do not add up", "600"),
    annotation("RLE counts too long", {"segmentation": {**RLE, "counts": [0, 601]}}, "do not add up"),
    annotation("RLE counts negative", {"segmentation": {**RLE, "counts": [0, 601, -1]}}, "do not add up"),
    annotation("RLE counts with text", {"segmentation": {**RLE, "counts": [0, "600"]}}, "do not add up"),
    annotation("RLE counts with fractions", {"segmentation": {**RLE, "counts": [0.5, 599.5]}}, "do not add up"),
    annotation("RLE counts with true", {"segmentation": {**RLE, "counts": [True, 599]}}, "do not add up"),
    annotation(
        "RLE counts of 400 digits", {"segmentation": {**RLE, "counts": [0, "TEXT"]}}, "do not add up", text=HUGE
    ),
    annotation("RLE text empty", {"segmentation": {**RLE, "counts": ""}}, "do not add up"),
    annotation("RLE text cut off", {"segmentation": {**RLE, "counts": "P"}}, "do not add up"),
    annotation("RLE text too short", {"segmentation": {**RLE, "counts": "0"}}, "do not add up"),
    annotation("RLE text of other letters", {"segmentation": {**RLE, "counts": "~~~ é"}}, "do not add up"),
    annotation("RLE text of half a character", {"segmentation": {**RLE, "counts": "\ud800"}}, "do not add up"),
    annotation("RLE text of a long count", {"segmentation": {**RLE, "counts": "oooooooooooo0"}}, "do not add up"),
    annotation("keypoints text", {"keypoints": "1 2 2"}, "keypoints"),
    annotation("keypoints of four", {"keypoints": [1, 2, 2, 4]}, "keypoints must be 3"),
    annotation("keypoints with null", {"keypoints": [1, None, 2]}, "keypoints"),
    annotation("keypoints NaN", {"keypoints": [1, "TEXT", 2]}, "keypoints", text="NaN"),
    annotation("keypoints of visibility 3", {"keypoints": [1, 2, 3]}, "visibilities", "[3]"),
    annotation("keypoints of visibility 0.5", {"keypoints": [1, 2, 0.5]}, "visibilities", "[0.5]"),
    annotation("keypoints at 1e39", {"keypoints": [1, 1e39, 2]}, "keypoints", "1e+39", "far outside"),
    annotation("keypoints null", {"keypoints": None}, "keypoints"),
    annotation("an id that is an object", {"id": {"a": 1}, "bbox": None}, "bbox"),
    annotation("id an object", {"id": {"a": 1}}, "id must be an integer"),
    annotation("id text", {"id": "5"}, "id must be an integer", "'5'"),
    annotation("id null", {"id": None}, "id must be an integer", "None"),
    annotation("id true", {"id": True}, "id must be an integer", "True"),
    Case(
        "annotation: two of one id",
        lambda folder: read(folder, {**GOOD, "annotations": GOOD["annotations"] * 2}),
        ("instances.json", "annotation 5", "that of another annotation"),
    ),
    image("no id", {"id": ...}, "lacks ['id']"),
    image("no file_name", {"file_name": ...}, "lacks ['file_name']"),
    image("no height", {"height": ...}, "lacks ['height']", "a.png"),
    image("no width", {"width": ...}, "lacks ['width']"),
    image("file_name null", {"file_name": None}, "file_name None"),
    image("file_name a number", {"file_name": 5}, "file_name 5"),
    image("file_name empty", {"file_name": ""}, "file_name ''"),
    image("file_name with a null character", {"file_name": "a\0.png"}, "file_name"),
    image("file_name a list", {"file_name": ["a.png"]}, "file_name"),
    image("file_name absolute", {"file_name": "/etc/passwd"}, "'/etc/passwd'", "leads out of the folder"),
    image("file_name above", {"file_name": "../b/a.png"}, "'../b/a.png'", "leads out of the folder"),
    image("file_name below and above", {"file_name": "x/../../a.png"}, "leads out of the folder"),
    image("file_name of half a character", {"file_name": "\ud800.png"}, "must be the name of a file"),
    image("id text", {"id": "7"}, "'7'", "integer"),
    image("id null", {"id": None}, "integer"),
    image("id too large", {"id": 2**31}, "2^31"),
    image("id of 400 digits", {"id": "TEXT"}, "over 40 digits", text=HUGE),
    image("id true", {"id": True}, "integer"),
    image("height text", {"height": "20"}, "height '20'"),
    image("height zero", {"height": 0}, "height 0"),
    image("width negative", {"width": -30}, "width -30"),
    image("width a fraction", {"width": 30.5}, "width 30.5"),
    image("height true", {"height": True}, "height True"),
    image("width NaN", {"width": "TEXT"}, "width nan", text="NaN"),
    image("of 400 Mpixel", {"height": 20_000, "width": 20_000}, "20000", "67,108,864 pixels"),
    image("of one line", {"height": 1, "width": 50_000}, "50000", "64 times"),
    image("height null", {"height": None}, "height None"),
    image("height of 400 digits", {"height": "TEXT"}, "over 40 digits", text=HUGE),
    Case("image: file not there", with_("images", {"file_name": "b.png"}), ("b.png", "no such image file")),
    Case("image: in a folder not there", with_("images", {"file_name": "x/a.png"}), ("x/a.png", "no such image file")),
    Case("image: of another size", with_("images", {"height": 21}), ("a.png", "20×30", "21×30")),
    Case("image: turned on its side", with_("images", {"height": 30, "width": 20}), ("a.png", "20×30", "30×20")),
    Case(
        "image: two of one id",
        lambda folder: read(folder, {**GOOD, "images": GOOD["images"] * 2}),
        ("instances.json", "the id 7 is taken by a.png"),
    ),
    category("no id", {"id": ...}, "lacks ['id']"),
    category("no name", {"name": ...}, "lacks ['name']"),
    category("id text", {"id": "2"}, "integer"),
    category("id null", {"id": None}, "integer"),
    category("id a fraction", {"id": 2.0}, "integer"),
    category("id of 400 digits", {"id": "TEXT"}, "integer", text=HUGE),
    category("name a number", {"name": 5}, "must be text", "5"),
    category("id true", {"id": True}, "integer"),
    category("name of half a character", {"name": "\udfff"}, "must be text"),
    category("name null", {"name": None}, "must be text"),
    category("name a list", {"name": ["cat"]}, "must be text"),
    Case(
        "category: two of one id",
        lambda folder: read(folder, {**GOOD, "categories": [*GOOD["categories"], {"id": 2, "name": "dog"}]}),
        ("instances.json", "share an id"),
    ),
    Case("option: on_error", lambda folder: read(folder, GOOD, on_error="ignore"), ("on_error", "ignore")),
)


@by_name(CASES)
def test_is_refused_by_name(case, tmp_path):
    check(case, tmp_path)


@pytest.mark.parametrize("side", [None, 8])
def test_the_good_file_is_read(tmp_path, side):
    example = read(tmp_path, GOOD, mask_side=side)
    assert example["boxes"].tolist() == [[2, 3, 10, 8]]
    assert example["masks"].shape == (1, 8, 8) if side else (1, HEIGHT, WIDTH)
