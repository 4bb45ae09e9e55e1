"""GridNet: its layers, total dropout, and the networks that it becomes when connections are removed."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learning import random_variables

import jaxvision as jv
from jaxvision.layers.convolution import Conv, ConvTranspose
from jaxvision.layers.norm import BatchNorm
from jaxvision.models.gridnet import Connection, GridNet, TotalDropout, full_grid


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def shapes(model, height, width):
    return jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), jnp.zeros((1, height, width, 3))))


@pytest.mark.parametrize(
    ("options", "parameters"),
    [({}, 13_181_097), ({"num_classes": 33}, 13_189_749), ({"widths": (16, 32, 64, 126, 256)}, 13_073_253)],
)
def test_parameters(options, parameters):
    assert count(shapes(jv.get_model("gridnet", **options), 32, 32)[1]) == parameters


def test_streams_and_columns():
    (logits, features), variables = shapes(jv.get_model("gridnet"), 400, 400)
    assert logits.shape == (1, 400, 400, 19)
    streams = [(400, 16), (200, 32), (100, 64), (50, 128), (25, 256)]
    wanted = {f"n{s}_{c}": (1, side, side, width) for s, (side, width) in enumerate(streams, 1) for c in range(1, 7)}
    assert {name: node.shape for name, node in features.items()} == wanted
    names = set(variables["params"])
    assert names == {
        *("norm", "first_conv1", "first_conv2", "first_norm1", "first_norm2"),
        *("last_conv1", "last_conv2", "last_norm1", "last_norm2"),
        *(f"residual_{s}_{c}" for s in range(1, 6) for c in range(2, 7)),
        *(f"down_{s}_{c}" for s in range(2, 6) for c in range(1, 4)),
        *(f"up_{s}_{c}" for s in range(1, 5) for c in range(4, 7)),
    }
    transposed = {name for name in names if "transposed_kernel" in variables["params"][name].get("conv1", {})}
    assert transposed == {name for name in names if name.startswith("up_") or name[-2:] in ("_5", "_6")}


# Plain networks, which the grid becomes without some of its connections.


class Unit(nn.Module):
    """Batch norm, ReLU, convolution, twice."""

    width: int
    scale: float = 1  # of the output's sides

    @nn.compact
    def __call__(self, x, train):
        def conv(name, scale):
            if scale == 2:
                return ConvTranspose(self.width, 3, 2, padding=1, output_padding=1, name=name)
            return Conv(self.width, 3, int(1 / scale), padding=1, name=name)

        x = conv("conv1", self.scale)(nn.relu(BatchNorm(name="norm1")(x, train=train)))
        x = nn.relu(BatchNorm(name="norm2")(x, train=train))
        if self.scale == 2:
            return ConvTranspose(self.width, 3, 1, padding=1, name="conv2")(x)
        return conv("conv2", 1)(x)


class TransposedUnit(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(BatchNorm(name="norm1")(x, train=train))
        x = ConvTranspose(self.width, 3, padding=1, name="conv1")(x)
        x = nn.relu(BatchNorm(name="norm2")(x, train=train))
        return ConvTranspose(self.width, 3, padding=1, name="conv2")(x)


def first(images, width, train):
    x = BatchNorm(name="norm")(images, train=train)
    x = nn.relu(BatchNorm(name="first_norm1")(Conv(width, 3, padding=1, name="first_conv1")(x), train=train))
    return nn.relu(BatchNorm(name="first_norm2")(Conv(width, 3, padding=1, name="first_conv2")(x), train=train))


def last(x, classes, train):
    x = BatchNorm(name="last_norm1")(ConvTranspose(classes, 3, padding=1, name="last_conv1")(x), train=train)
    return BatchNorm(name="last_norm2")(
        ConvTranspose(classes, 3, padding=1, name="last_conv2")(nn.relu(x)), train=train
    )


class ConvDeconv(nn.Module):
    """A line: down twice, a residual unit at the bottom, up twice."""

    @nn.compact
    def __call__(self, images, train):
        x = first(images, 3, train)
        x = Unit(4, 1 / 2, name="encode1")(x, train)
        x = Unit(5, 1 / 2, name="encode2")(x, train)
        x = x + Unit(5, name="bottom")(x, train)
        x = Unit(4, 2, name="decode2")(x, train)
        x = Unit(3, 2, name="decode1")(x, train)
        return last(x, 4, train)


class SummingUNet(nn.Module):
    """Each level of the contracting path is added to what comes up to it."""

    @nn.compact
    def __call__(self, images, train):
        fine = first(images, 3, train)
        middle = Unit(4, 1 / 2, name="encode1")(fine, train)
        coarse = Unit(5, 1 / 2, name="encode2")(middle, train)
        coarse = coarse + Unit(5, name="bottom")(coarse, train)
        middle = middle + Unit(4, 2, name="decode2")(coarse, train)
        fine = fine + Unit(3, 2, name="decode1")(middle, train)
        return last(fine, 4, train)


class OneStream(nn.Module):
    """A residual network that never leaves the full resolution."""

    @nn.compact
    def __call__(self, images, train):
        x = first(images, 3, train)
        x = x + Unit(3, name="block1")(x, train)
        x = x + Unit(3, name="block2")(x, train)
        x = x + TransposedUnit(3, name="block3")(x, train)
        return last(x, 4, train)


class TwoStreams(nn.Module):
    """A stream at full resolution with nothing in it but sums, and one at half of it that does the work: it reads from
    the other and then writes to it (after Pohlen et al., arXiv:1611.08323)."""

    @nn.compact
    def __call__(self, images, train):
        full = first(images, 3, train)
        pooled = Unit(4, 1 / 2, name="read1")(full, train)
        pooled = pooled + Unit(4, name="work1")(pooled, train) + Unit(4, 1 / 2, name="read2")(full, train)
        pooled = pooled + Unit(4, name="work2")(pooled, train)
        full = full + Unit(3, 2, name="write1")(pooled, train)
        pooled = pooled + TransposedUnit(4, name="work3")(pooled, train)
        full = full + Unit(3, 2, name="write2")(pooled, train)
        return last(full, 4, train)


LINE = {
    "encode1": "down_2_1",
    "encode2": "down_3_1",
    "bottom": "residual_3_2",
    "decode2": "up_2_2",
    "decode1": "up_1_2",
}
REDUCTIONS = {  # the network, streams, columns, which connections are kept, and the grid's names of its parts
    "conv-deconv": (
        ConvDeconv(),
        ((3, 4, 5), 1, 1),
        lambda c: c.kind in ("down", "up") or c.stream == 3,
        LINE,
    ),
    "U-Net": (
        SummingUNet(),
        ((3, 4, 5), 1, 1),
        lambda c: c.kind != "residual" or c.stream == 3,
        LINE,
    ),
    "one stream": (
        OneStream(),
        ((3,), 2, 2),
        lambda c: True,
        {"block1": "residual_1_2", "block2": "residual_1_3", "block3": "residual_1_4"},
    ),
    "one stream of a grid": (
        OneStream(),
        ((3, 4, 5), 2, 2),
        lambda c: c.kind not in ("down", "up"),
        {"block1": "residual_1_2", "block2": "residual_1_3", "block3": "residual_1_4"},
    ),
    "two streams": (
        TwoStreams(),
        ((3, 4), 2, 2),
        lambda c: c.kind != "residual" or c.stream == 2,
        dict(
            read1="down_2_1",
            read2="down_2_2",
            write1="up_1_3",
            write2="up_1_4",
            work1="residual_2_2",
            work2="residual_2_3",
            work3="residual_2_4",
        ),
    ),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_a_grid_without_some_connections(name, x64):
    plain, (widths, down, up), keep, names = REDUCTIONS[name]
    kept = tuple(filter(keep, full_grid(len(widths), down, up)))
    grid = GridNet(widths=widths, down=down, up=up, connections=kept, drop_rate=0.0, num_classes=4)
    images = jax.random.normal(jax.random.key(1), (2, 8, 12, 3))
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), random_variables(grid, images))
    shared = {
        kind: {plain_name: variables[kind][names.get(plain_name, plain_name)] for plain_name in tree}
        for kind, tree in jax.eval_shape(lambda: plain.init(jax.random.key(0), images, False)).items()
    }
    assert count(shared) == count(variables)  # the grid has no other parameter
    run = {"mutable": ["batch_stats"]}
    (logits, _), moved = jax.jit(lambda v: grid.apply(v, images, train=True, **run))(variables)
    wanted, moved_too = jax.jit(lambda v: plain.apply(v, images, True, **run))(shared)
    assert float(wanted.std()) > 1e-3
    np.testing.assert_allclose(logits, wanted, rtol=1e-10, atol=1e-10)
    for plain_name, statistics in moved_too["batch_stats"].items():
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10),
            moved["batch_stats"][names.get(plain_name, plain_name)],
            statistics,
        )
    # With one connection more it is another network.
    if len(kept) < len(full_grid(len(widths), down, up)):
        full = grid.clone(connections=None)
        more = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), random_variables(full, images))
        both = {kind: {**more[kind], **variables[kind]} for kind in more}
        other, _ = jax.jit(lambda v: full.apply(v, images, train=True, **run))(both)[0]
        assert float(jnp.abs(other - wanted).max()) > 1e-3


def test_connections_on_no_path_are_left_out():
    kept = tuple(c for c in full_grid(3, 2, 2) if c not in (Connection("down", 3, 1), Connection("up", 2, 4)))
    used = GridNet(widths=(2, 3, 4), down=2, up=2, connections=kept, num_classes=2).used_connections()
    # Stream 3 now starts in column 2 and ends in column 3; the rest of it starts from nothing or leads nowhere.
    assert set(kept) - set(used) == {
        *(Connection(kind, 3, 2) for kind in ("identity", "residual")),
        *(Connection(kind, 3, 4) for kind in ("identity", "residual")),
    }
    assert list(used) == [c for c in full_grid(3, 2, 2) if c in used]
    no_up = GridNet(widths=(2, 3), down=2, up=0, num_classes=2)  # then nothing comes back from below
    assert {c.stream for c in no_up.used_connections()} == {1}


@pytest.mark.parametrize(
    ("connections", "message"),
    [
        ((Connection("up", 1, 1),), "the full grid has no"),
        ((Connection("residual", 1, 1),), "the full grid has no"),
        ((Connection("down", 2, 1),), "no path leads"),
        ((), "no path leads"),
    ],
)
def test_impossible_grids(connections, message):
    with pytest.raises(ValueError, match=message):
        GridNet(widths=(2, 3), down=1, up=1, connections=connections, num_classes=2).used_connections()


def test_total_dropout():
    """Everything or nothing, for the whole batch; unscaled."""
    x = jnp.arange(1.0, 25).reshape(2, 2, 3, 2)
    dropout = TotalDropout(0.3)

    def drop(key):
        return dropout.apply({}, x, train=True, rngs={"sample": key})

    results = jax.jit(jax.vmap(drop))(jax.random.split(jax.random.key(0), 1000))
    zero = (results == 0).all((1, 2, 3, 4))
    assert bool((zero | (results == x[None]).all((1, 2, 3, 4))).all())
    assert abs(float(zero.mean()) - 0.3) < 0.05  # 3.4 standard deviations
    np.testing.assert_array_equal(dropout.apply({}, x), x)
    gradient = jax.grad(lambda x, key: dropout.apply({}, x, train=True, rngs={"sample": key}).sum())
    for seed in range(5):
        assert bool((gradient(x, jax.random.key(seed)) == (drop(jax.random.key(seed)) != 0)).all())


def test_each_branch_is_dropped_apart():
    """With every branch dropped, training sees the grid without them; at half the rate, 2 ** branches sub-grids."""
    grid = GridNet(widths=(3, 4), down=2, up=1, drop_rate=0.5, num_classes=2)
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    variables = random_variables(grid, images)

    def logits(model, key):
        return model.apply(variables, images, train=True, rngs={"sample": key}, mutable=["batch_stats"])[0][0]

    keys = jax.random.split(jax.random.key(0), 200)
    found = np.asarray(jax.jit(jax.vmap(lambda key: logits(grid, key)))(keys)).reshape(200, -1)
    kinds = np.unique(found.round(2), axis=0)
    assert 12 <= len(kinds) <= 16  # four branches; those at the end are not told apart by batch norm alone
    bare = grid.clone(connections=tuple(c for c in full_grid(2, 2, 1) if c.kind != "residual"))
    always = jax.jit(lambda key: logits(grid.clone(drop_rate=1.0), key))(keys[0])
    np.testing.assert_allclose(always, jax.jit(lambda key: logits(bare, key))(keys[0]), rtol=1e-4, atol=1e-4)


def test_logits_are_normalised():
    grid = GridNet(widths=(3, 4), down=1, up=1, drop_rate=0.0, num_classes=3)
    images = 50 + 20 * jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    variables = random_variables(grid, images)
    norm = variables["params"]["last_norm2"]
    norm["scale"], norm["bias"] = np.array([1.0, 2, 3], np.float32), np.array([0.0, 5, -5], np.float32)
    apply = jax.jit(lambda v: grid.apply(v, images, train=True, mutable=["batch_stats"]))
    (logits, _), _ = apply(variables)
    np.testing.assert_allclose(logits.mean((0, 1, 2)), [0, 5, -5], atol=1e-4)
    np.testing.assert_allclose(logits.std((0, 1, 2)), [1, 2, 3], rtol=1e-2)


def test_images_of_any_size(x64):
    """Mirrored at the right and the bottom to whole cells of the coarsest stream, here 4 pixels."""
    grid = GridNet(widths=(3, 4, 4), down=1, up=1, num_classes=2)
    images = jax.random.normal(jax.random.key(1), (1, 9, 14, 3))
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), random_variables(grid, images))
    apply = jax.jit(grid.apply)
    logits, features = apply(variables, images)
    assert logits.shape == (1, 9, 14, 2) and features["n1_1"].shape == (1, 12, 16, 3)
    mirrored = np.pad(images, ((0, 0), (0, 3), (0, 2), (0, 0)), mode="reflect")
    np.testing.assert_allclose(logits, apply(variables, mirrored)[0][:, :9, :14], rtol=1e-10, atol=1e-10)
    for size in ((1, 1), (128, 96), (37, 50)):
        small = jv.get_model("gridnet_small", num_classes=5)
        assert shapes(small, *size)[0][0].shape == (1, *size, 5)
    assert hash(small) == hash(small.clone())


def test_folded_batch_norm():
    """A convolution's output that several nodes read keeps its value."""
    grid = GridNet(widths=(3, 4, 5), down=1, up=1, num_classes=2)
    images = jax.random.normal(jax.random.key(1), (1, 8, 8, 3))
    variables = random_variables(grid, images)
    folded = jv.fold_batch_norm(grid, variables)
    assert {name for name, layer in folded["params"].items() if "norm" in name and "scale" not in layer} == {
        *("first_norm1", "first_norm2")
    }
    apply = jax.jit(grid.apply)
    np.testing.assert_allclose(apply(folded, images)[0], apply(variables, images)[0], rtol=1e-4, atol=1e-4)


def test_learns():
    """Every parameter gets a gradient, every running statistic moves."""
    grid = GridNet(widths=(3, 4), down=2, up=1, drop_rate=0.0, num_classes=3)
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    variables = random_variables(grid, images)

    def loss(params):
        (logits, _), updates = grid.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return jnp.sin(2 * logits + jnp.arange(3.0)[None, None, None]).sum(), updates

    grads, updates = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    silent = [path for path, leaf in jax.tree.leaves_with_path(grads) if not jnp.any(leaf != 0)]
    assert not silent, f"no gradient reaches {[jax.tree_util.keystr(path) for path in silent]}"
    still = jax.tree.map(np.array_equal, variables["batch_stats"], updates["batch_stats"])
    assert not any(jax.tree.leaves(still))
