"""Variables to a file and back."""

import flax.linen as nn
import jax
import numpy as np
import pytest
import safetensors.numpy

import jaxvision as jv


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(5, name="fc")(nn.Conv(4, (3, 2), name="stem_0")(x).mean((1, 2)))


@pytest.fixture
def variables():
    return Model().init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))


def test_round_trip(tmp_path, variables):
    for path in (tmp_path / "model.safetensors", str(tmp_path / "model.safetensors")):
        jv.save_weights(path, Model(), variables)
        back = jv.load_weights(Model(), path)
        assert jax.tree.all(jax.tree.map(np.array_equal, back, variables))
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_file_holds_torchs_keys_and_layouts(tmp_path, variables):
    jv.save_weights(tmp_path / "model.safetensors", Model(), variables)
    arrays = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert {key: value.shape for key, value in arrays.items()} == {
        "stem.0.weight": (4, 3, 3, 2),
        "stem.0.bias": (4,),
        "fc.weight": (5, 4),
        "fc.bias": (5,),
    }
    np.testing.assert_array_equal(arrays["fc.weight"], variables["params"]["fc"]["kernel"].T)


def test_takes_a_name(tmp_path):
    zeros = jax.eval_shape(jv.get_model("mnasnet0_5").init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), zeros)
    jv.save_weights(tmp_path / "model.safetensors", "mnasnet0_5", zeros)
    assert jax.tree.structure(jv.load_weights("mnasnet0_5", tmp_path / "model.safetensors")) == jax.tree.structure(
        zeros
    )


@pytest.mark.parametrize("name", ["model.pth", "model", "model.h5"])
def test_other_files_are_torchs_to_write(tmp_path, variables, name):
    with pytest.raises(ValueError, match=rf"{name}: .*safetensors only.*torch\.save"):
        jv.save_weights(tmp_path / name, Model(), variables)


def test_a_failure_leaves_the_old_file(tmp_path, variables, monkeypatch):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="no variables of Model"):
        jv.save_weights(path, Model(), {"params": {}})

    def full(source, target):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space left"):
        jv.save_weights(path, Model(), variables)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_missing_folder(tmp_path, variables):
    with pytest.raises(FileNotFoundError):
        jv.save_weights(tmp_path / "none" / "model.safetensors", Model(), variables)
