"""Dispatch by suffix and content, and safetensors."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxvision.weights.files import read_state_dict

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
