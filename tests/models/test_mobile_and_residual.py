"""What tells the variants of residual and mobile nets apart."""

import jax
import jax.numpy as jnp
import pytest

import jaxvision as jv
from jaxvision.models.mobilenet import round_channels
from jaxvision.models.resnet import ResNet


@pytest.mark.parametrize(
    ("channels", "rounded"),
    [(83, 80), (84, 88), (3, 8), (11.9, 16), (12, 16), (10, 16), (18, 24), (16.8, 16)],
)
def test_channels_are_rounded_to_eights_and_never_far_down(channels, rounded):
    assert round_channels(channels) == rounded
    assert rounded % 8 == 0 and rounded >= 0.9 * channels


def count(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


# Parameters of torchvision.models.mobilenet_v2(width_mult=...).
@pytest.mark.parametrize(("width", "parameters"), [(0.5, 1_968_680), (0.75, 2_636_424), (1.4, 6_108_776)])
def test_widths_of_mobilenet(width, parameters):
    assert count(jv.get_model("mobilenet_v2", width=width)) == parameters


def shapes_inside(model, block):
    """Of what the convolutions of a block give, at 64 pixels."""
    images = jnp.zeros((1, 64, 64, 3))

    def run():
        variables = model.init(jax.random.key(0), images)
        return model.apply(variables, images, capture_intermediates=True)[1]["intermediates"][block]

    found = jax.eval_shape(run)
    return {name: found[name]["__call__"][0].shape[1:] for name in ("conv1", "conv2", "conv3")}


def test_where_a_bottleneck_strides():
    tiny = ResNet((1, 1, 1, 1), "bottleneck", num_classes=2, width=8)
    assert shapes_inside(tiny, "layer2_0") == {"conv1": (16, 16, 16), "conv2": (8, 8, 16), "conv3": (8, 8, 64)}
    paper = tiny.clone(stride_in_1x1=True)
    assert shapes_inside(paper, "layer2_0") == {"conv1": (8, 8, 16), "conv2": (8, 8, 16), "conv3": (8, 8, 64)}
    for depth in (50, 101, 152):
        ours, theirs = (jv.get_model(f"resnet{depth}{suffix}") for suffix in ("", "_paper"))
        assert theirs == ours.clone(stride_in_1x1=True) and theirs != ours


def test_groups_and_widths():
    options = {"stage_sizes": (1, 1, 1, 1), "block": "bottleneck", "num_classes": 2}
    grouped = ResNet(**options, groups=32, width_per_group=4)
    assert [shapes_inside(grouped, f"layer{stage}_0")["conv2"][-1] for stage in (1, 2, 3, 4)] == [128, 256, 512, 1024]
    wide = ResNet(**options, width_per_group=128)
    assert [shapes_inside(wide, f"layer{stage}_0")["conv2"][-1] for stage in (1, 4)] == [128, 1024]
    assert [shapes_inside(wide, f"layer{stage}_0")["conv3"][-1] for stage in (1, 4)] == [256, 2048]
