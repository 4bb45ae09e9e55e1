import jax
import numpy as np
import pytest

from jaxvision.ops import anchors

FPN = {
    "sizes": ((32,), (64,), (128,), (256,), (512,)),
    "aspect_ratios": ((0.5, 1.0, 2.0),) * 5,
}


SSD300 = {
    "scales": (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
    "aspect_ratios": ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
    "steps": (8, 16, 32, 64, 100, 300),
}


def reference(feature_size, image_size, sizes, ratios, rounded):
    """One anchor at a time, from the definition."""
    out = []
    for row in range(feature_size[0]):
        for column in range(feature_size[1]):
            y, x = row * (image_size[0] // feature_size[0]), column * (image_size[1] // feature_size[1])
            for ratio in ratios:
                for size in sizes:
                    half_height, half_width = size * ratio**0.5 / 2, size / ratio**0.5 / 2
                    if rounded:
                        half_height, half_width = round(half_height), round(half_width)
                    out.append([x - half_width, y - half_height, x + half_width, y + half_height])
    return np.array(out, np.float32).reshape(-1, 4)


@pytest.mark.parametrize("rounded", [True, False])
def test_order_and_place(rounded):
    feature_sizes, image_size = ((5, 7), (3, 4)), (84, 113)
    sizes, ratios = ((16, 20.5), (48, 64)), ((0.5, 1, 2), (1,))
    levels = anchors.anchor_boxes(feature_sizes, image_size, sizes=sizes, aspect_ratios=ratios, rounded=rounded)
    assert len(levels) == 2
    for level, *of_level in zip(levels, feature_sizes, sizes, ratios):
        feature_size, size, ratio = of_level
        np.testing.assert_allclose(level, reference(feature_size, image_size, size, ratio, rounded), rtol=1e-6)


def test_torchvisions_base_anchors():
    """Cell anchors of torchvision 0.29's RPN, printed from its AnchorGenerator."""
    (level, *_) = anchors.anchor_boxes(((200, 304),) + ((1, 1),) * 4, (800, 1216), **FPN)
    np.testing.assert_array_equal(level[:3], [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]])
    np.testing.assert_array_equal(level[3], [-19, -11, 27, 11])
    assert level.shape == (200 * 304 * 3, 4)


def test_default_boxes_one_at_a_time():
    image_size, feature_sizes, steps = (60, 90), ((4, 3), (2, 5)), (16, 30)
    scales, ratios = (0.2, 0.4, 1.1), ((2, 3), (1.5,))
    levels = anchors.default_boxes(feature_sizes, image_size, scales=scales, aspect_ratios=ratios, steps=steps)
    for k, level in enumerate(levels):
        wanted = []
        for row, column in np.ndindex(feature_sizes[k]):
            x, y = (column + 0.5) * steps[k], (row + 0.5) * steps[k]
            sides = [(scales[k],) * 2, ((scales[k] * scales[k + 1]) ** 0.5,) * 2]
            for ratio in ratios[k]:
                sides += [
                    (scales[k] * ratio**0.5, scales[k] / ratio**0.5),
                    (scales[k] / ratio**0.5, scales[k] * ratio**0.5),
                ]
            for width, height in sides:
                width, height = min(width, 1) * 90 / 2, min(height, 1) * 60 / 2
                wanted.append([x - width, y - height, x + width, y + height])
        np.testing.assert_allclose(level, wanted, rtol=1e-5, atol=1e-5)


def test_torchvisions_default_boxes():
    """Printed from torchvision 0.29's DefaultBoxGenerator for SSD300."""
    boxes = np.concatenate(anchors.default_boxes(tuple((n, n) for n in (38, 19, 10, 5, 3, 1)), (300, 300), **SSD300))
    assert boxes.shape == (8732, 4)
    np.testing.assert_allclose(
        boxes[1:3], [[-11.37043, -11.37043, 19.37043, 19.37043], [-10.84924, -3.42462, 18.84924, 11.42462]], atol=2e-5
    )
    np.testing.assert_allclose(boxes[-2:], [[0, 57.72257, 300, 242.27744], [57.72257, 0, 242.27744, 300]], atol=2e-5)
    np.testing.assert_allclose(
        (boxes.astype(float) ** 2).mean(0), [25582.904, 25582.904, 37986.52, 37986.52], rtol=1e-6
    )


@pytest.mark.parametrize("kind", ["anchors", "default boxes"])
def test_no_large_constant_in_the_program(kind):
    def make():
        if kind == "default boxes":
            return anchors.default_boxes(tuple((256 // 2**i, 256 // 2**i) for i in range(6)), (1024, 1024), **SSD300)
        return anchors.anchor_boxes(tuple((256 // 2**i, 256 // 2**i) for i in range(5)), (1024, 1024), **FPN)

    lowered = jax.jit(make).lower()
    assert len(lowered.as_text()) < 50_000
    assert len(lowered.compile().as_text()) < 100_000
    for jitted, eager in zip(jax.jit(make)(), make()):
        np.testing.assert_array_equal(jitted, eager)
        assert jitted.dtype == np.float32


def test_empty_map_and_x64(x64):
    (level,) = anchors.anchor_boxes(((0, 5),), (64, 64), sizes=((8,),), aspect_ratios=((1.0,),))
    assert level.shape == (0, 4)
    assert level.dtype == np.float32
    options = {"scales": (0.2, 0.3), "aspect_ratios": ((2,),), "steps": (8,)}
    for feature_size, count in (((0, 5), 0), ((2, 3), 24)):
        (level,) = anchors.default_boxes((feature_size,), (64, 64), **options)
        assert level.shape == (count, 4)
        assert level.dtype == np.float32


def test_bad_options():
    with pytest.raises(ValueError, match="2 maps, 1 tuples of sizes"):
        anchors.anchor_boxes(((4, 4), (2, 2)), (32, 32), sizes=((8,),), aspect_ratios=((1.0,), (1.0,)))
    with pytest.raises(ValueError, match="larger than the image"):
        anchors.anchor_boxes(((64, 4),), (32, 32), sizes=((8,),), aspect_ratios=((1.0,),))
    with pytest.raises(ValueError, match="2 maps, 6 tuples, 6 steps, 7 scales"):
        anchors.default_boxes(((4, 4), (2, 2)), (32, 32), **SSD300)
