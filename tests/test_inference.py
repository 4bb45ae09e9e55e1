"""Detections in the pixels of images of any size, and what matters for them, by a detector that is easy to follow."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxvision.inference import detect_with, flipped_and_scaled, predict, tiled
from jaxvision.saliency import explain, score_of
from jaxvision.typing import Detections
from jaxvision.weights.records import Preprocessing


def brightest_blocks(variables, images, sizes, *, block=8, count=3):
    """A detector by hand: the brightest blocks of 8 x 8 pixels; the score is the mean, masks grow to the right."""
    b, h, w, _ = images.shape
    means = images.reshape(b, h // block, block, w // block, block, -1).mean((2, 4, 5)).reshape(b, -1)
    scores, index = jax.lax.top_k(means, count)
    low = jnp.stack([index % (w // block), index // (w // block)], axis=-1) * float(block)
    valid = scores > 0.1
    ramp = jnp.tile(jnp.linspace(0, 1, 5)[None], (5, 1))
    return Detections(
        boxes=jnp.where(valid[..., None], jnp.concatenate([low, low + block], axis=-1), 0),
        scores=jnp.where(valid, scores, 0),
        labels=jnp.where(valid, 0, -1),
        valid=valid,
        masks=jnp.where(valid[..., None, None], ramp[None, None], 0),
    )


PLAIN = Preprocessing(shorter_side=16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def picture(height, width, *corners):
    """White blocks of 8 x 8 pixels with these top left corners (x, y)."""
    image = np.zeros((height, width, 3), np.uint8)
    for x, y in corners:
        image[y : y + 8, x : x + 8] = 255
    return image


def as_floats(image):
    """Half the size, 0 ... 1."""
    return (
        np.asarray(image, np.float32)[::2, ::2] / 255 if isinstance(image, np.ndarray) else as_floats(np.array(image))
    )


def identity(image):
    return np.asarray(image, np.float32) / 255


def test_boxes_are_in_the_pixels_of_each_image():
    images = [np.kron(picture(40, 64, (16, 8)), np.ones((2, 2, 1), np.uint8)), np.zeros((20, 30, 3), np.uint8)]
    images += [np.kron(picture(16, 16, (8, 0)), np.ones((2, 2, 1), np.uint8))]
    first, nothing, last = predict(jax.jit(brightest_blocks), {}, images, preprocessing=as_floats, bucket=16)
    np.testing.assert_allclose(first.boxes, [[32, 16, 48, 32]])
    np.testing.assert_allclose(last.boxes, [[16, 0, 32, 16]])
    assert isinstance(first.boxes, np.ndarray) and nothing.boxes.shape == (0, 4) and nothing.masks.shape == (0, 5, 5)


def test_few_shapes_reach_the_network():
    shapes = []

    def detect(variables, images, sizes):
        shapes.append(images.shape)
        return brightest_blocks(variables, images, sizes)

    sides = [(40, 60), (64, 64), (33, 40), (64, 65)]
    found = predict(detect, {}, [picture(*s) for s in sides], preprocessing=identity, bucket=64, batch_size=2)
    assert len(found) == 4 and shapes == [(2, 64, 64, 3)] * 2 + [(2, 64, 128, 3)]


def test_low_scores_are_left_out():
    image = picture(32, 32, (0, 0), (16, 16))
    image[16:24, 16:24] = 100
    (found,) = predict(brightest_blocks, {}, [image], preprocessing=identity, bucket=32, min_score=0.5)
    np.testing.assert_allclose(found.boxes, [[0, 0, 8, 8]])


def test_files_and_pillow_images_stand_upright(tmp_path):
    turned = Image.fromarray(np.rot90(picture(32, 48, (8, 0))).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)

    preprocessing = dataclasses.replace(PLAIN, shorter_side=32)
    with Image.open(tmp_path / "turned.png") as file:
        images = [tmp_path / "turned.png", file]
        for found in predict(brightest_blocks, {}, images, preprocessing=preprocessing, bucket=16):
            np.testing.assert_allclose(found.boxes, [[8, 0, 16, 8]])


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK"])
def test_images_of_any_mode(mode, tmp_path):
    """A white block on black; inverted, as ink, in CMYK files."""
    path = tmp_path / f"image.{'jpg' if mode == 'CMYK' else 'png'}"
    Image.fromarray(picture(16, 16, (8, 0))).convert(mode).save(path)
    (found,) = predict(brightest_blocks, {}, [path], preprocessing=PLAIN, bucket=16)
    np.testing.assert_allclose(found.boxes, [[8, 0, 16, 8]])


def test_images_of_16_bits_are_refused(tmp_path):
    Image.fromarray(np.full((16, 16), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"image 0 of the list: .*deep\.png: mode I;16: more than 8 bits"):
        predict(brightest_blocks, {}, [tmp_path / "deep.png"], preprocessing=PLAIN)


def test_an_unreadable_image_is_named(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match=r"image 1 of the list.*broken\.jpg"):
        predict(brightest_blocks, {}, [picture(16, 16), tmp_path / "broken.jpg"], preprocessing=identity)


def batch(*images):
    return np.stack([image.astype(np.float32) / 255 for image in images])


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 2.0), (0.5, 1.0)])
def test_every_view_finds_the_same_boxes(scales):
    """A block at (8, 16) and one at (24, 0) in the first image, whose right quarter is padding; one in the second."""
    images, sizes = (
        batch(picture(32, 64, (8, 16), (24, 0)), picture(32, 64, (40, 24))),
        np.array([[32, 48], [32, 64.0]]),
    )
    found = flipped_and_scaled(brightest_blocks, scales=scales)({}, images, sizes)
    for row, wanted in ((0, [[8, 16, 16, 24], [24, 0, 32, 8]]), (1, [[40, 24, 48, 32]])):
        boxes = np.asarray(found.boxes[row][found.valid[row]])
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        for box in wanted:  # at twice the scale the detector's blocks are quarters of these
            assert ((centres > np.array(box[:2])) & (centres < np.array(box[2:]))).all(1).any()
        if scales == (1.0,):
            np.testing.assert_allclose(boxes[np.lexsort(boxes.T[::-1])], wanted, atol=1e-4)


def test_masks_of_mirrored_views_are_mirrored_back():
    images, sizes = batch(picture(16, 16, (8, 8))), np.array([[16, 16.0]])

    def only_in_mirrored(variables, images, sizes):
        found = brightest_blocks(variables, images, sizes)
        left = found.valid & (found.boxes[..., 0] < 8)
        return found._replace(valid=left)

    found = flipped_and_scaled(only_in_mirrored)({}, images, sizes)
    np.testing.assert_array_equal(found.valid[0], [True, False, False])
    np.testing.assert_allclose(found.boxes[0, 0], [8, 8, 16, 16], atol=1e-5)
    np.testing.assert_allclose(found.masks[0, 0, 0], np.linspace(1, 0, 5), atol=1e-6)


def test_tiles_cover_a_large_image():
    corners = [(0, 0), (72, 40), (32, 24)]
    images, sizes = batch(picture(48, 80, *corners)), np.array([[48, 80.0]])
    found = tiled(brightest_blocks, size=(32, 32), overlap=0.25)({}, images, sizes)
    boxes = np.asarray(found.boxes[0][found.valid[0]])
    np.testing.assert_allclose(sorted(map(tuple, boxes)), sorted((x, y, x + 8, y + 8) for x, y in corners), atol=1e-4)


@pytest.mark.parametrize("views", [flipped_and_scaled, lambda detect: tiled(detect, size=(32, 32))])
def test_views_of_given_regions_are_refused(views):
    with pytest.raises(ValueError, match="give predict the detector itself"):
        options = {"preprocessing": PLAIN, "regions": [np.zeros((0, 4), np.float32)]}
        predict(views(brightest_blocks), {}, [picture(16, 16)], **options)


def test_an_overlap_of_a_whole_tile_is_refused():
    with pytest.raises(ValueError, match="overlap=1"):
        tiled(brightest_blocks, size=(32, 32), overlap=1)


class Blocks(nn.Module):
    """``brightest_blocks`` as a module with a feature map."""

    def features(self, images, *, train=False):
        return {"c0": images, "c5": jnp.zeros((len(images), 1, 1, 3))}

    def __call__(self, images, image_sizes=None, *, train=False):
        features = self.features(images)
        return brightest_blocks({}, features["c0"], None), features

    def detect(self, images, image_sizes=None):
        return self(images, image_sizes)[0]


IMAGE = batch(picture(32, 32, (8, 16), (24, 0)))[0] * np.linspace(0.8, 1, 32, dtype=np.float32)[:, None, None]


def detection(index):
    return jax.tree.map(lambda leaf: leaf[0, index], detect_with(Blocks())({}, IMAGE[None], np.full((1, 2), 32.0)))


@pytest.mark.parametrize("method", ["gradient", "smoothgrad", "gradcam"])
@pytest.mark.parametrize("index", [0, 1])
def test_the_pixels_of_the_detection_matter(method, index):
    one = detection(index)
    options = {"key": jax.random.key(0), "noise": 0.01}
    found = jax.jit(lambda image: explain(Blocks(), {}, image, one, method=method, **options))(IMAGE)
    left, top, right, bottom = np.asarray(one.boxes, int)
    inside = np.zeros((32, 32), bool)
    inside[top:bottom, left:right] = True
    assert found.shape == (32, 32) and float(found.max()) == pytest.approx(1)
    if method == "gradcam":  # the map is the image, so all bright pixels count
        assert found[inside].mean() > 5 * found[~inside].mean()
    else:
        assert (np.asarray(found)[inside] > 0.5).all() and not np.asarray(found)[~inside].any()


def test_score_of_a_detection_by_finite_differences():
    one, change = detection(0), np.zeros_like(IMAGE)
    change[16:24, 8:16] = 1e-2
    value, gradient = jax.value_and_grad(score_of, 2)(Blocks(), {}, IMAGE, one)
    assert value == pytest.approx(float(one.scores))
    slope = (score_of(Blocks(), {}, IMAGE + change, one) - value) / 1e-2
    assert float((gradient * change).sum() / 1e-2) == pytest.approx(float(slope), rel=1e-3)


def test_a_detection_that_is_gone_scores_nothing():
    assert score_of(Blocks(), {}, np.zeros_like(IMAGE), detection(0)) == 0


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="'saliency'"):
        explain(Blocks(), {}, IMAGE, detection(0), method="saliency")
    with pytest.raises(ValueError, match="key"):
        explain(Blocks(), {}, IMAGE, detection(0), method="smoothgrad")
