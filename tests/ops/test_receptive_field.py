"""Receptive fields: against the support of a Jacobian, against the published recursion, and of real networks."""

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxvision as jv
from jaxvision import ops
from jaxvision.ops.receptive_field import effective_receptive_field, receptive_field

LENGTH = 256

window, dilation = st.integers(1, 4), st.integers(1, 3)
STRIDING = st.one_of(  # kind, window, strides, ...
    st.tuples(st.just("conv"), window, st.integers(1, 2), st.integers(0, 2), dilation, st.sampled_from([1, 2])),
    st.tuples(st.just("max"), window, st.integers(1, 2), st.booleans()),
    st.tuples(st.just("mean"), window, st.integers(1, 2), st.booleans()),
)
ENLARGING = st.one_of(
    st.tuples(st.just("transposed"), st.integers(2, 3)), st.tuples(st.just("repeat")), st.tuples(st.just("resize"))
)
KEEPING = st.one_of(
    st.tuples(st.just("activation")),
    st.tuples(st.just("branch"), window, st.just(1), st.integers(0, 2), dilation, st.just(1)),
)
NETS = st.tuples(st.lists(STRIDING, max_size=2), st.lists(KEEPING, max_size=2), st.lists(ENLARGING, max_size=2))


def layer(x, kind, *options, axis, pool):
    """One layer along one axis of the image; all weights are positive."""

    def along(value, other):
        return (value, other) if axis == 1 else (other, value)

    if kind == "conv":
        size, strides, padding, dilation, groups = options
        kernel = jnp.full((*along(size, 1), 2 // groups, 2), 1 / size)
        windowed = dict(strides=along(strides, 1), padding=along(padding, 0), dilation=along(dilation, 1))
        return ops.conv(x, kernel, groups=groups, **windowed)
    if kind in ("max", "mean"):
        size, strides, padded = options
        pool = ops.avg_pool if kind == "mean" else pool
        windowed = dict(strides=along(strides, 1), padding=along(size // 2 if padded else 0, 0))
        return pool(x, window=along(size, 1), **windowed)
    if kind == "transposed":
        kernel = jnp.full((*along(options[0], 1), 2, 2), 1.0)
        return ops.conv_transpose(x, kernel, strides=along(2, 1), padding=along(1, 0))
    if kind == "repeat":
        return jnp.repeat(x, 2, axis=axis)
    if kind == "resize":
        return ops.resize(x, size=along(2 * x.shape[axis], 1))
    if kind == "activation":
        return jax.nn.sigmoid(x)
    assert kind == "branch"
    branch = layer(x, "conv", *options, axis=axis, pool=pool)
    common = min(x.shape[axis], branch.shape[axis])  # cut at the bottom, then side by side
    x, branch = (jax.lax.slice_in_dim(part, 0, common, axis=axis) for part in (x, branch))
    return ops.conv(jnp.concatenate([x, branch], -1), jnp.full((1, 1, 4, 2), 0.5))


def network(layers, *, axis, pool):
    def function(images):
        for kind, *options in layers:
            images = layer(images, kind, *options, axis=axis, pool=pool)
        return images

    return function


def measured(function, axis):
    """(size, stride, centre) of the units in the middle, from the pixels that have a gradient. Enlarging makes at most
    four neighbours differ."""
    shape = (1, LENGTH, 1, 2) if axis == 1 else (1, 1, LENGTH, 2)
    line = jax.eval_shape(function, jax.ShapeDtypeStruct(shape, jnp.float32)).shape[axis]
    units = line // 2 - 4 + np.arange(8)
    jacobian = jax.jit(jax.jacrev(lambda x: function(x).sum(-1).reshape(line)[units]))(jnp.ones(shape))
    sees = np.asarray(jacobian).sum(-1).reshape(8, LENGTH) > 0
    first, last = sees.argmax(1), LENGTH - 1 - sees[:, ::-1].argmax(1)
    centres = (first + last + 1) / 2
    stride = (centres[4] - centres[0]) / 4
    return (last - first + 1).max(), stride, (centres - stride * units).mean()


@given(layers=NETS, axis=st.sampled_from([1, 2]))
@settings(max_examples=25, deadline=None)
def test_equals_the_support_of_the_jacobian(layers, axis):
    layers = [kind for part in layers for kind in part]
    shape = (1, LENGTH, 1, 2) if axis == 1 else (1, 1, LENGTH, 2)
    maps = receptive_field(lambda x: {"map": network(layers, axis=axis, pool=ops.max_pool)(x)}, shape)
    along, across = ([part[i] for part in maps["map"]] for i in (axis - 1, 2 - axis))
    assert along == list(measured(network(layers, axis=axis, pool=ops.avg_pool), axis))
    assert across == [1, 0, 0.5]


def conv(x, size, strides=1, padding=0, dilation=1):
    kernel = jnp.ones((size, size, x.shape[-1], 1))
    return ops.conv(x, kernel, strides=strides, padding=padding, dilation=dilation)


def unet(x):
    """U-Net's way down to the bottleneck (arXiv:1505.04597, figure 1)."""
    for _ in range(4):
        x = ops.max_pool(conv(conv(x, 3), 3), window=2)
    return conv(conv(x, 3), 3)


def dilated(x):
    """The front end of arXiv:1511.07122 (VGG-16 without its last two pools) and its basic context module."""
    for convolutions in (2, 2, 3):
        for _ in range(convolutions):
            x = conv(x, 3)
        x = ops.max_pool(x, window=2)
    for size, dilation in [(3, 1)] * 3 + [(3, 2)] * 3 + [(7, 4), (1, 1)]:
        x = conv(x, size, dilation=dilation)
    front = x
    for dilation in (1, 1, 2, 4, 8, 16, 1):
        x = conv(x, 3, dilation=dilation)
    return {"front": front, "context": x}


def test_published_fields_without_padding():
    fields = receptive_field(lambda x: {"unet": unet(x), **dilated(x)}, (1, 1200, 1200, 3))
    assert {name: (*field.size, *field.stride) for name, field in fields.items()} == {
        "unet": (140, 140, 16, 16),
        "front": (380, 380, 8, 8),
        "context": (908, 908, 8, 8),
    }


# By the recursion of fields and strides, layer by layer (r += (k - 1) d j, then j *= s): the map, its field, stride.
NETWORKS = {
    "alexnet": {"c4": (163, 16)},
    "vgg11": {"c4": (134, 16)},
    "vgg13": {"c4": (140, 16)},
    "vgg16": {"c0": (5, 1), "c1": (14, 2), "c2": (40, 4), "c3": (92, 8), "c4": (196, 16)},
    "vgg19": {"c4": (252, 16)},
    "resnet18": {"c2": (43, 4), "c3": (99, 8), "c4": (211, 16), "c5": (435, 32)},
    "resnet34": {"c2": (59, 4), "c3": (179, 8), "c4": (547, 16), "c5": (899, 32)},
    "resnet50": {"c1": (7, 2), "c2": (35, 4), "c3": (91, 8), "c4": (267, 16), "c5": (427, 32)},
    "resnet50_paper": {"c2": (35, 4), "c3": (99, 8), "c4": (291, 16), "c5": (483, 32)},
    "resnet101": {"c4": (811, 16), "c5": (971, 32)},
    "resnet152": {"c3": (155, 8), "c4": (1291, 16), "c5": (1451, 32)},
}
DILATED = {"c3": (91, 8), "c4": (267, 8), "c5": (427, 8)}  # dilation keeps the field of resnet50


def fields_of(name, **options):
    model = jv.get_model(name, num_classes=0, **options)
    features = lambda x: model.init_with_output(jax.random.key(0), x)[0][1]  # noqa: E731
    return receptive_field(features, (1, 2048, 2048, 3))


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [(name, {}, maps) for name, maps in NETWORKS.items() if name in jv.list_models()]
    + [("resnet50", {"dilate": (False, True, True)}, DILATED)],
)
def test_published_fields_of_models(name, options, expected):
    fields = fields_of(name, **options)
    for key, (size, stride) in expected.items():
        assert fields[key][:2] == ((size, size), (stride, stride))


def test_centres():
    """Symmetric padding keeps centres on those of pixels; without padding they move inwards."""
    assert {field.centre for field in fields_of("resnet18").values()} == {(0.5, 0.5)}
    assert fields_of("squeezenet1_1")["c2"].centre == (3.5, 3.5)  # 3/2, then 3/2: 1.5 + 1 * 2


def test_global_maps_see_the_whole_image():
    def function(x):
        mean = x.mean((1, 2), keepdims=True)
        return {"mean": mean, "context": jnp.concatenate([x, jnp.broadcast_to(mean, x.shape)], -1)}

    for field in receptive_field(function, (1, 30, 41, 3)).values():
        assert field == ((30, 41), (0, 0), (15, 20.5))


def test_split_and_joined_axes_keep_their_order():
    def function(x):
        b, h, w, c = x.shape
        blocks = x.reshape(b, h // 4, 4, w, c).mean(2)
        flat = x.reshape(b * h * w, c).reshape(b, h, w, c)
        space_to_depth = (
            x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, -1)
        )
        return {"blocks": blocks, "flat": flat, "space_to_depth": space_to_depth, "reversed": x[:, ::-1]}

    fields = receptive_field(function, (2, 16, 24, 3))
    assert fields["blocks"] == ((4, 1), (4, 1), (2, 0.5))
    assert fields["flat"] == ((1, 1), (1, 1), (0.5, 0.5))
    assert fields["space_to_depth"] == ((2, 2), (2, 2), (1, 1))
    assert fields["reversed"] == ((1, 1), (-1, 1), (15.5, 0.5))


def test_zero_padding_by_concatenation_is_a_border():
    def function(x):
        zeros = jnp.zeros((1, 4, *x.shape[2:]))
        x = jnp.concatenate([zeros, x, zeros], 1)
        return {"map": conv(x, 3, dilation=4)}

    assert receptive_field(function, (1, 16, 16, 1))["map"].size == (9, 9)
    with pytest.raises(ValueError, match=r"'map' see an image of 5 pixels free of its borders"):
        receptive_field(function, (1, 5, 16, 1))


def test_bad_functions_are_named():
    with pytest.raises(NotImplementedError, match="no rule for 'gather'"):
        receptive_field(lambda x: {"map": x[:, jnp.array([0, 1])]}, (1, 8, 8, 3))
    with pytest.raises(ValueError, match="maps \\[b, h, w, c\\]"):
        receptive_field(lambda x: {"logits": x.mean((1, 2))}, (1, 8, 8, 3))
    with pytest.raises(ValueError, match="does not depend"):
        receptive_field(lambda x: {"map": jnp.zeros((1, 8, 8, 3))}, (1, 8, 8, 3))


def test_effective_field_of_boxes_is_a_triangle():
    """Two boxes of three pixels: each of the unit's nine by nine paths counts once."""

    def boxes(x):
        return conv(conv(x, 3), 3)

    images = jax.random.normal(jax.random.key(0), (2, 11, 12, 3))
    triangle = np.array([1, 2, 3, 2, 1])
    expected = np.pad(np.outer(triangle, triangle), ((3, 3), (4, 3)))
    np.testing.assert_array_equal(effective_receptive_field(boxes, images), expected)


def test_effective_field_is_the_mean_of_absolute_gradients(x64):
    images = jax.random.normal(jax.random.key(1), (3, 7, 7, 2), float)

    def function(x):
        return conv(jnp.tanh(conv(0.05 * x * x, 3)), 3, strides=2)

    def unit(image):
        return function(image[None])[0, 1, 1, 0]

    expected = np.mean([np.abs(jax.grad(unit)(image)) for image in images], (0, 3))
    found = jax.jit(effective_receptive_field, static_argnums=0)(function, images)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert found.dtype == expected.dtype
    jax.test_util.check_grads(lambda x: effective_receptive_field(function, x), (images,), order=1)


def test_effective_field_lies_inside_the_receptive_field():
    model = jv.get_model("squeezenet1_1", num_classes=0)
    images = jax.random.normal(jax.random.key(2), (1, 64, 64, 3))
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), shapes)

    @jax.jit
    def measure(images):
        return effective_receptive_field(lambda x: model.apply(variables, x)[1]["c2"], images)

    found = measure(images)
    size, stride, centre = fields_of("squeezenet1_1")["c2"]
    first = int(centre[0] + 7 * stride[0] - size[0] / 2)  # c2 has 15 x 15 units
    inside = found[first : first + size[0], first : first + size[1]]
    assert float(inside.sum()) == pytest.approx(float(found.sum()), rel=1e-6)
    assert (inside[0] > 0).any() and (inside[-1] > 0).any()
