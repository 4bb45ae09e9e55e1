"""Convolutions and dense layers with parameters.

They compute in the dtype of their input: bfloat16 images make a bfloat16 network, whose parameters stay float32.
"""

from collections.abc import Callable

import flax.linen as nn
from flax.linen import initializers

from jaxvision.ops.convolution import IntOrPair, conv, conv_transpose, pair
from jaxvision.typing import Array, Float

# He's initialisation for ReLU networks, counting outputs, as ResNet uses it (arXiv:1502.01852).
he_normal_fan_out = initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
    """Convolution with explicit padding; parameters ``kernel`` [kh, kw, in/groups, out] and ``bias``."""

    features: int
    window: IntOrPair
    strides: IntOrPair = 1
    padding: IntOrPair = 0
    dilation: IntOrPair = 1
    groups: int = 1
    use_bias: bool = True
    kernel_init: Callable = he_normal_fan_out
    bias_init: Callable = initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b oh ow o"]:
        if x.shape[-1] % self.groups:
            raise ValueError(f"{x.shape[-1]} channels do not divide into {self.groups} groups")
        shape = (*pair(self.window), x.shape[-1] // self.groups, self.features)
        x = conv(
            x,
            self.param("kernel", self.kernel_init, shape).astype(x.dtype),
            strides=self.strides,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        if self.use_bias:
            x = x + self.param("bias", self.bias_init, (self.features,)).astype(x.dtype)[None, None, None, :]
        return x


class ConvTranspose(nn.Module):
    """Transposed convolution with torch's size rule; ``transposed_kernel`` [kh, kw, in, out] and ``bias``."""

    features: int
    window: IntOrPair
    strides: IntOrPair = 1
    padding: IntOrPair = 0
    output_padding: IntOrPair = 0
    kernel_init: Callable = he_normal_fan_out

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b oh ow o"]:
        shape = (*pair(self.window), x.shape[-1], self.features)
        x = conv_transpose(
            x,
            self.param("transposed_kernel", self.kernel_init, shape).astype(x.dtype),
            strides=self.strides,
            padding=self.padding,
            output_padding=self.output_padding,
        )
        return x + self.param("bias", initializers.zeros, (self.features,)).astype(x.dtype)[None, None, None, :]


class Dense(nn.Module):
    """``x @ kernel + bias``; parameters ``kernel`` [in, out] and ``bias``."""

    features: int
    kernel_init: Callable = initializers.lecun_normal()
    bias_init: Callable = initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features)).astype(x.dtype)
        bias = self.param("bias", self.bias_init, (self.features,)).astype(x.dtype)
        return x @ kernel + bias[(None,) * (x.ndim - 1)]
