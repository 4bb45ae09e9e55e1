import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxvision.layers.convolution import Conv, ConvTranspose, Dense
from jaxvision.layers.fpn import FPN, enlarge_nearest
from jaxvision.layers.norm import BatchNorm
from jaxvision.layers.roi_heads import BoxHead, MaskHead
from jaxvision.ops import conv, conv_transpose


def images(seed=0, shape=(4, 5, 6, 3)):
    return jax.random.normal(jax.random.key(seed), shape) * 2 + 1


def test_batch_norm_is_torchs():
    """torch normalises by the biased variance and remembers the unbiased one."""
    x, norm = images(), BatchNorm()
    variables = norm.init(jax.random.key(0), x)
    y, updates = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    values = np.asarray(x).reshape(-1, 3)
    np.testing.assert_allclose(y.reshape(-1, 3), (values - values.mean(0)) / np.sqrt(values.var(0) + 1e-5), atol=1e-5)
    stats = updates["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * values.var(0, ddof=1), rtol=1e-5)
    again = norm.apply({**variables, **updates}, x)
    mean, var = (np.asarray(stats[name]) for name in ("mean", "var"))
    np.testing.assert_allclose(again, (np.asarray(x) - mean) / np.sqrt(var + 1e-5), atol=1e-5)


def test_frozen_batch_norm_is_constant():
    x, norm = images(), BatchNorm(frozen=True)
    variables = norm.init(jax.random.key(0), x)
    y, updates = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y, x, rtol=1e-4)
    assert not jax.tree.leaves(updates) or all(
        bool((a == b).all()) for a, b in zip(jax.tree.leaves(updates), jax.tree.leaves(variables["batch_stats"]))
    )
    grads = jax.grad(lambda params: norm.apply({**variables, "params": params}, x, train=True).sum())(
        variables["params"]
    )
    assert not any(bool(leaf.any()) for leaf in jax.tree.leaves(grads))


def test_batch_norm_keeps_its_digits_far_from_zero():
    """A channel whose mean is large beside its spread, where the mean square less the squared mean has no digits."""
    x, norm = images() + 3000, BatchNorm()
    variables = norm.init(jax.random.key(0), x)
    y, _ = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    values = np.asarray(x, np.float64).reshape(-1, 3)
    np.testing.assert_allclose(y.reshape(-1, 3), (values - values.mean(0)) / values.std(0), atol=1e-3)


def test_batch_norm_derivatives(x64):
    x, norm = images(shape=(2, 2, 3, 2)).astype(jnp.float64), BatchNorm()
    variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), norm.init(jax.random.key(0), x))

    def normalised(params, x):
        return norm.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])[0]

    check_grads(normalised, (variables["params"], x), order=2, modes=["fwd", "rev"])


def test_layers_compute_in_the_dtype_of_their_input():
    """float32 parameters and running statistics, whatever the images are."""
    x = images(shape=(2, 8, 8, 3))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = BatchNorm()(Conv(4, 3)(x), train=True)
            return x, ConvTranspose(5, 2, strides=2)(x), Dense(6)(x)

    variables = Net().init(jax.random.key(0), x)
    exact, _ = Net().apply(variables, x, mutable=["batch_stats"])
    outputs, updates = Net().apply(variables, x.astype(jnp.bfloat16), mutable=["batch_stats"])
    for output, wanted in zip(outputs, exact):
        assert output.dtype == jnp.bfloat16 and wanted.dtype == jnp.float32
        np.testing.assert_allclose(output.astype(jnp.float32), wanted, atol=0.1)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((variables, updates)))


def test_batch_norm_over_an_axis_is_the_whole_batch():
    x, norm = images(), BatchNorm()
    variables = norm.init(jax.random.key(0), x)
    y, updates = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    synced = BatchNorm(axis_name="data")
    parts, stats = jax.vmap(
        lambda part: synced.apply(variables, part, train=True, mutable=["batch_stats"]), axis_name="data"
    )(x.reshape(2, 2, 5, 6, 3))
    np.testing.assert_allclose(parts.reshape(x.shape), y, atol=1e-5)
    np.testing.assert_allclose(stats["batch_stats"]["var"][1], updates["batch_stats"]["var"], rtol=1e-5)
    synced.apply(variables, x)  # outside the axis inference needs none


