import jax
import numpy as np
import pytest

from jaxvision import visualize
from jaxvision.typing import Detections, Targets
from jaxvision.visualize import class_color, draw_boxes, draw_classes, draw_detections, draw_masks, draw_targets, grid

GREY = np.full((64, 96, 3), 128, np.uint8)


def changed(picture, before=GREY):
    return np.any(picture != before, axis=-1)


def near_color(picture, label):
    return np.all(picture == np.array(class_color(label), np.uint8), axis=-1)


def test_colors_are_fixed_and_neighbours_differ():
    colors = np.array([class_color(label) for label in range(80)], float)
    assert class_color(0) == (255, 80, 56)  # pictures of old runs stay comparable
    assert len({tuple(color) for color in colors}) == 80
    for distance in range(1, 6):
        assert np.abs(colors[distance:] - colors[:-distance]).sum(1).min() > 60


def test_a_box_is_drawn_where_it_is():
    picture = draw_boxes(GREY, np.array([[20.0, 30, 50, 55]]))
    rows, columns = np.nonzero(near_color(picture, 0))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (30, 55, 20, 50)
    assert not changed(picture)[35:50, 25:45].any()  # not filled
    rows, columns = np.nonzero(changed(picture))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (29, 56, 19, 51)


def test_input_is_left_alone():
    image = GREY.copy()
    draw_boxes(image, np.array([[1.0, 1, 9, 9]]))
    draw_masks(image, np.ones((1, 64, 96), bool))
    grid([image])
    np.testing.assert_array_equal(image, GREY)


def test_tags_stay_inside_and_the_best_is_on_top():
    boxes = np.array([[70.0, 0, 96, 64], [0, 40, 20, 64], [70, 0, 96, 64]])
    labels, scores = np.array([1, 0, 2]), np.array([0.9, 0.8, 0.3])
    plain = draw_boxes(GREY, boxes, labels=labels)
    tagged = draw_boxes(GREY, boxes, labels=labels, scores=scores, names=["a", "b", "a long name"])
    assert tagged.shape == GREY.shape and changed(tagged).sum() > changed(plain).sum()
    only = draw_boxes(GREY, boxes[:2], labels=labels[:2], scores=scores[:2], names=["a", "b", "c"])
    visible = near_color(only, 1)
    assert (near_color(tagged, 1) == visible).mean() > 0.99
    with pytest.raises(ValueError, match="label 2 has no name among 2"):
        draw_boxes(GREY, boxes, labels=labels, names=["a", "b"])


@pytest.mark.parametrize(
    "box", [[-50, -50, -10, -10], [200, 200, 300, 300], [5, 5, 5, 5], [50, 50, 10, 10], [np.nan, 0, 9, 9]]
)
def test_degenerate_boxes_do_not_fail(box):
    boxes = np.array([box], np.float32)
    picture = draw_boxes(GREY, boxes, labels=np.array([0]), scores=np.array([0.5]), scale=2)
    assert picture.shape == (128, 192, 3)
    assert draw_masks(GREY, np.ones((1, 7, 7), np.float32), boxes=boxes).shape == GREY.shape


def test_nothing_to_draw():
    np.testing.assert_array_equal(draw_boxes(GREY, np.zeros((0, 4))), GREY)
    np.testing.assert_array_equal(draw_masks(GREY, np.zeros((0, 64, 96), bool)), GREY)
    np.testing.assert_array_equal(draw_masks(GREY, np.zeros((0, 7, 7)), boxes=np.zeros((0, 4))), GREY)


def test_masks_tint_inside_only():
    mask = np.zeros((1, 64, 96), bool)
    mask[0, 10:30, 20:60] = True
    picture = draw_masks(GREY, mask, labels=np.array([4]), opacity=0.5)
    np.testing.assert_array_equal(changed(picture), mask[0])
    expected = (128 + np.array(class_color(4))) / 2
    np.testing.assert_allclose(picture[20, 40], expected, atol=1)
    np.testing.assert_array_equal(picture[10, 40], class_color(4))  # the outline is solid
    with pytest.raises(ValueError, match="give boxes"):
        draw_masks(GREY, np.zeros((1, 28, 28), bool))


@pytest.mark.parametrize("scale", [1, 3])
def test_pasted_masks_fill_their_box(scale):
    boxes = np.array([[20.0, 10, 60, 30]])
    halves = np.concatenate([np.ones((1, 28, 14)), np.zeros((1, 28, 14))], axis=2)
    picture = draw_masks(GREY, halves, boxes=boxes, scale=scale)
    inside = changed(picture, np.full_like(picture, 128))
    expected = np.zeros_like(inside)
    expected[10 * scale : 30 * scale, 20 * scale : 40 * scale] = True
    assert (inside != expected).mean() < 0.01


