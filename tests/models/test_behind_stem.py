import jax
import jax.numpy as jnp
import numpy as np

from jaxvision import ops
from jaxvision.layers.segmenter import behind_stem
from jaxvision.models.unet import UNet

TINY = UNet(num_classes=3, widths=(4, 6), padding="same", batch_norm=True, dropout=0.0)


def test_stem_network_and_enlarged_logits():
    """Strided convolutions, the network on their map, its logits enlarged; odd sides are rounded up."""
    model = behind_stem(TINY, (5, 7))
    images = jax.random.normal(jax.random.key(1), (2, 21, 34, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    logits, features = model.apply(variables, images)
    assert logits.shape == (2, 21, 34, 3) and features["s1"].shape == (2, 11, 17, 5)
    assert features["s2"].shape == (2, 6, 9, 7) and features["c0"].shape[1:3] == (6, 10)  # even for the pool
    network = {collection: tree["network"] for collection, tree in variables.items()}
    inner = TINY.clone(in_channels=7).apply(network, features["s2"])[0]
    np.testing.assert_allclose(logits, ops.resize(inner, size=(21, 34)), rtol=1e-5, atol=1e-6)
    first = ops.conv(images, variables["params"]["stem1"]["kernel"], strides=2, padding=1)
    np.testing.assert_allclose(features["s1"], jnp.maximum(first / np.sqrt(1 + 1e-5), 0), rtol=1e-4, atol=1e-5)


def test_statistics_move_in_training():
    model = behind_stem(TINY, (5,))
    images = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    _, updates = model.apply(variables, images, train=True, mutable=["batch_stats"])
    moved = jax.tree.map(lambda old, new: (old != new).any(), variables["batch_stats"], updates["batch_stats"])
    assert {"stem1_bn", "network"} == moved.keys() and all(jax.tree.leaves(moved))
