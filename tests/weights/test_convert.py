"""The name rule and its strictness, on modules made for it; real models are in tests/parity."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvision import registry
from jaxvision.weights.convert import from_torch, head_paths, template, to_torch, torch_keys, torch_shapes


class Transposed(nn.Module):
    @nn.compact
    def __call__(self, x):
        kernel = self.param("transposed_kernel", nn.initializers.ones, (2, 2, x.shape[-1], 5))
        bias = self.param("bias", nn.initializers.zeros, (5,))
        return jnp.einsum("bhwi,klio->bhwo", x, kernel) + bias[None, None, None]


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 1), use_bias=False, name="conv1")(x)
        x = nn.BatchNorm(use_running_average=True, name="downsample_1")(x)
        return Transposed(name="conv5_mask")(x)


class Model(nn.Module):
    num_classes: int = 4

    init_size: ClassVar[int] = 8
    in_channels: int = 2
    torch_names: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^neck\.", "backbone.neck."),
        (r"\.inner_(\d+)", r".inner_\1_0"),
        (r"\.pool_(\d+)", r".pool__\1"),  # torch's key has this underscore
    )
    torch_legacy_names: ClassVar[tuple[tuple[str, str], ...]] = ((r"^old\.", "fc."),)

    @nn.compact
    def __call__(self, x):
        x = Block(name="layer1_0")(x)
        x = Neck(name="neck")(x)
        return nn.Dense(self.num_classes, name="fc")(x.mean((1, 2)))


class Neck(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Conv(6, (1, 1), feature_group_count=1, use_bias=False, name="pool_1_0")(
            nn.Conv(6, (1, 1), feature_group_count=1, name="inner_0")(x)
        )


SHAPES = {
    "layer1.0.conv1.weight": (6, 2, 3, 1),
    "layer1.0.downsample.1.weight": (6,),
    "layer1.0.downsample.1.bias": (6,),
    "layer1.0.downsample.1.running_mean": (6,),
    "layer1.0.downsample.1.running_var": (6,),
    "layer1.0.conv5_mask.weight": (6, 5, 2, 2),
    "layer1.0.conv5_mask.bias": (5,),
    "backbone.neck.inner.0.0.weight": (6, 5, 1, 1),
    "backbone.neck.inner.0.0.bias": (6,),
    "backbone.neck.pool_1.0.weight": (6, 6, 1, 1),
    "fc.weight": (4, 6),
    "fc.bias": (4,),
}


def state_dict(dtype=np.float32, **changes):
    rng = np.random.default_rng(0)
    arrays = {key: rng.normal(size=shape).astype(dtype) for key, shape in SHAPES.items()}
    return {**arrays, "layer1.0.downsample.1.num_batches_tracked": np.array(7), **changes}


def test_names_and_layouts():
    state = state_dict()
    variables = from_torch(Model(), state)
    params, stats = variables["params"], variables["batch_stats"]
    block = params["layer1_0"]
    np.testing.assert_array_equal(block["conv1"]["kernel"], state["layer1.0.conv1.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(
        block["conv5_mask"]["transposed_kernel"], state["layer1.0.conv5_mask.weight"].transpose(2, 3, 0, 1)
    )
    np.testing.assert_array_equal(params["fc"]["kernel"], state["fc.weight"].T)
    np.testing.assert_array_equal(block["downsample_1"]["scale"], state["layer1.0.downsample.1.weight"])
    np.testing.assert_array_equal(stats["layer1_0"]["downsample_1"]["var"], state["layer1.0.downsample.1.running_var"])
    np.testing.assert_array_equal(params["neck"]["inner_0"]["bias"], state["backbone.neck.inner.0.0.bias"])


def test_the_tree_is_the_one_init_makes():
    variables = from_torch(Model(), state_dict())
    initial = Model().init(jax.random.key(0), registry.example_images(Model()))
    assert jax.tree.structure(variables) == jax.tree.structure(initial)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), variables, initial)
    assert jax.tree.all(same)


def test_round_trip():
    state = state_dict()
    back = to_torch(Model(), from_torch(Model(), state))
    assert back.keys() == SHAPES.keys()
    for key in SHAPES:
        np.testing.assert_array_equal(back[key], state[key])


def test_to_torch_refuses_other_variables():
    with pytest.raises(ValueError, match="params/fc/kernel"):
        to_torch(Model(num_classes=5), from_torch(Model(), state_dict()))


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32, np.float64])
def test_floats_become_float32(dtype):
    leaves = jax.tree.leaves(from_torch(Model(), state_dict(dtype)))
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}


def test_float64_stays_under_x64(x64):
    state = state_dict(np.float64)
    variables = from_torch(Model(), state)
    assert variables["params"]["fc"]["bias"].dtype == np.float64
    np.testing.assert_array_equal(variables["params"]["fc"]["bias"], state["fc.bias"])
    assert from_torch(Model(), state_dict(np.float32))["params"]["fc"]["bias"].dtype == np.float32


def test_legacy_names():
    state = state_dict()
    legacy = {key.replace("fc.", "old."): value for key, value in state.items()}
    assert jax.tree.all(jax.tree.map(np.array_equal, from_torch(Model(), legacy), from_torch(Model(), state)))


def test_lists_every_missing_unused_and_misshapen_key():
    state = state_dict(
        extra=np.zeros(3), **{"fc.weight": np.zeros((9, 6)), "layer1.0.conv5_mask.bias": np.zeros((5, 1))}
    )
    del state["layer1.0.conv1.weight"], state["layer1.0.downsample.1.running_var"]
    with pytest.raises(ValueError) as error:
        from_torch(Model(), state)
    for line in [
        "missing: layer1.0.conv1.weight (for params/layer1_0/conv1/kernel)",
        "missing: layer1.0.downsample.1.running_var (for batch_stats/layer1_0/downsample_1/var)",
        "unused: extra",
        "shape: fc.weight is (6, 9), expected (6, 4) (for params/fc/kernel)",
        "shape: layer1.0.conv5_mask.bias is (5, 1), expected (5,)",
        "another model",
    ]:
        assert line in str(error.value)


def test_a_class_count_mismatch_names_layer_and_remedy():
    state = state_dict(**{"fc.weight": np.zeros((9, 6)), "fc.bias": np.zeros(9)})
    with pytest.raises(ValueError, match=r"number of outputs of fc differs.*num_classes="):
        from_torch(Model(), state)


def test_two_leaves_under_one_key():
    class Clash(nn.Module):
        torch_names: ClassVar[tuple[tuple[str, str], ...]] = (("^b$", "a"),)

        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="a")(x) + nn.Dense(2, name="b")(x)

    with pytest.raises(ValueError, match=r"two leaves.*a\.weight"):
        from_torch(Clash(), {})


def test_unknown_name():
    with pytest.raises(ValueError, match="no model named"):
        from_torch("resnet5", {})


@pytest.mark.parametrize(
    ("name", "options", "asked", "fits"),
    [
        ("resnet34", {}, "resnet18", "it would fit resnet34."),
        ("vgg16", {}, "vgg11", "it would fit vgg16 or vgg_d."),
        ("ssd_small", {"num_classes": 3}, "resnet18", "with its num_classes it would fit ssd_small."),
        ("resnet18", {"width": 32}, "resnet34", "None of the"),
    ],
)
def test_a_misfit_names_the_model_that_would_fit(name, options, asked, fits):
    shapes = torch_shapes(registry.get_model(name, **options))
    with pytest.raises(ValueError, match=fits):
        from_torch(asked, {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()})


def test_heads_are_what_depends_on_the_number_of_classes():
    model = registry.get_model("maskrcnn_small", num_classes=5)
    keys = torch_keys(model, template(model))
    layers = {keys[path].rpartition(".")[0] for path in head_paths(model)}
    assert layers == {
        "roi_heads.box_predictor.cls_score",
        "roi_heads.box_predictor.bbox_pred",
        "roi_heads.mask_predictor.mask_fcn_logits",
    }
    assert not head_paths(registry.get_model("resnet18", num_classes=0))
