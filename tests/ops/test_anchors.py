import jax
import numpy as np
import pytest

from jaxvision.ops import anchors

FPN = {
    "sizes": ((32,), (64,), (128,), (256,), (512,)),
    "aspect_ratios": ((0.5, 1.0, 2.0),) * 5,
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


def test_no_large_constant_in_the_program():
    def make():
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


def test_bad_options():
    with pytest.raises(ValueError, match="2 maps, 1 tuples of sizes"):
        anchors.anchor_boxes(((4, 4), (2, 2)), (32, 32), sizes=((8,),), aspect_ratios=((1.0,), (1.0,)))
    with pytest.raises(ValueError, match="larger than the image"):
        anchors.anchor_boxes(((64, 4),), (32, 32), sizes=((8,),), aspect_ratios=((1.0,),))