def test_detections_and_targets():
    detections = Detections(
        boxes=np.array([[5.0, 20, 30, 50], [40, 20, 80, 60], [50, 5, 60, 15]], np.float32),
        scores=np.array([0.9, 0.4, 0.8], np.float32),
        labels=np.array([0, 1, 2]),
        valid=np.array([True, True, False]),
        masks=np.ones((3, 14, 14), np.float32),
    )
    picture = draw_detections(GREY, jax.device_put(detections), names=["cat", "dog"])
    assert near_color(picture, 0).any()
    assert not near_color(picture, 1).any() and not near_color(picture, 2).any()
    assert near_color(draw_detections(GREY, detections, min_score=0.3), 1).any()

    masks = np.zeros((2, 80, 120), bool)  # the padding is larger than the image
    masks[0, 20:50, 5:30] = True
    targets = Targets(detections.boxes[:2], detections.labels[:2], np.array([True, False]), masks)
    picture = draw_targets(GREY, targets, names=["cat"], scale=2)
    assert picture.shape == (128, 192, 3) and near_color(picture, 0).any()
    assert not near_color(picture, 1).any()


def test_targets_with_masks_on_frames_look_like_those_with_planes():
    plane = np.zeros((1, 64, 96), bool)
    plane[0, 16:48, 20:52] = True
    boxes, labels, valid = np.array([[20.0, 16, 52, 48]]), np.array([3]), np.array([True])
    of_plane = draw_targets(GREY, Targets(boxes, labels, valid, masks=plane), scale=2)
    frame = np.array([[12.0, 8, 60, 56]])
    cells = 255 * plane[:, 8:56, 12:60].astype(np.uint8)
    of_frame = draw_targets(GREY, Targets(boxes, labels, valid, masks=cells, mask_boxes=frame), scale=2)
    assert changed(of_plane, np.repeat(np.repeat(GREY, 2, 0), 2, 1)).sum() > 64 * 64
    np.testing.assert_array_equal(of_frame, of_plane)


def test_small_pictures_are_enlarged_by_default():
    nothing = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), np.zeros(0, bool))
    assert draw_detections(np.zeros((128, 128, 3), np.uint8), nothing).shape == (384, 384, 3)
    assert draw_detections(np.zeros((480, 640, 3), np.uint8), nothing).shape == (480, 640, 3)


def test_classes_beside_the_image():
    probabilities = np.array([0.1, 0.6, 0.0, 0.3])
    picture = draw_classes(GREY, probabilities, names=["a", "b" * 90, "c", "d"], top=3, scale=1)
    assert picture.shape[1] == 96 + 280 and (picture[:, :96] == 128).all(-1).sum() == 64 * 96
    lengths = [near_color(picture, label).any(0).sum() for label in (1, 3, 0)]
    np.testing.assert_allclose(np.array(lengths) / lengths[0], [1, 0.5, 1 / 6], atol=0.02)
    assert not near_color(picture, 2).any()
    rows = [np.nonzero(near_color(picture, label))[0].mean() for label in (1, 3, 0)]
    assert rows == sorted(rows)


def test_grid():
    small = np.zeros((32, 32, 3), np.uint8)
    picture = grid([GREY, small, GREY], columns=2, gap=4)
    assert picture.shape == (2 * 68 + 4, 2 * 100 + 4, 3)
    np.testing.assert_array_equal(picture[4:68, 4:100], GREY)
    np.testing.assert_array_equal(picture[20:52, 136:168], small)
    assert (picture[72:, 104:] == 255).all()
    assert grid([GREY] * 5).shape[1] == 3 * 102 + 6
    with pytest.raises(ValueError, match="at least one"):
        grid([])
    with pytest.raises(ValueError, match=r"RGB uint8 \[h, w, 3\], not float32\[4, 4, 3\]"):
        grid([np.zeros((4, 4, 3), np.float32)])


def tag_of(name, *, score=0.87, box=(10.0, 30, 40, 50)):
    """A picture with one tag."""
    boxes, labels = np.array([box], float), np.array([0])
    scores = None if score is None else np.array([score])
    return draw_boxes(GREY, boxes, labels=labels, scores=scores, names=[name], scale=3)


def test_letters_beyond_ascii_are_drawn():
    """A font without them would draw the same box for each."""
    tags = [tag_of(letter) for letter in "äüßéøłжλ"]
    for i, one in enumerate(tags):
        assert not any((one == other).all() for other in tags[:i])


