"""Other classes, other channels, heads that come and go: on a module made for it."""

import dataclasses
import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxvision.weights import load
from jaxvision.weights.load import load_weights
from jaxvision.weights.records import get_record


class Model(nn.Module):
    """A stem, a grouped convolution, an auxiliary head and a head of two layers."""

    num_classes: int = 3
    in_channels: int = 3
    aux_logits: bool = True
    groups: int = 2

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (1, 1), name="stem_0")(x)
        x = nn.Conv(4, (1, 1), feature_group_count=self.groups, name="grouped")(x).mean((1, 2))
        if not self.num_classes:
            return x
        if self.aux_logits and self.is_initializing():
            nn.Dense(self.num_classes, name="aux1")(x)
        return nn.Dense(self.num_classes, name="fc2")(nn.Dense(5, name="fc1")(x))


SHAPES = {
    "stem.0.weight": (4, 3, 1, 1),
    "stem.0.bias": (4,),
    "grouped.weight": (4, 2, 1, 1),
    "grouped.bias": (4,),
    "aux1.weight": (3, 4),
    "aux1.bias": (3,),
    "fc1.weight": (5, 4),
    "fc1.bias": (5,),
    "fc2.weight": (3, 5),
    "fc2.bias": (3,),
}


def state_dict(**changes):
    rng = np.random.default_rng(0)
    return {key: rng.normal(size=shape).astype(np.float32) for key, shape in SHAPES.items()} | changes


@pytest.fixture
def checkpoint(tmp_path):
    save_file(state_dict(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, logger="jaxvision")
    return caplog


def test_every_head_starts_anew_and_is_named(checkpoint, log):
    params = load_weights(Model(num_classes=7), checkpoint, num_classes=7)["params"]
    assert "not loaded: aux1.bias, aux1.weight, fc2.bias, fc2.weight start anew" in log.text
    assert params["aux1"]["kernel"].shape == (4, 7) and params["fc2"]["kernel"].shape == (5, 7)
    np.testing.assert_array_equal(params["fc1"]["kernel"], state_dict()["fc1.weight"].T)


@pytest.mark.parametrize(
    ("options", "absent"),
    [
        ({"num_classes": 0}, ["aux1.bias", "aux1.weight", "fc1.bias", "fc1.weight", "fc2.bias", "fc2.weight"]),
        ({"aux_logits": False}, ["aux1.bias", "aux1.weight"]),
    ],
)
def test_heads_that_the_model_does_not_have(checkpoint, log, options, absent):
    params = load_weights(Model(**options), checkpoint)["params"]
    assert f"not loaded: {', '.join(absent)}, heads" in log.text
    assert set(params) == {"stem_0", "grouped", "fc1", "fc2"} - ({"fc1", "fc2"} if "num_classes" in options else set())


def test_a_missing_head_is_an_error(tmp_path):
    state = {key: value for key, value in state_dict().items() if not key.startswith("aux1")}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing: aux1\.bias"):
        load_weights(Model(), tmp_path / "model.safetensors")


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_the_stem_is_adapted(checkpoint, log, channels):
    model = Model(in_channels=channels)
    kernel = load_weights(model, checkpoint, in_channels=channels)["params"]["stem_0"]["kernel"]
    assert f"stem.0.weight is adapted from 3 input channels to {channels}" in log.text
    original = state_dict()["stem.0.weight"][:, :, 0, 0].T
    if channels == 1:
        expected = [original[0] + original[1] + original[2]]
    else:
        expected = [original[channel % 3] * 3 / channels for channel in range(channels)]
    assert kernel.dtype == jnp.float32
    np.testing.assert_allclose(kernel[0, 0], expected, rtol=1e-6)


def test_a_grey_image_gives_what_it_gave_on_three_channels(checkpoint):
    grey = np.random.default_rng(1).normal(size=(1, 4, 4, 1)).astype(np.float32)
    one, three = Model(in_channels=1), Model()
    np.testing.assert_allclose(
        one.apply(load_weights(one, checkpoint, in_channels=1), grey),
        three.apply(load_weights(three, checkpoint), grey.repeat(3, axis=-1)),
        rtol=1e-5,
        atol=1e-6,
    )


def test_other_classes_and_channels_at_once(checkpoint):
    model = Model(num_classes=2, in_channels=4)
    variables = load_weights(model, checkpoint, num_classes=2, in_channels=4)
    assert model.apply(variables, np.ones((1, 2, 2, 4), np.float32)).shape == (1, 2)


def test_rgb_stays_as_it_is(checkpoint, log):
    kernel = load_weights(Model(), checkpoint, in_channels=3)["params"]["stem_0"]["kernel"]
    np.testing.assert_array_equal(kernel[0, 0], state_dict()["stem.0.weight"][:, :, 0, 0].T)
    assert not log.text


def test_channels_must_be_asked_for(checkpoint):
    with pytest.raises(ValueError, match=r"input channels of stem\.0 differs.*in_channels="):
        load_weights(Model(in_channels=4), checkpoint)
    with pytest.raises(ValueError, match="the module has in_channels=4, not 1"):
        load_weights(Model(in_channels=4), checkpoint, in_channels=1)


@pytest.mark.parametrize("layer", ["fc1", "aux1"])
def test_only_heads_start_anew(tmp_path, layer):
    """aux1 is one; fc1, in the middle, has one output more and nothing else differs."""
    changes = {f"{layer}.weight": np.ones((6, 4), np.float32), f"{layer}.bias": np.ones(6, np.float32)}
    save_file(state_dict(**changes), tmp_path / "model.safetensors")
    if layer == "fc1":
        with pytest.raises(ValueError, match=r"shape: fc1\.bias is \(6,\), expected \(5,\)"):
            load_weights(Model(num_classes=7), tmp_path / "model.safetensors", num_classes=7)
    else:
        params = load_weights(Model(num_classes=7), tmp_path / "model.safetensors", num_classes=7)["params"]
        assert params["aux1"]["kernel"].shape == (4, 7)


def test_other_groups_are_no_other_channels(checkpoint):
    with pytest.raises(ValueError, match=r"shape: grouped\.weight"):
        load_weights(Model(groups=1, in_channels=3), checkpoint, in_channels=3)


@pytest.fixture
def features_only(tmp_path, monkeypatch):
    """A record whose classifier was never trained, as vgg16's IMAGENET1K_FEATURES."""
    state = {key: np.full_like(value, np.nan) if "fc" in key else value for key, value in state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    monkeypatch.setattr(load, "_downloaded", lambda record: tmp_path / "model.safetensors")
    return dataclasses.replace(get_record("vgg16", "IMAGENET1K_FEATURES"), model="model")


def test_an_untrained_classifier_is_not_loaded(features_only, log):
    assert set(load_weights(Model(num_classes=0), features_only)["params"]) == {"stem_0", "grouped"}
    for classes in (3, 7):
        params = load_weights(Model(num_classes=classes), features_only, num_classes=classes)["params"]
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params))
        assert params["fc1"]["kernel"].shape == (4, 5) and params["fc2"]["kernel"].shape == (5, classes)
    assert "fc1.bias, fc1.weight" in log.text


def test_a_features_record_gives_features_by_name(features_only, monkeypatch):
    monkeypatch.setattr(load.registry, "get_model", lambda name, **options: Model(**options))
    monkeypatch.setattr(load, "get_record", lambda *name: features_only)
    assert set(load_weights("model", "IMAGENET1K_FEATURES")["params"]) == {"stem_0", "grouped"}
