"""Parameters and multiply-adds against torchvision's metadata, the ResNet paper, and XLA's own count."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import jaxvision as jv
from jaxvision.layers.convolution import Conv, ConvTranspose, Dense
from jaxvision.models.counting import count

# 1e9 multiply-adds for the stride placement of arXiv:1512.03385, and for torchvision's; more of both, and all
# other models, in test_zoo_table.py.
RESNETS = {"resnet18": 1.8141, "resnet50_paper": 3.8580, "resnet50": 4.0892}


@pytest.mark.parametrize("name", RESNETS)
def test_multiply_adds_of_resnets(name):
    assert round(count(jv.get_model(name), (1, 224, 224, 3)).multiply_adds / 1e9, 4) == RESNETS[name]


def test_auxiliary_heads_have_parameters_but_do_not_run():
    with_heads, without = (count(jv.get_model("googlenet", aux_logits=aux), (1, 64, 64, 3)) for aux in (True, False))
    assert with_heads.parameters - without.parameters == 13_004_888 - 6_624_904
    assert with_heads.multiply_adds == without.multiply_adds


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
