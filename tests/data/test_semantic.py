"""Maps of classes from files: what each data set's layout means, what is refused, and that maps move with images."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxvision import data
from jaxvision.data.semantic import CITYSCAPES_CATEGORIES
from jaxvision.typing import IGNORE
from jaxvision.visualize import label_picture

NAMES = ("background", "cat", "dog")


def picture(path, size=(6, 8), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def write_map(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def classes(size=(6, 8), seed=0):
    values = np.random.default_rng(seed).integers(0, 3, size).astype(np.uint8)
    values[0] = IGNORE
    return values


def test_kinds_of_files(tmp_path):
    """Grey of 8 and 16 bits, one bit, and palettes, whose colours mean nothing."""
    values = classes()
    write_map(tmp_path / "grey.png", values)
    write_map(tmp_path / "deep.png", values.astype(np.uint16))
    label_picture(values).save(tmp_path / "palette.png")
    Image.fromarray(values == 1).save(tmp_path / "bit.png")
    for name in ("grey", "deep", "palette"):
        got = data.read_map(tmp_path / f"{name}.png", num_classes=3)
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, values)
    np.testing.assert_array_equal(data.read_map(tmp_path / "bit.png", num_classes=2), values == 1)


def test_values_are_mapped(tmp_path):
    """Values of more than 8 bits too; those that are not named become 255."""
    write_map(tmp_path / "ids.png", np.array([[7, 1000], [8, 0]], np.uint16))
    got = data.read_map(tmp_path / "ids.png", num_classes=2, classes={7: 0, 1000: 1})
    np.testing.assert_array_equal(got, [[0, 1], [IGNORE, IGNORE]])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.array([[0, 3, 9]], np.uint8), r"map\.png: has the value\(s\) 3, 9, but there are 3 classes, 0 to 2"),
        (np.array([[0, 4000]], np.uint16), r"map\.png: has the value\(s\) 4000"),
        (np.zeros((2, 2, 3), np.uint8), r"map\.png: has colours \(RGB\) where .* save it as a grey or palette PNG"),
        (np.zeros((2, 2, 4), np.uint8), r"map\.png: has colours \(RGBA\)"),
    ],
)
def test_bad_maps(tmp_path, values, says):
    write_map(tmp_path / "map.png", values)
    with pytest.raises(ValueError, match=says):
        data.read_map(tmp_path / "map.png", num_classes=3)


def test_files_that_are_no_maps(tmp_path):
    (tmp_path / "map.png").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"map\.png: not a readable map"):
        data.read_map(tmp_path / "map.png", num_classes=3)
    with pytest.raises(ValueError, match=r"none\.png: no such map"):
        data.read_map(tmp_path / "none.png", num_classes=3)


def folders(root, count=3):
    for index in range(count):
        picture(root / "images" / "train" / f"{index}.png", seed=index)
        write_map(root / "maps" / "train" / f"{index}.png", classes(seed=index))
    return root / "images", root / "maps"


def test_folders(tmp_path):
    source = data.semantic_folders(*folders(tmp_path), categories=NAMES)
    assert isinstance(source, data.Source) and len(source) == 3 and source.categories == NAMES
    example = source[1]
    assert (example["file"], example["size"], example["image_id"], source.size(1)) == ("1.png", (6, 8), 1, (6, 8))
    np.testing.assert_array_equal(example["semantic"], classes(seed=1))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        data.semantic_folders(tmp_path / "images", tmp_path / "none", categories=NAMES)
    with pytest.raises(ValueError, match="256 classes"):
        data.semantic_folders(tmp_path / "images", tmp_path / "maps", categories=list(map(str, range(256))))


def test_zero_is_none(tmp_path):
    """As in ADE20K: 0 is no class, and 1 the first."""
    images, maps = folders(tmp_path, 1)
    write_map(maps / "train" / "0.png", np.repeat(np.array([[0, 1, 2]], np.uint8), [6], 0).repeat([3, 3, 2], 1))
    got = data.semantic_folders(images, maps, categories=("cat", "dog"), zero_is_none=True)[0]["semantic"]
    np.testing.assert_array_equal(got[0], [IGNORE] * 3 + [0] * 3 + [1] * 2)
    write_map(maps / "train" / "0.png", np.full((6, 8), 3, np.uint8))
    with pytest.raises(ValueError, match=r"0\.png: has the value\(s\) 3"):
        data.semantic_folders(images, maps, categories=("cat", "dog"), zero_is_none=True)[0]


def test_bad_examples_are_named_or_skipped(tmp_path, caplog):
    images, maps = folders(tmp_path)
    write_map(maps / "train" / "1.png", classes((6, 9)))
    source = data.semantic_folders(images, maps, categories=NAMES)
    with pytest.raises(ValueError, match=r"1\.png: is 6×9, but the picture .*1\.png is 6×8"):
        source[1]
    (maps / "train" / "2.png").unlink()
    with pytest.raises(ValueError, match=r"maps/train/2\.png: no such image file"):
        data.semantic_folders(images, maps, categories=NAMES)
    source = data.semantic_folders(images, maps, categories=NAMES, on_error="skip")
    assert len(source) == 2 and source[1] is None and len(source.problems) == 2


def voc(root):
    folder = root / "VOC2012"
    lists = {"train": ["a", "b"], "val": ["c"], "trainaug": ["c", "a"]}
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    for name, members in lists.items():
        (folder / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("\n".join(members) + "\n")
    for seed, name in enumerate("abc"):
        picture(folder / "JPEGImages" / f"{name}.jpg", seed=seed)
        write_map(folder / "SegmentationClass" / f"{name}.png", classes(seed=seed))
        write_map(folder / "SegmentationClassAug" / f"{name}.png", classes(seed=seed + 10))
    return folder


def test_voc(tmp_path):
    folder = voc(tmp_path)
    source = data.voc_segmentation(tmp_path, ["VOC2012/train", "VOC2012/val"])
    assert [source[i]["file"] for i in range(3)] == ["a.jpg", "b.jpg", "c.jpg"] and len(source.categories) == 21
    np.testing.assert_array_equal(source[2]["semantic"], classes(seed=2))
    more = data.voc_segmentation(tmp_path, ["VOC2012/trainaug"], maps="SegmentationClassAug")
    assert [more[i]["file"] for i in range(2)] == ["c.jpg", "a.jpg"]
    np.testing.assert_array_equal(more[0]["semantic"], classes(seed=12))
    with pytest.raises(FileNotFoundError, match=r"ImageSets/Segmentation/test\.txt: no such list"):
        data.voc_segmentation(tmp_path, ["VOC2012/test"])
    (folder / "ImageSets" / "Segmentation" / "train.txt").write_text("../../x\n")
    with pytest.raises(ValueError, match="leads out"):
        data.voc_segmentation(tmp_path, ["VOC2012/train"])


def test_cityscapes(tmp_path):
    """Of the label ids 19 are classes, in the order of their ids; the others are 255."""
    picture(tmp_path / "leftImg8bit" / "val" / "bonn" / "bonn_0_1_leftImg8bit.png")
    ids = np.arange(48, dtype=np.uint8).reshape(6, 8)
    write_map(tmp_path / "gtFine" / "val" / "bonn" / "bonn_0_1_gtFine_labelIds.png", ids)
    source = data.cityscapes(tmp_path, "val")
    got = source[0]["semantic"].ravel()
    assert len(source.categories) == 19 and source.categories[13] == "car" and got[26] == 13
    known = [value for value in range(48) if got[value] != IGNORE]
    assert known == list(CITYSCAPES_CATEGORIES) and got[known].tolist() == list(range(19))
    with pytest.raises(FileNotFoundError, match="unpack Cityscapes"):
        data.cityscapes(tmp_path, "train")


def panoptic(root, numbers=((0, 1), (256, 70000))):
    picture(root / "images" / "a.jpg", (2, 2))
    values = np.array(numbers)
    colours = np.stack([values % 256, values // 256 % 256, values // 65536], axis=-1).astype(np.uint8)
    write_map(root / "maps" / "a.png", colours)
    segments = [{"id": 1, "category_id": 7}, {"id": 256, "category_id": 90}, {"id": 70000, "category_id": 8}]
    content = {
        "images": [{"id": 5, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 5, "file_name": "a.png", "segments_info": segments}],
        "categories": [{"id": i, "name": f"c{i}"} for i in (7, 8, 90)],
    }
    (root / "panoptic.json").write_text(json.dumps(content))
    return root / "images", root / "panoptic.json", root / "maps"


def test_coco_panoptic(tmp_path):
    """The number of a segment lies in three bytes; 0 is none."""
    source = data.coco_panoptic(*panoptic(tmp_path))
    assert source.categories == ("c7", "c8", "c90")
    np.testing.assert_array_equal(source[0]["semantic"], [[IGNORE, 0], [2, 1]])
    some = data.coco_panoptic(*panoptic(tmp_path), category_ids=(90, 7))
    np.testing.assert_array_equal(some[0]["semantic"], [[IGNORE, 1], [0, IGNORE]])
    (tmp_path / "x").mkdir()
    away = data.coco_panoptic(*(path.parent / "x" / ".." / path.name for path in panoptic(tmp_path)))
    np.testing.assert_array_equal(away[0]["semantic"], source[0]["semantic"])


def test_bad_panoptic(tmp_path):
    paths = panoptic(tmp_path, ((0, 1), (2, 70000)))
    with pytest.raises(ValueError, match=r"a\.png: has the segment\(s\) \[2\]"):
        data.coco_panoptic(*paths)[0]
    with pytest.raises(ValueError, match=r"no categories \[3\]"):
        data.coco_panoptic(*paths, category_ids=(3,))
    good = paths[1].read_text()
    for name in ("../a.jpg", "/a.jpg"):
        paths[1].write_text(good.replace("a.jpg", name))
        with pytest.raises(ValueError, match=rf"panoptic\.json: the file '{name}' leads out of the folder"):
            data.coco_panoptic(*paths)
    paths[1].write_text(good)
    write_map(paths[2] / "a.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match=r"a\.png: is L, but"):
        data.coco_panoptic(*paths)[0]
    paths[1].write_text(paths[1].read_text().replace("segments_info", "segments"))
    with pytest.raises(ValueError, match=r"panoptic\.json: a record lacks or misnames 'segments_info'"):
        data.coco_panoptic(*paths)


def test_maps_move_with_their_images():
    """Each pixel of a map follows the pixel of the image, through every transform."""
    y, x = np.mgrid[:32, :48]
    image = np.stack([4 * y, 4 * x, 0 * x], axis=-1).astype(np.uint8)
    example = {"image": image, "semantic": ((y // 8 + x // 8) % 3).astype(np.uint8)}
    steps = [
        lambda e: data.flip_horizontal(0, e, probability=1.0),
        lambda e: data.random_crop(1, e, size=(20, 30)),
        lambda e: data.resize(e, size=(64, 96)),
        lambda e: data.random_resized_crop(3, e, size=(24, 24)),
        lambda e: data.scale_jitter(2, e),
    ]
    for step in steps:
        moved = step(example)
        rows, columns = (np.round(moved["image"][..., i] / 4).astype(int) for i in range(2))
        inside = moved["semantic"].shape == moved["image"].shape[:2]
        want = (rows // 8 + columns // 8) % 3
        assert inside and (moved["semantic"] == want).mean() > 0.85
    np.testing.assert_array_equal(example["semantic"], (y // 8 + x // 8) % 3)


def test_rows_pad_with_255():
    rows = data.SegmentationRows()
    example = {"image": np.full((6, 8, 3), 9, np.uint8), "semantic": classes(), "image_id": 0}
    row = rows.row(example, (8, 8), None)
    assert row["valid"] and row["image_sizes"].tolist() == [6, 8] and (row["semantic"][6:] == IGNORE).all()
    np.testing.assert_array_equal(row["semantic"][:6], classes())
    small = rows.row(example, (4, 4), None)
    assert small["image_sizes"].tolist() == [3, 4] and small["semantic"].shape == (4, 4)
    gap = rows.empty((4, 4))
    assert not gap["valid"] and (gap["semantic"] == IGNORE).all()
    assert {name: np.shape(value) for name, value in gap.items()} == {n: np.shape(v) for n, v in small.items()}
    with pytest.raises(ValueError, match="has none"):
        rows.prepare({"image": example["image"], "image_id": 3})


def test_background_before_the_classes():
    class Things:
        categories = ("cat", "dog")

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return {"image": np.zeros((2, 2, 3), np.uint8), "semantic": np.eye(2, dtype=np.uint8), "boxes": ()}

        def size(self, index):
            return 2, 2

    source = data.WithBackground(Things())
    assert source.categories == NAMES and set(source[0]) == {"image", "semantic"} and source.size(0) == (2, 2)


def test_elastic_bends_the_map_with_the_image():
    y, x = np.mgrid[:60, :80]
    image = np.stack([4 * y, 3 * x, 0 * x], axis=-1).astype(np.uint8)
    example = {"image": image, "semantic": ((y // 10 + x // 10) % 3).astype(np.uint8), "label": 3}
    bent = data.elastic(0, example, sigma=4.0)
    assert bent["image"].shape == image.shape and bent["image"].dtype == np.uint8 and bent["label"] == 3
    moved = np.abs(bent["image"].astype(int) - image)
    assert 0.5 < moved[..., 0].mean() / 4 < 8  # some pixels of a normal distance
    rows, columns = bent["image"][..., 0] / 4, bent["image"][..., 1] / 3
    want = (np.round(rows).astype(int) // 10 + np.round(columns).astype(int) // 10) % 3
    assert (bent["semantic"] == want).mean() > 0.9
    again = data.elastic(0, example, sigma=4.0)
    np.testing.assert_array_equal(again["image"], bent["image"])
    still = data.elastic(0, example, sigma=0.0)
    np.testing.assert_array_equal(still["image"], image)
    np.testing.assert_array_equal(still["semantic"], example["semantic"])
    with pytest.raises(ValueError, match="this example has boxes"):
        data.elastic(0, {**example, "boxes": np.zeros((1, 4), np.float32)})


def test_border_weights_by_the_formula():
    rng = np.random.default_rng(0)
    instances = np.zeros((14, 17), np.uint8)
    instances[2:6, 2:6], instances[3:9, 8:12], instances[10:13, 3:9] = 1, 2, 7
    got = data.border_weights(instances, peak=8.0, sigma=3.0)
    for row, column in rng.integers((0, 0), instances.shape, (40, 2)):
        distances = []
        for number in (1, 2, 7):
            there = np.argwhere(instances == number)
            distances.append(np.sqrt(((there - (row, column)) ** 2).sum(1)).min())
        first, second, _ = sorted(distances)
        more = 0 if instances[row, column] else 8 * np.exp(-((first + second) ** 2) / 18)
        np.testing.assert_allclose(got[row, column], 1 + more, rtol=1e-5)
    assert got.max() == got[9, 8]  # between the two that are closest
    assert (data.border_weights(np.minimum(instances, 1) * (instances == 1)) == 1).all()  # one alone
