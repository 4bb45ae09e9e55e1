"""Parameters and multiply-adds against torchvision's metadata, the ResNet paper, and XLA's own count."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import jaxvision as jv
from jaxvision.layers.convolution import Conv, ConvTranspose, Dense
from jaxvision.models.counting import count

# torchvision 0.29 meta["_ops"]: 1e9 multiply-adds at 224 pixels, or 299 for Inception.
TORCHVISION = {
    "alexnet": 0.714,
    "vgg11": 7.609,
    "vgg11_bn": 7.609,
    "vgg13": 11.308,
    "vgg13_bn": 11.308,
    "vgg16": 15.470,
    "vgg16_bn": 15.470,
    "vgg19": 19.632,
    "vgg19_bn": 19.632,
    "resnet18": 1.814,
    "resnet34": 3.664,
    "resnet50": 4.089,
    "resnet101": 7.801,
    "resnet152": 11.514,
    "resnext50_32x4d": 4.230,
    "resnext101_32x8d": 16.414,
    "resnext101_64x4d": 15.460,
    "wide_resnet50_2": 11.398,
    "wide_resnet101_2": 22.753,
    "squeezenet1_0": 0.819,
    "squeezenet1_1": 0.349,
    "densenet121": 2.834,
    "densenet161": 7.728,
    "densenet169": 3.360,
    "densenet201": 4.291,
    "googlenet": 1.498,
    "inception_v3": 5.713,
    "shufflenet_v2_x0_5": 0.040,
    "shufflenet_v2_x1_0": 0.145,
    "shufflenet_v2_x1_5": 0.296,
    "shufflenet_v2_x2_0": 0.583,
    "mobilenet_v2": 0.301,
    "mnasnet0_5": 0.104,
    "mnasnet0_75": 0.215,
    "mnasnet1_0": 0.314,
    "mnasnet1_3": 0.526,
}
# Table 1 of arXiv:1512.03385, and the exact count with its stride placement.
RESNET_PAPER = {
    "resnet18": (1.8, 1.8141),
    "resnet34": (3.6, 3.6638),
    "resnet50_paper": (3.8, 3.8580),
    "resnet101_paper": (7.6, 7.5702),
    "resnet152_paper": (11.3, 11.2824),
}


# Tracing these takes seconds, and they differ from a sister in depth or width alone.
DEEP = ("resnet101", "resnet152", "resnext101", "wide_resnet101", "densenet161", "densenet169", "densenet201")


def names(table):
    """Those that are registered; the slow run has the deep ones."""
    return [
        pytest.param(name, marks=[pytest.mark.slow] if name.startswith(DEEP) else [])
        for name in table
        if name in jv.list_models()
    ]


def billions(name):
    size = 299 if name == "inception_v3" else 224
    return count(jv.get_model(name), (1, size, size, 3)).multiply_adds / 1e9


@pytest.mark.parametrize("name", names(TORCHVISION))
def test_multiply_adds_equal_torchvision(name):
    assert round(billions(name), 3) == TORCHVISION[name]


@pytest.mark.parametrize("name", names(RESNET_PAPER))
def test_multiply_adds_agree_with_the_paper(name):
    published, exact = RESNET_PAPER[name]
    assert round(billions(name), 4) == exact
    assert abs(billions(name) / published - 1) < 0.03


class Small(nn.Module):
    @nn.compact
    def __call__(self, images, *, train=False):
        x = Conv(8, (3, 1), strides=2, dilation=2, groups=2)(images)
        x = ConvTranspose(6, 3, strides=2, padding=1)(x)
        return Dense(5)(x.reshape(len(x), -1)), {}


def test_counts_by_hand():
    """8 x 10 pixels become 2 x 5 units of 8 channels, those 3 x 9 of 6."""
    parameters = (3 * 1 * 2 * 8 + 8) + (9 * 8 * 6 + 6) + (3 * 9 * 6 * 5 + 5)
    multiply_adds = 7 * ((2 * 5 * 8) * (3 * 1 * 2) + (2 * 5 * 8) * (9 * 6) + (3 * 9 * 6) * 5)
    assert count(Small(), (7, 8, 10, 4)) == (parameters, multiply_adds)


def test_every_layer_of_a_detector_counts_as_often_as_it_runs():
    """XLA counts two operations a multiply-add, less what falls on padding, plus the work of everything else."""
    model, shape = jv.get_model("maskrcnn_small", num_classes=3), (1, 128, 128, 3)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    cost = jax.jit(model.apply).lower(variables, jax.ShapeDtypeStruct(shape, jnp.float32)).cost_analysis()
    assert 0.8 < cost["flops"] / (2 * count(model, shape).multiply_adds) < 1.2
