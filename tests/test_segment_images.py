"""Segmentation of images of any size: their own pixels, views, tiles; with a network of one convolution."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvision as jv
from jaxvision import ops
from jaxvision.inference import detect_with, flipped_and_scaled, tiled
from jaxvision.layers.convolution import Conv
from jaxvision.layers.segmenter import Segmenter, segmentation


class Local(Segmenter):
    """Sees 5 pixels around each; ``stride`` pools first, so that what it says depends on where the grid begins."""

    stride: int = 1

    @nn.compact
    def __call__(self, images, *, train: bool = False):
        x = ops.max_pool(images, window=self.stride)
        x = Conv(8, 3, padding=1, name="conv1")(x)
        x = Conv(self.num_classes, 3, padding=1, name="conv2")(nn.relu(x))
        return ops.resize(x, size=images.shape[1:3]), {"c1": x}


class Bytes:
    """Preprocessing that takes images as they are."""

    mean, std, scale = (0.5,) * 3, (0.2,) * 3, 1 / 255

    def pixels(self, image):
        return image


def setup(stride=1, size=(40, 56)):
    model = Local(num_classes=4, stride=stride)
    images = jax.random.normal(jax.random.key(1), (2, *size, 3))
    return model, model.init(jax.random.key(0), images), images


def inside(sizes, shape):
    rows, columns = np.arange(shape[0])[None, :, None], np.arange(shape[1])[None, None, :]
    height, width = np.asarray(sizes).T[:, :, None, None]
    return (rows < height) & (columns < width)


def whole(images):
    return jnp.array([[*images.shape[1:3]]] * len(images), jnp.float32)


def test_segment():
    """Probabilities add up to 1 inside the image and to 0 in the padding, where the label is -1."""
    model, variables, images = setup()
    found = jax.jit(lambda *x: model.apply(*x, method="segment"))(variables, images, jnp.array([[40.0, 56], [30, 20]]))
    assert found.labels.shape == (2, 40, 56) and found.probabilities.shape == (2, 40, 56, 4)
    np.testing.assert_allclose(found.probabilities.sum(-1), found.valid, atol=1e-6)
    assert found.valid[0].all() and found.valid[1].sum() == 600 and found.valid[1, :30, :20].all()
    np.testing.assert_array_equal(found.labels == -1, ~found.valid)
    np.testing.assert_array_equal(found.labels[0], model.apply(variables, images)[0][0].argmax(-1))


def test_predict_gives_maps_of_the_images_own_size():
    model, variables, _ = setup()
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (h, w, 3), np.uint8) for h, w in ((20, 30), (64, 33), (20, 30))]
    found = jv.predict(model, variables, images, preprocessing=Bytes(), bucket=64, batch_size=2)
    for image, one in zip(images, found):
        alone = model.apply(variables, jnp.asarray((image / 255 - 0.5) / 0.2, jnp.float32)[None], method="segment")
        assert one.labels.shape == image.shape[:2] and one.valid.all()
        # The padding is zeros, as the convolution's own: nothing differs but at one pixel of the border.
        np.testing.assert_allclose(one.probabilities[:-2, :-2], alone.probabilities[0, :-2, :-2], atol=1e-5)
    assert isinstance(found[0].labels, np.ndarray)

    class Half(Bytes):
        def pixels(self, image):
            return image[::2, ::2]

    (half,) = jv.predict(model, variables, images[:1], preprocessing=Half())
    assert half.labels.shape == (20, 30)
    np.testing.assert_allclose(half.probabilities.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("stride", "size", "overlap", "margin"),
    [(1, (16, 24), 0.25, 2), (4, (32, 32), 0.9, 12), (1, (40, 20), 0.5, 2)],
)
def test_tiles_give_the_whole_image(stride, size, overlap, margin, x64):
    """With margins as wide as what a pixel sees, and tiles on the network's grid."""
    model, variables, images = setup(stride, (40, 57) if stride == 1 else (40, 56))
    variables, images = jax.tree.map(lambda x: x.astype(float), (variables, images))
    function = tiled(detect_with(model), size=size, overlap=overlap, margin=margin, stride=stride)
    want = model.apply(variables, images, method="segment")
    got = jax.jit(function)(variables, images, whole(images).astype(float))
    np.testing.assert_allclose(got.probabilities, want.probabilities, atol=1e-12)
    np.testing.assert_array_equal(got.labels, want.labels)