@pytest.mark.parametrize("size", [(8, 12), (7, 9), (4, 6), (3, 5)])
def test_enlarge_nearest(size):
    x = images()[:, :4, :6]
    want = np.asarray(x)[:, np.arange(size[0]) * 4 // size[0]][:, :, np.arange(size[1]) * 6 // size[1]]
    np.testing.assert_array_equal(enlarge_nearest(x, size), want)


def test_fpn_names_and_sizes():
    features = {f"c{level}": jnp.ones((1, 64 >> level, 96 >> level, level)) for level in (2, 3, 4)}
    pyramid, _ = FPN(("c2", "c3", "c4"), channels=8).init_with_output(jax.random.key(0), features)
    assert {name: level.shape for name, level in pyramid.items()} == {
        "p2": (1, 16, 24, 8), "p3": (1, 8, 12, 8), "p4": (1, 4, 6, 8), "p5": (1, 2, 3, 8),
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"wants \['c5'\]"):
        FPN(("c4", "c5")).init(jax.random.key(0), features)


@pytest.mark.parametrize("coarser", ["from_p", "from_c"])
def test_coarser_levels_by_convolution(coarser):
    features = {f"c{level}": images(level, (1, 64 >> level, 96 >> level, level)) for level in (3, 4)}
    neck = FPN(("c3", "c4"), channels=8, coarser=coarser, norm=BatchNorm(epsilon=0.0))
    pyramid, variables = neck.init_with_output(jax.random.key(0), features)
    params = variables["params"]
    source = pyramid["p4"] if coarser == "from_p" else features["c4"]
    p5 = conv(source, params["p5"]["kernel"], strides=2, padding=1)
    np.testing.assert_allclose(pyramid["p5"], p5, atol=1e-5)
    p6 = conv(nn.relu(p5), params["p6"]["kernel"], strides=2, padding=1)
    np.testing.assert_allclose(pyramid["p6"], p6, atol=1e-5)
    assert params["inner_blocks_0_0"].keys() == {"kernel"}
    _, moved = neck.apply(variables, features, train=True, mutable=["batch_stats"])
    assert set(moved["batch_stats"]) == {f"{kind}_blocks_{index}_1" for kind in ("inner", "layer") for index in (0, 1)}


def test_box_head_flattens_in_torch_order():
    head = BoxHead(num_classes=2, hidden=4)
    features = images(shape=(5, 7, 7, 3))
    variables = head.init(jax.random.key(0), features)
    fc6 = variables["params"]["fc6"]["kernel"]
    want = np.asarray(features).transpose(0, 3, 1, 2).reshape(5, -1) @ fc6
    seen = {}

    def spy(next_function, args, kwargs, context):
        out = next_function(*args, **kwargs)
        seen[context.module.name] = out
        return out

    with nn.intercept_methods(spy):
        logits, offsets = head.apply(variables, features)
    np.testing.assert_allclose(seen["fc6"], want, atol=1e-5)
    assert logits.shape == (5, 3) and offsets.shape == (5, 3, 4)


def test_mask_head_computes_the_asked_class_only():
    head, features = MaskHead(num_classes=2, channels=4, num_convs=1, pool_size=3), images(shape=(3, 3, 3, 5))
    classes = jnp.array([1, 2, 1])
    logits, variables = head.init_with_output(jax.random.key(0), features, classes)
    assert logits.shape == (3, 6, 6)
    params = variables["params"]
    x = nn.relu(conv(features, params["conv_0"]["kernel"], padding=1))
    x = nn.relu(conv_transpose(x, params["conv5_mask"]["transposed_kernel"], strides=2))
    every = conv(x, params["mask_fcn_logits"]["kernel"])
    np.testing.assert_allclose(logits, jnp.stack([every[i, ..., k] for i, k in enumerate(classes)]), atol=1e-5)
