"""Dispatch by suffix and content, and safetensors."""

import argparse
import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxvision.weights.files import WRAPPERS, read_state_dict

ARRAYS = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1, -3], jnp.bfloat16),
    "n": np.array(5, np.int64),
}


@pytest.fixture
def checkpoint(tmp_path):
    save_file(ARRAYS, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_reads_safetensors(checkpoint):
    read = read_state_dict(str(checkpoint))
    assert read.keys() == ARRAYS.keys()
    for key, expected in ARRAYS.items():
        assert read[key].dtype == expected.dtype
        np.testing.assert_array_equal(read[key], expected)


@pytest.mark.parametrize("share", [0, 0.1, 0.9])
def test_truncated_safetensors(checkpoint, share):
    data = checkpoint.read_bytes()
    checkpoint.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated, damaged"):
        read_state_dict(checkpoint)


def test_content_must_agree_with_the_suffix(checkpoint):
    as_pickle = checkpoint.rename(checkpoint.with_suffix(".pth"))
    with pytest.raises(ValueError, match=r"looks like a safetensors file; rename"):
        read_state_dict(as_pickle)
    pickled = checkpoint.with_name("pickle.safetensors")
    pickled.write_bytes(b"\x80\x04}\x94.")
    with pytest.raises(ValueError, match=r"no safetensors file"):
        read_state_dict(pickled)


def test_unknown_suffix_and_missing_file(tmp_path):
    (tmp_path / "model.h5").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"model\.h5.*known suffixes"):
        read_state_dict(tmp_path / "model.h5")
    with pytest.raises(FileNotFoundError):
        read_state_dict(tmp_path / "none.pth")


WEIGHTS = {"w": ARRAYS["w"], "n": ARRAYS["n"]}


def is_read(path):
    read = read_state_dict(path)
    assert read.keys() == WEIGHTS.keys()
    for key, expected in WEIGHTS.items():
        assert read[key].dtype == expected.dtype
        np.testing.assert_array_equal(read[key], expected)


@pytest.mark.parametrize("name", ["model.pth.tar", "model.tar", "model.PTH", "model.Ckpt", "model", "epoch.12"])
def test_pickles_of_any_name(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps({"state_dict": WEIGHTS}))
    is_read(tmp_path / name)


@pytest.mark.parametrize("name", ["model", "model.SAFETENSORS", "model.12"])
def test_safetensors_of_any_name(tmp_path, name):
    save_file(WEIGHTS, tmp_path / name)
    is_read(tmp_path / name)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers(tmp_path, wrapper):
    (tmp_path / "model.pth").write_bytes(pickle.dumps({"epoch": 3, wrapper: WEIGHTS, "optimizer": {"lr": 0.1}}))
    is_read(tmp_path / "model.pth")
    (tmp_path / "model.pth").write_bytes(pickle.dumps({"checkpoint": 1, "model": {wrapper: WEIGHTS}}))
    is_read(tmp_path / "model.pth")


def test_the_weights_come_before_their_average(tmp_path):
    average = {key: 0 * value for key, value in WEIGHTS.items()}
    (tmp_path / "model.pth").write_bytes(pickle.dumps({"model_ema": average, "model": WEIGHTS}))
    is_read(tmp_path / "model.pth")


class Config(dict):
    """A dict of another program, as yacs has it, which says if it is built."""

    built = 0

    def __new__(cls, *args, **entries):
        cls.built += 1
        return super().__new__(cls)

    def __setstate__(self, state):
        type(self).built += 1

    def __setitem__(self, key, value):
        type(self).built += 1


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_other_programs_objects_beside_the_weights_are_not_built(tmp_path, protocol):
    """As torchvision's training script writes its options."""
    config = Config(lr=0.1)
    config.file = argparse.Namespace(names={"a", "b"}, kind=frozenset([1]), path=tmp_path, size=slice(1, 2))
    tree = {"model": WEIGHTS, "args": argparse.Namespace(lr=0.1, inner=[config]), "config": config}
    Config.built = 0
    (tmp_path / "model.pth").write_bytes(pickle.dumps(tree, protocol))
    is_read(tmp_path / "model.pth")
    assert Config.built == 0


def test_a_number_that_two_optimizers_share(tmp_path):
    betas = (0.9, 0.999)
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({**WEIGHTS, "groups": [betas, betas]}))
    is_read(tmp_path / "model.pkl")


def test_one_array_under_two_keys(tmp_path):
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"a": WEIGHTS["w"], "b": WEIGHTS["w"]}))
    read = read_state_dict(tmp_path / "model.pkl")
    np.testing.assert_array_equal(read["a"], WEIGHTS["w"])
    assert read["a"] is read["b"] and not read["a"].flags.writeable
