"""Files made by real torch (``make_files.py``), and hostile or damaged ones made here."""

import builtins
import io
import os
import pickle
import pickletools
import zipfile
from pathlib import Path

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxvision.weights.files import read_state_dict
from jaxvision.weights.torch_pickle import LEGACY_MAGIC, UnsafePickleError

FILES = Path(__file__).parent / "files"
BASE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
EXPECTED = {
    "plain": BASE,
    "transposed": BASE.transpose(2, 0, 1),
    "slice": BASE[1, 1:, ::2],
    "expanded": np.full((3, 2), 1.5, np.float32),
    "scalar": np.float32(2.5),
    "empty": np.zeros((0, 3), np.float32),
    "half": np.array([0.5, -2.0], np.float16),
    "bfloat16": np.array([1.0, -3.0], jnp.bfloat16),
    "double": np.array([1 / 3]),
    "long": np.array([2**40, -1]),
    "bool": np.array([True, False]),
    "parameter": np.array([7.0], np.float32),
}


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_reads_what_torch_wrote(layout):
    arrays = read_state_dict(FILES / f"{layout}.pth")
    assert arrays.keys() == EXPECTED.keys()
    for key, expected in EXPECTED.items():
        assert arrays[key].dtype == expected.dtype and arrays[key].shape == expected.shape, key
        np.testing.assert_array_equal(arrays[key], expected)


