"""Parameters and multiply-adds of any model, without running it."""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision.layers.convolution import Conv, ConvTranspose, Dense
from jaxvision.ops.convolution import pair


class Counts(NamedTuple):
    parameters: int
    multiply_adds: int


def count(model: nn.Module, image_shape: tuple[int, int, int, int]) -> Counts:
    """The size of a model and the work of one forward pass (``train=False``) on images of shape [b, h, w, c].

    parameters: what training changes, so scales and shifts of normalisation, but not running statistics.
    multiply_adds: of convolutions, transposed convolutions and dense layers, a multiplication and its addition counted
    as one. This is torchvision's ``_ops`` and what the ResNet paper calls FLOPs; for operations, take twice as many.
    Norms, activations, pooling and whatever else is no layer of these kinds do not count, nor do auxiliary heads,
    which only training runs.
    """
    images = jax.ShapeDtypeStruct(image_shape, jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    works = []

    def watch(call, args, kwargs, context):
        outputs = call(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(context.module, Conv | ConvTranspose | Dense):
            works.append(_work(context.module, args[0].shape, outputs.shape))
        return outputs

    with nn.intercept_methods(watch):
        jax.eval_shape(model.apply, variables, images)
    return Counts(sum(leaf.size for leaf in jax.tree.leaves(variables["params"])), sum(works))


def _work(layer, inputs, outputs):
    if isinstance(layer, Dense):
        return math.prod(outputs) * inputs[-1]
    window = math.prod(pair(layer.window))
    if isinstance(layer, ConvTranspose):  # each input cell stamps the kernel onto the output
        return math.prod(inputs) * window * outputs[-1]
    return math.prod(outputs) * window * inputs[-1] // layer.groups
