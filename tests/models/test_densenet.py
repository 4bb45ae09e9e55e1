"""DenseNet: channels grow by what each layer adds, and published checkpoints of both spellings load."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from learning import assert_learns, random_variables

import jaxvision as jv
from jaxvision.models.densenet import DenseBlock, DenseNet

SMALL = DenseNet(4, (2, 1, 1, 1), 8, num_classes=3)


def test_learns():
    assert_learns(SMALL, jax.random.normal(jax.random.key(1), (4, 32, 32, 3)))


def test_channels_of_the_table():
    model = jv.get_model("densenet161")
    (_, features), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert [features[f"c{k}"].shape[1:] for k in range(1, 6)] == [
        (112, 112, 96), (56, 56, 384), (28, 28, 768), (14, 14, 2112), (7, 7, 2208)
    ]  # fmt: skip


def test_a_block_keeps_what_it_was_given_and_appends():
    """Layer l sees the input and all that the layers before it added: cutting the block short changes nothing."""
    x = jax.random.normal(jax.random.key(1), (1, 5, 5, 6))
    block = DenseBlock(3, 4, 4, None)
    variables = random_variables(block, x)
    whole = jax.jit(block.apply)(variables, x)
    assert whole.shape == (1, 5, 5, 6 + 3 * 4)
    np.testing.assert_array_equal(whole[..., :6], x)
    np.testing.assert_allclose(jax.jit(block.clone(layers=2).apply)(variables, x), whole[..., :14], rtol=1e-6)


def test_checkpoints_from_before_torch_forbade_dots():
    variables = random_variables(SMALL, jnp.zeros((1, 32, 32, 3)))
    state = jv.to_torch(SMALL, variables)
    old = {re.sub(r"(denselayer\d\.)(norm|conv)([12])", r"\1\2.\3", key): value for key, value in state.items()}
    assert "features.denseblock1.denselayer2.norm.1.running_mean" in old and len(old) == len(state)
    assert "features.norm5.weight" in old and "features.transition1.norm.weight" in old
    jax.tree.map(np.testing.assert_array_equal, jv.from_torch(SMALL, old), variables)