def test_unwraps_nested_checkpoints():
    keys = {f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    assert read_state_dict(FILES / "nested.pth").keys() == {"0.weight", "0.bias"} | keys
    assert read_state_dict(FILES / "lightning.pt")["a"].tolist() == [1, 1]


def test_refuses_a_pickled_module():
    with pytest.raises(UnsafePickleError, match=r"module\.pth asks for 'torch\.nn.*save only model.state_dict"):
        read_state_dict(FILES / "module.pth")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_reads_pickled_numpy(tmp_path, protocol):
    path = tmp_path / "model_final.pkl"
    arrays = {
        "a": BASE,
        "f": np.asfortranarray(BASE[0]),
        "big": np.array([1, 2], ">i4"),
        "n": np.zeros((0, 2)),
    }
    tree = {"model": {**arrays, "pair": [BASE, BASE[0]]}, "__author__": "us", "score": np.float32(1.5)}
    path.write_bytes(pickle.dumps(tree, protocol=protocol))
    read = read_state_dict(path)
    assert set(read) == {*arrays, "pair.0", "pair.1"}
    for key, expected in arrays.items():
        np.testing.assert_array_equal(read[key], expected)
        assert read[key].dtype == expected.dtype.newbyteorder("=")


def test_reads_numpy_pickled_by_python_2(tmp_path):
    path = tmp_path / "old.pkl"
    ndarray = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    dtype = b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
    path.write_bytes(b"(S'w'\n" + ndarray + b"(I1\n(I2\nt" + dtype + b"I00\nS'\\x00\\x00\\x80?\\x00\\x00\\x00@'\ntbd.")
    assert read_state_dict(path)["w"].tolist() == [1.0, 2.0]


class Call:
    """Pickles to a call of any function."""

    def __init__(self, function, *args):
        self.parts = function, args

    def __reduce__(self):
        return self.parts


HOSTILE = {
    "posix.system": lambda mark: Call(os.system, f"touch {mark}"),
    "builtins.eval": lambda mark: Call(eval, f"open({str(mark)!r}, 'w')"),
    "builtins.exec": lambda mark: Call(exec, f"open({str(mark)!r}, 'w')"),
    "numpy.*.fromfile": lambda mark: Call(np.fromfile, str(mark)),
    "numpy.*load": lambda mark: Call(np.load, str(mark)),
    "_?io.open": lambda mark: Call(builtins.open, str(mark), "w"),
}


@pytest.mark.parametrize("wrap", ["pickle", "zip", "legacy", "inside"])
@pytest.mark.parametrize("name", HOSTILE)
def test_refuses_and_does_not_run(tmp_path, name, wrap):
    mark = tmp_path / "mark"
    attack = HOSTILE[name](mark)
    payload = pickle.dumps({"model": {"w": BASE, "x": attack}} if wrap == "inside" else attack)
    path = tmp_path / "evil.pth"
    if wrap == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", payload)
    elif wrap == "legacy":
        path.write_bytes(pickle.dumps(LEGACY_MAGIC) + pickle.dumps(1001) + pickle.dumps({}) + payload)
    else:
        path.write_bytes(payload)
    with pytest.raises(UnsafePickleError, match=rf"evil\.pth asks for '{name}'.*safetensors"):
        read_state_dict(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        (b"cbuiltins\ngetattr\n(cos\nsystem\nS'x'\ntR.", "builtins.getattr"),
        (b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.", "builtins.getattr"),
        (b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.", r"OrderedDict\.__init__"),
        (b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.", r"ndarray\.__class__"),
        (b"(S'x'\nios\nsystem\n.", "os.system"),  # INST opcode
        (b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb.", "set attributes"),
        (
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__K\x01s\x86b.",
            "set attributes",
        ),
        (b"\x80\x02cjaxvision.weights.torch_pickle\n_Tensor\n.", "jaxvision"),
    ],
)
def test_refuses_hand_written_tricks(tmp_path, source, asked):
    pickletools.dis(source, out=io.StringIO())  # the bytes are a well-formed pickle
    path = tmp_path / "trick.pkl"
    path.write_bytes(source)
    with pytest.raises(UnsafePickleError, match=asked):
        read_state_dict(path)


@pytest.mark.parametrize("suffix", ["pth", "pt", "pkl"])
@pytest.mark.parametrize("source", ["zip.pth", "legacy.pth"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.97])
def test_truncated_files(tmp_path, source, suffix, share):
    data = (FILES / source).read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r"cut.*(truncated|damaged)"):
        read_state_dict(path)


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><html></html>", b"PK\x03\x04 no zip", pickle.dumps([1, 2]), pickle.dumps({})]
)
def test_other_files(tmp_path, content):
    path = tmp_path / "page.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"page\.pth") as error:
        read_state_dict(path)
    assert not isinstance(error.value, UnsafePickleError)


def tensor_file(path, *, numel=4, offset=0, size=(2, 2), stride=(2, 1), stored=16):
    """A zip checkpoint with one float32 tensor, pickled by hand; ``stored`` bytes of data."""

    def ints(values):
        return "(" + "".join(f"I{value}\n" for value in values) + "t"

    source = (
        "(S'w'\nctorch._utils\n_rebuild_tensor_v2\n"
        f"((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI{numel}\ntQ"
        f"I{offset}\n{ints(size)}{ints(stride)}I00\n(dtRd."
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", source)
        archive.writestr("a/data/0", bytes(stored))
    return path


@pytest.mark.parametrize(
    "fault",
    [
        {"offset": 1},
        {"offset": -1},
        {"size": (2, 3)},
        {"size": (3, 2)},
        {"stride": (3, 1)},
        {"stride": (-2, 1)},
        {"stride": (2,)},
        {"size": (2**40, 2**40)},
        {"numel": 5},
        {"numel": -1},
        {"stored": 15},
        {"offset": 5, "size": (0, 2)},
    ],
)
def test_a_tensor_stays_inside_its_storage(tmp_path, fault):
    assert read_state_dict(tensor_file(tmp_path / "good.pth"))["w"].shape == (2, 2)
    with pytest.raises(ValueError, match=r"bad\.pth"):
        read_state_dict(tensor_file(tmp_path / "bad.pth", **fault))


def test_a_huge_view_of_one_number_takes_no_memory(tmp_path):
    array = read_state_dict(tensor_file(tmp_path / "view.pth", size=(2**20, 2**20), stride=(0, 0)))["w"]
    assert array.shape == (2**20, 2**20) and array[-1, -1] == 0


def test_a_container_inside_itself(tmp_path):
    loop = {}
    loop["loop"] = [loop]
    (tmp_path / "loop.pkl").write_bytes(pickle.dumps(loop))
    with pytest.raises(ValueError, match="occurs twice"):
        read_state_dict(tmp_path / "loop.pkl")


@pytest.mark.parametrize("source", ["legacy.pth", "nested.pth"])
def test_flipped_bytes_never_escape(tmp_path_factory, source):
    """Whatever a damaged file holds, reading it gives arrays or a ValueError with the file's name."""
    original = (FILES / source).read_bytes()
    path = tmp_path_factory.mktemp("flip") / "flipped.pth"

    @hypothesis.settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @hypothesis.given(st.lists(st.tuples(st.integers(0, len(original) - 1), st.integers(0, 255)), min_size=1))
    def check(flips):
        data = bytearray(original)
        for place, value in flips:
            data[place] = value
        path.write_bytes(data)
        try:
            arrays = read_state_dict(path)
        except ValueError as error:
            assert "flipped.pth" in str(error)
        else:
            assert all(isinstance(array, np.ndarray) for array in arrays.values())

    check()
