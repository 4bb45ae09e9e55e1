import struct

import numpy as np
import pytest
from PIL import Image

from jaxvision.data.folder import ImageFolder
from jaxvision.data.source import Source


@pytest.fixture
def root(tmp_path):
    for name, value in (("dog/a.png", 10), ("dog/deep/b.jpg", 20), ("cat/c.PNG", 30)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 9, 3), value, np.uint8)).save(tmp_path / name)
    (tmp_path / "dog" / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def test_one_folder_a_class(root):
    source = ImageFolder(root)
    assert isinstance(source, Source)
    assert source.categories == ("cat", "dog") and len(source) == 3
    assert [source[i]["label"] for i in range(3)] == [0, 1, 1]
    assert [int(source[i]["image"][0, 0, 0]) for i in range(3)] == [30, 10, 20]
    assert source[0]["image"].shape == (8, 9, 3) and source.problems == []


def test_pictures_stand_upright(root):
    picture = Image.fromarray(np.zeros((8, 9, 3), np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6  # taken with the camera turned
    picture.save(root / "cat" / "c.PNG", exif=exif)
    assert ImageFolder(root)[0]["image"].shape == (9, 8, 3)
    # the same beside a resolution that is text, which nobody asks for
    entries = struct.pack("<HHLLHHLL", 0x0112, 3, 1, 6, 0x011A, 2, 4, int.from_bytes(b"odd\0", "little"))
    tags = b"Exif\0\0II*\0" + struct.pack("<LH", 8, 2) + entries + bytes(4)
    picture.save(root / "cat" / "c.PNG", exif=tags)
    assert ImageFolder(root)[0]["image"].shape == (9, 8, 3)


def test_truncated_picture(root):
    path = root / "dog" / "deep" / "b.jpg"
    late = ImageFolder(root, on_error="skip"), ImageFolder(root)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"b\.jpg: not a readable image .*; restore the file or remove it"):
        ImageFolder(root)
    source = ImageFolder(root, on_error="skip")
    assert len(source) == 2 and len(source.problems) == 1
    assert late[0][2] is None and len(late[0].problems) == 1
    with pytest.raises(ValueError, match=r"b\.jpg"):
        late[1][2]


def test_file_that_is_no_picture(root):
    (root / "cat" / "d.jpg").write_text("hello")
    with pytest.raises(ValueError, match=r"d\.jpg: not a readable image"):
        ImageFolder(root)


def test_sizes_before_anything_is_read(root):
    """Shapes are planned from them: a file that is skipped has a place there, and is listed once."""
    late = ImageFolder(root), ImageFolder(root, on_error="skip")
    assert [late[0].size(i) for i in range(3)] == [(8, 9)] * 3
    (root / "cat" / "c.PNG").write_text("hello")
    with pytest.raises(ValueError, match=r"c\.PNG: not a readable image"):
        late[0].size(0)
    assert late[1].size(0) == (1, 1) and late[1][0] is None and len(late[1].problems) == 1


def test_bad_folders(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        ImageFolder(root / "none")
    with pytest.raises(ValueError, match="one folder a class"):
        ImageFolder(root / "cat")
    (root / "cow").mkdir()
    with pytest.raises(ValueError, match="cow: no pictures"):
        ImageFolder(root)
    assert ImageFolder(root, on_error="skip").categories == ("cat", "cow", "dog")


def test_more_than_8_bits_are_refused_not_saturated(tmp_path):
    (tmp_path / "x").mkdir()
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "x" / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png.*8 bits"):
        ImageFolder(tmp_path)[0]