def test_tiles_without_margins_differ_and_gaps_are_refused():
    model, variables, images = setup()
    got = tiled(detect_with(model), size=(16, 24))(variables, images, whole(images))
    want = model.apply(variables, images, method="segment")
    np.testing.assert_allclose(got.probabilities.sum(-1), 1, atol=1e-5)
    assert 1e-3 < np.abs(got.probabilities - want.probabilities).max() < 1
    with pytest.raises(ValueError, match="margin=5"):
        tiled(detect_with(model), size=(16, 24), overlap=0.25, margin=5)


def test_views():
    """The image alone is itself; the mean over mirrored views turns with the image; enlarged views agree on what is
    smooth."""
    model, variables, images = setup(size=(64, 96))
    sizes = jnp.array([[64.0, 96], [31, 23]])
    images = images * inside(sizes, (64, 96))[..., None]
    want = model.apply(variables, images, sizes, method="segment")
    one = flipped_and_scaled(detect_with(model), flip=False)(variables, images, sizes)
    np.testing.assert_allclose(one.probabilities, want.probabilities, atol=1e-5)
    np.testing.assert_array_equal(one.valid, inside(sizes, (64, 96)))
    both = flipped_and_scaled(detect_with(model))
    left = both(variables, images[:1], sizes[:1])
    right = both(variables, images[:1, :, ::-1], sizes[:1])
    np.testing.assert_allclose(left.probabilities, right.probabilities[:, :, ::-1], atol=1e-5)

    def steady(variables, images, sizes):  # answers by the colour of the pixel, whatever its size
        return segmentation(jax.nn.softmax(images), sizes)

    smooth = jnp.sin(
        jnp.arange(40)[:, None, None] / 9 + jnp.arange(56)[None, :, None] / 7 + jnp.arange(3.0)[None, None]
    )[None]
    scaled = flipped_and_scaled(steady, scales=(0.75, 1.0, 1.5))(variables, smooth, whole(smooth))
    np.testing.assert_allclose(scaled.probabilities, jax.nn.softmax(smooth), atol=0.02)


def test_gradients_reach_the_image():
    model, variables, images = setup()
    both = flipped_and_scaled(detect_with(model))

    def share(images):
        return both(variables, images, whole(images)).probabilities[0, :, :, 1].mean()

    assert np.abs(jax.grad(share)(images)[0]).min(axis=-1).max() > 0


@pytest.mark.parametrize("method", ["gradient", "smoothgrad"])
def test_explained_pixels_are_those_in_view(method):
    """A part of the map is explained by the pixels that its receptive field covers."""
    model, variables, images = setup()
    mask = np.zeros((40, 56), bool)
    mask[10:14, 20:30] = True
    key = jax.random.key(0) if method == "smoothgrad" else None
    found = jv.explain(model, variables, images[0], jv.Segment(2, mask), method=method, key=key)
    seen = np.zeros((40, 56), bool)
    seen[8:16, 18:32] = True
    assert found.shape == (40, 56) and found.max() == 1 and not np.asarray(found)[~seen].any()
    assert np.asarray(found)[seen].mean() > 0.05


def test_gradcam_of_a_segmenter():
    model = jv.get_model("fcn", backbone="squeezenet1_1", num_classes=3)
    image = jax.random.normal(jax.random.key(1), (64, 64, 3))
    variables = model.init(jax.random.key(0), image[None])
    mask = np.ones((64, 64), bool)

    @jax.jit
    def explained(label):
        return jv.explain(model, variables, image, jv.Segment(label, mask), method="gradcam")

    found = np.stack([explained(label) for label in range(3)])
    assert found.shape == (3, 64, 64) and found.min() >= 0
    # A class that all maps speak against has nothing positive; what the classes have differs.
    assert set(found.max((1, 2)).tolist()) <= {0.0, 1.0} and found.max() == 1 and found.std(0).max() > 0.1
    with pytest.raises(ValueError, match="Local has none"):
        model, variables, images = setup()
        jv.explain(model, variables, images[0], jv.Segment(1, np.ones((40, 56), bool)), method="gradcam")
