"""Inception v3: Rethinking the Inception Architecture for Computer Vision (Szegedy et al., arXiv:1512.00567), table 1.

Variant: torchvision's, which was ported from TensorFlow. Images should have 299 pixels and must have 75; training with
the auxiliary head takes 299. Dense biases start at zero. Parameter counts: torchvision 0.29, ``meta["num_params"]`` =
27,161,264 with the auxiliary head, 23,834,568 without.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax.linen import initializers

from jaxvision import ops
from jaxvision.layers.classifier import Classifier
from jaxvision.layers.convolution import Dense
from jaxvision.models.googlenet import ConvNormRelu, Maps, transform
from jaxvision.ops.convolution import pair
from jaxvision.registry import register
from jaxvision.typing import Array, Float


def layers(axis_name: str | None, train: bool):
    """(conv, chain) of a block. A convolution keeps the size of its map, or halves it without padding; a chain is
    several in turn, named ``name_1``, ``name_2`` ..."""

    def conv(x, name, features, window, strides=1):
        padding = tuple(side // 2 for side in pair(window)) if strides == 1 else 0
        init = initializers.normal(0.1)
        return ConvNormRelu(features, window, strides, padding, init, axis_name, name=name)(x, train=train)

    def chain(x, name, *shapes):
        for index, shape in enumerate(shapes, start=1):
            x = conv(x, f"{name}_{index}", *shape)
        return x

    return conv, chain


def average(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """The 3x3 mean of the pooling branches; at the border the padding counts."""
    return ops.avg_pool(x, window=3, strides=1, padding=1)


class InceptionA(nn.Module):
    """Figure 5: a 5x5 window is two of 3x3, in one of the branches that have one."""

    pool_features: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], *, train: bool = False) -> Float[Array, "b h w o"]:
        conv, chain = layers(self.axis_name, train)
        branches = [
            conv(x, "branch1x1", 64, 1),
            chain(x, "branch5x5", (48, 1), (64, 5)),
            chain(x, "branch3x3dbl", (64, 1), (96, 3), (96, 3)),
            conv(average(x), "branch_pool", self.pool_features, 1),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionB(nn.Module):
    """Figure 10: from 35x35 to 17x17."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], *, train: bool = False) -> Float[Array, "b oh ow o"]:
        conv, chain = layers(self.axis_name, train)
        branches = [
            conv(x, "branch3x3", 384, 3, strides=2),
            chain(x, "branch3x3dbl", (64, 1), (96, 3), (96, 3, 2)),
            ops.max_pool(x, window=3, strides=2),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionC(nn.Module):
    """Figure 6: a 7x7 window is 1x7 and 7x1."""

    width: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], *, train: bool = False) -> Float[Array, "b h w o"]:
        conv, chain = layers(self.axis_name, train)
        width, row, column = self.width, (1, 7), (7, 1)
        double = ((width, 1), (width, column), (width, row), (width, column), (192, row))
        branches = [
            conv(x, "branch1x1", 192, 1),
            chain(x, "branch7x7", (width, 1), (width, row), (192, column)),
            chain(x, "branch7x7dbl", *double),
            conv(average(x), "branch_pool", 192, 1),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionD(nn.Module):
    """From 17x17 to 8x8, as figure 10 with a factorised branch."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], *, train: bool = False) -> Float[Array, "b oh ow o"]:
        _, chain = layers(self.axis_name, train)
        branches = [
            chain(x, "branch3x3", (192, 1), (320, 3, 2)),
            chain(x, "branch7x7x3", (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)),
            ops.max_pool(x, window=3, strides=2),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionE(nn.Module):
    """Figure 7: branches that end in 1x3 and 3x1, side by side."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], *, train: bool = False) -> Float[Array, "b h w o"]:
        conv, chain = layers(self.axis_name, train)
        single = conv(x, "branch3x3_1", 384, 1)
        double = chain(x, "branch3x3dbl", (448, 1), (384, 3))
        branches = [
            conv(x, "branch1x1", 320, 1),
            conv(single, "branch3x3_2a", 384, (1, 3)),
            conv(single, "branch3x3_2b", 384, (3, 1)),
            conv(double, "branch3x3dbl_3a", 384, (1, 3)),
            conv(double, "branch3x3dbl_3b", 384, (3, 1)),
            conv(average(x), "branch_pool", 192, 1),
        ]
        return jnp.concatenate(branches, axis=-1)


class AuxiliaryHead(nn.Module):
    """A classifier on the last 17x17 map, a regulariser in training (section 4)."""

    num_classes: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b k"]:
        if min(x.shape[1:3]) < 17:
            raise ValueError(f"a map of {x.shape[1:3]} is too small for the auxiliary head, which takes images of 299 "
                             "pixels; train smaller ones with aux_logits=False")  # fmt: skip
        x = ops.avg_pool(x, window=5, strides=3)
        x = ConvNormRelu(128, 1, kernel_init=initializers.normal(0.1), axis_name=self.axis_name, name="conv0")(
            x, train=train
        )
        x = ConvNormRelu(768, 5, axis_name=self.axis_name, name="conv1")(x, train=train)
        return Dense(self.num_classes, kernel_init=initializers.normal(0.001), name="fc")(jnp.mean(x, axis=(1, 2)))


class InceptionV3(Classifier):
    """Features ``c1`` to ``c5``, each the last map before the next halving; the outputs are logits, or the pooled c5 if
    ``num_classes=0``. Maps are a little smaller than their strides say, because not all convolutions are padded.

    aux_logits: hold the auxiliary head's variables; with ``train`` its logits [b, k] are the feature ``aux1``.
    transform_input: see ``googlenet.transform``; torchvision's weights want it.
    """

    aux_logits: bool = True
    transform_input: bool = False

    init_size: ClassVar[int] = 75
    torch_names: ClassVar[tuple[tuple[str, str], ...]] = ((r"(branch\w+)_(\d)(?=\.)", r"\1__\2"),)

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> tuple[Float[Array, "b k"], Maps]:
        features = {}

        def conv(x, name, width, window, strides=1, padding=0):
            init = initializers.normal(0.1)
            layer = ConvNormRelu(width, window, strides, padding, init, self.axis_name, name=f"Conv2d_{name}")
            return layer(x, train=train)

        def mixed(x, name, kind, *width):
            return kind(*width, self.axis_name, name=f"Mixed_{name}")(x, train=train)

        x = transform(images) if self.transform_input else images
        x = conv(conv(x, "1a_3x3", 32, 3, strides=2), "2a_3x3", 32, 3)
        features["c1"] = x = conv(x, "2b_3x3", 64, 3, padding=1)
        x = conv(ops.max_pool(x, window=3, strides=2), "3b_1x1", 80, 1)
        features["c2"] = x = conv(x, "4a_3x3", 192, 3)
        x = ops.max_pool(x, window=3, strides=2)
        for name, pool_features in (("5b", 32), ("5c", 64), ("5d", 64)):
            x = mixed(x, name, InceptionA, pool_features)
        features["c3"] = x
        x = mixed(x, "6a", InceptionB)
        for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x = mixed(x, name, InceptionC, width)
        features["c4"] = x
        if self.aux_logits and self.num_classes and (train or self.is_initializing()):
            head = AuxiliaryHead(self.num_classes, self.axis_name, name="AuxLogits")
            if train:
                features["aux1"] = head(x, train=True)
            else:
                head(jnp.zeros((1, 17, 17, x.shape[-1]), x.dtype))  # so that small images can initialise it
        x = mixed(x, "7a", InceptionD)
        for name in ("7b", "7c"):
            x = mixed(x, name, InceptionE)
        features["c5"] = x
        outputs = jnp.mean(x, axis=(1, 2))
        if self.num_classes:
            outputs = nn.Dropout(0.5, deterministic=not train)(outputs)
            outputs = Dense(self.num_classes, kernel_init=initializers.normal(0.1), name="fc")(outputs)
        return outputs, features


@register(task="classification")
def inception_v3(**options) -> InceptionV3:
    """Inception v3 with the auxiliary head: 27,161,264 parameters; 23,834,568 without."""
    return InceptionV3(**options)
