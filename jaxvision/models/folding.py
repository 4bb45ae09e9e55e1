"""Batch norm folded into the convolutions before it, for inference."""

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxvision.layers.convolution import Conv
from jaxvision.layers.norm import BatchNorm, affine
from jaxvision.registry import example_images
from jaxvision.typing import Variables


def fold_batch_norm(model: nn.Module, variables: Variables) -> Variables:
    """Variables of the same model for inference, with each batch norm that directly follows a convolution folded into
    it: the kernel takes the factor, and what remains of the norm is its bias. Other batch norms stay.

    ``model.apply(fold_batch_norm(model, variables), images)`` is what it was, up to rounding; to train with folded
    variables is an error. Differentiable in the variables.
    """
    params, stats = flatten_dict(variables["params"]), flatten_dict(variables.get("batch_stats", {}))
    for norm, conv in _norms_after_convolutions(model, variables):
        path, kernel = norm.path, (*conv.path, "kernel")
        scale, mean, var = params.pop((*path, "scale")), stats.pop((*path, "mean")), stats.pop((*path, "var"))
        factor, shift = affine(scale, params[*path, "bias"], mean, var, norm.epsilon)
        params[kernel] = params[kernel] * factor[None, None, None, :]
        if conv.use_bias:
            params[*conv.path, "bias"] = params[*conv.path, "bias"] * factor
        params[*path, "bias"] = shift
    folded = {**variables, "params": unflatten_dict(params), "batch_stats": unflatten_dict(stats)}
    return {name: tree for name, tree in folded.items() if tree}


def _norms_after_convolutions(model, variables):
    """(norm, convolution) where the one takes the very array that the other made; nothing is computed."""
    made, pairs = [], []  # the arrays are kept, so that no two have one identity

    def watch(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if context.method_name == "__call__":
            if isinstance(context.module, Conv):
                made.append((output, context.module))
            elif isinstance(context.module, BatchNorm):
                pairs.extend((context.module, conv) for array, conv in made if array is args[0])
        return output

    with nn.intercept_methods(watch):
        jax.eval_shape(model.apply, variables, example_images(model))
    return pairs