def test_names_without_a_font_are_numbers(monkeypatch, caplog):
    visualize._font_file.cache_clear()
    monkeypatch.setattr("matplotlib.font_manager.fontManager.ttflist", [])
    np.testing.assert_array_equal(tag_of("猫"), tag_of("0"))
    assert "'猫'" in caplog.text and "number of the class" in caplog.text
    picture = draw_classes(GREY, np.array([1.0]), names=["犬"])
    np.testing.assert_array_equal(picture, draw_classes(GREY, np.array([1.0]), names=["0"]))
    visualize._font_file.cache_clear()


def test_a_font_of_boxes_is_none(monkeypatch):
    """Matplotlib brings one that has every character."""
    from matplotlib import font_manager

    brought = [font for font in font_manager.fontManager.ttflist if "mpl-data" in font.fname]
    assert any(font.name.startswith(visualize.PLACEHOLDERS) for font in brought)
    visualize._font_file.cache_clear()
    monkeypatch.setattr(font_manager.fontManager, "ttflist", brought)
    assert visualize._font_file("猫") is None
    visualize._font_file.cache_clear()


@pytest.mark.parametrize(("name", "same"), [(7, "7"), ("a\nb", "a b"), ("", "0"), ("\x00", "0"), (None, "None")])
def test_unusual_names(name, same):
    np.testing.assert_array_equal(tag_of(name), tag_of(same))


def test_long_names_keep_their_score():
    """The end of the tag, where the score is, looks the same for all names that are shortened."""
    long = "a class of many words that nobody could read in a picture of this size"
    tags = [tag_of(name) for name in (long, long + long, long * 10_000)]
    np.testing.assert_array_equal(tags[0], tags[1])
    np.testing.assert_array_equal(tags[0], tags[2])
    assert (tags[0] != tag_of(long, score=0.12)).any()
    assert (tags[0] != tag_of(long, score=None)).any()


@pytest.mark.parametrize("size", [(64, 96), (30, 40), (12, 20), (5, 5), (1, 1)])
@pytest.mark.parametrize("box", [(0, 0, 5, 5), (90, 60, 96, 64), (30, 2, 40, 9), (-20, -20, 300, 300)])
def test_tags_stay_inside_small_pictures(size, box):
    image = np.full((*size, 3), 128, np.uint8)
    picture = draw_boxes(
        image, np.array([box], float), labels=np.array([0]), scores=np.array([0.5]), names=["long name"]
    )
    assert picture.shape == image.shape and changed(picture, image).any()


def test_a_tag_is_all_in_the_picture():
    """Wherever the box is, the same pixels of text are seen."""
    inked = []
    for box in [(40.0, 30, 60, 50), (92, 30, 96, 40), (0, 0, 3, 3), (80, 0, 96, 64)]:
        inked.append(int(np.all(tag_of("cat", box=box) > 230, axis=-1).sum()))  # white on the red of class 0
    assert inked[0] > 20 and len(set(inked)) == 1


def test_maps_of_classes():
    """Each class in its colour, white where there is none; the background of the blend stays, and a legend stands
    beside it."""
    labels = np.zeros((64, 96), np.uint8)
    labels[10:30, 20:50], labels[40:, 60:] = 3, 255
    colors = visualize.color_map(labels)
    assert near_color(colors, 3).sum() == 600 and (colors[40:, 60:] == 255).all()
    np.testing.assert_array_equal(visualize.color_map(np.where(labels == 255, -1, labels.astype(int))), colors)
    names = ("background", "cat", "dog", "Ente")
    picture = visualize.draw_segmentation(GREY, labels, names=names, background=0, scale=1)
    assert picture.shape[1] > 96 + 200
    top = (picture.shape[0] - 64) // 2
    painted = changed(picture[top : top + 64, :96])
    np.testing.assert_array_equal(painted, labels == 3)
    assert near_color(picture[:, 96:], 3).any() and near_color(picture[:, 96:], 0).any()
    assert not near_color(picture[:, 96:], 1).any()  # which is nowhere


def test_table_of_confusion():
    """A row adds up to its class; what is right is blue, what is wrong red, nothing white."""
    table = visualize.draw_table(np.array([[8, 2], [0, 0]]), names=("cat", "dog"))
    assert near(table, (51, 51, 255)) and near(table, (255, 204, 204))
    shown = visualize.draw_table(np.eye(50, dtype=int))
    assert shown.shape[0] == shown.shape[1] and near(shown, (0, 0, 255)) and not near(shown, (255, 0, 0))


def near(picture, color):
    return np.all(picture == np.array(color, np.uint8), axis=-1).any()
