"""Foreign weight files that are damaged, hostile, or of another kind."""

import argparse
import gzip
import json
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from unittest import mock

import numpy as np

from jaxvision.weights import read_state_dict, unpickle
from jaxvision.weights.torch_pickle import LEGACY_MAGIC
from tests.bad_inputs.case import Case, by_name, check
from tests.weights.test_torch_pickle import tensor_file

FILES = Path(__file__).parent.parent / "weights" / "files"
FOUR = b"\x80\x04"
ARRAY = np.arange(6, dtype=np.float32)


def content(name, data, *words, file="evil.pth"):
    """A file of these bytes (or of what a function of its path writes)."""

    def run(folder):
        path = folder / file
        data(path) if callable(data) else path.write_bytes(data)
        return read_state_dict(path)

    return Case(name, run, (file, *words))


def array_pickle(
    dtype=b"f4", shape=b"K\x06\x85", data=b"\0" * 24, state=b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0t"
):
    """An array as numpy pickles it, with protocol 2."""
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R"
    kind = b"cnumpy\ndtype\nU" + bytes([len(dtype)]) + dtype + b"K\0K\x01\x87R" + state + b"b"
    return (
        b"\x80\x02}U\x01w" + made + b"(K\x01" + shape + kind + b"\x89T" + struct.pack("<I", len(data)) + data + b"tbs."
    )


def entries(*names, compressed=(), **changes):
    """Writes zip.pth of the tests again, with entries left out, compressed or given other bytes."""

    def write(path):
        with zipfile.ZipFile(FILES / "zip.pth") as old, zipfile.ZipFile(path, "w") as new:
            for info in old.infolist():
                short = info.filename.partition("/")[2]
                if short not in names:
                    kind = zipfile.ZIP_DEFLATED if short in compressed else zipfile.ZIP_STORED
                    new.writestr(info.filename, changes.get(short, old.read(info)), kind)

    return write


def changed(source, place, value):
    """The bytes of a file of the tests with some of them replaced."""
    data = bytearray((FILES / source).read_bytes())
    start = data.index(place) if isinstance(place, bytes) else place
    data[start : start + len(value)] = value
    return bytes(data)


def table(source):
    """A zip checkpoint whose data.pkl is this."""

    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", source)
            archive.writestr("a/data/0", bytes(16))

    return write


def tensor(**fault):
    return lambda path: tensor_file(path, **fault)


def nested_tuples(depth):
    return b")" + b"\x85" * depth


def shared_data(path):
    """Ten arrays of one and the same bytes."""
    one = array_pickle(data=b"\0" * 4000, shape=b"M\xe8\x03\x85")
    text = b"T" + struct.pack("<I", 4000) + b"\0" * 4000
    parts = one[3:-2].replace(text, text + b"q\x01")  # without protocol, dict, items and end
    again = one[3:-2].replace(text, b"h\x01")
    path.write_bytes(
        b"\x80\x02}" + parts + b"s" + b"".join(b"U\x01" + bytes([65 + n]) + again[3:] + b"s" for n in range(9)) + b"."
    )


def legacy(payload, keys=(), rest=b""):
    head = b"".join(pickle.dumps(value, 2) for value in (LEGACY_MAGIC, 1001, {}))
    return head + payload + pickle.dumps(list(keys), 2) + rest


def few_opcodes(folder):
    (folder / "long.pkl").write_bytes(FOUR + b"N0" * 60 + b"N.")
    with mock.patch.object(unpickle, "MAX_OPCODES", 100):
        read_state_dict(folder / "long.pkl")


def recursive(path):
    loop = {}
    loop["loop"] = [loop]
    path.write_bytes(pickle.dumps(loop))


def npz(path):
    with open(path, "wb") as file:
        np.savez(file, w=ARRAY)


def npy(path):
    with open(path, "wb") as file:
        np.save(file, ARRAY)


def encrypted(path):
    tensor_file(path)
    data = bytearray(path.read_bytes())
    for start, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.rindex(start)
        data[place + offset] |= 1
    path.write_bytes(data)


def upon_each_other(path):
    """Two directory entries for the same data."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}))
        archive.writestr("a/data/0", bytes(16))
        archive.writestr("a/data/1", bytes(16))
        archive.filelist[0].header_offset = archive.filelist[1].header_offset


PICKLES = (
    content("empty", b"", "truncated"),
    content("one byte", b"\x80", "truncated"),
    content("web page", b"<!DOCTYPE html><html>Not found</html>", "another kind of file"),
    content("git lfs pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "another kind"),
    content("jpeg", b"\xff\xd8\xff\xe0\0\x10JFIF\0", "opcode", "\\xff"),
    content("gzip", gzip.compress(pickle.dumps({"w": ARRAY})), "another kind of file"),
    content("npy", npy, "another kind"),
    content("npz", npz, "without PyTorch's data.pkl"),
    content("memo index of 2**28", b"\x80\x02Nr\xff\xff\xff\x0f.", "holds no arrays"),
    content("memo index that nobody put", b"\x80\x02j\xff\xff\xff\x0f.", "a memo without the index 268435455"),
    content(
        "string of 2**40 bytes", FOUR + b"\x8d" + struct.pack("<Q", 2**40) + b".", "1099511627776", "only 1 remain"
    ),
    content("bytes of 2**40", FOUR + b"\x8e" + struct.pack("<Q", 2**40) + b".", "1099511627776", "only 1 remain"),
    content("bytearray of 2**40", b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".", "bytearray8"),
    content("bytes of 2**32 - 1", b"\x80\x03B\xff\xff\xff\xff.", "4294967295"),
    content("integer of 2 GB", b"\x80\x02\x8b\xff\xff\xff\x7f.", "long4"),
    content("integer of negative length", b"\x80\x02\x8b\xff\xff\xff\xff.", "long4 byte count < 0"),
    content("integer of 5000 digits", b"I" + b"9" * 5000 + b"\n.", "integer"),
    content("frame of 2**60", FOUR + b"\x95" + struct.pack("<Q", 2**60) + b".", "truncated"),
    content("no stop", FOUR + b"}", "ends early"),
    content("nothing on the stack", FOUR + b"0.", "truncated"),
    content("mark that is not there", FOUR + b"Nt.", "truncated"),
    content("unknown opcode", FOUR + b"\x07.", "the opcode b'\\x07'"),
    content("tuple of too little", FOUR + b"N\x87.", "too few values"),
    content("odd number of items", FOUR + b"}(Nu.", "items for a dict"),
    content("items for a number", FOUR + b"K\x01K\x02a.", "items for a int"),
    content("string without quotes", b"Sabc\n.", "a string without quotes"),
    content("string that is no utf-8", b"\x80\x02X\x02\0\0\0\xff\xfe.", "UnicodeDecodeError"),
    content("persistent id", b"Pstorage\n.", "a persistent id"),
    content("extension code", b"\x80\x02\x82\x01.", "asks for the opcode EXT1"),
    content("buffer from elsewhere", b"\x80\x05\x97.", "asks for the opcode NEXT_BUFFER"),
    content("tuple as key", pickle.dumps({(1, 2): ARRAY}), "a dict key of kind tuple"),
    content("deep tuple as key", FOUR + b"}" + nested_tuples(100_000) + b"Ns.", "a dict key of kind tuple"),
    content("deep tuple", FOUR + nested_tuples(100_000) + b".", "containers 101 deep"),
    content("deep list", FOUR + b"]" * 5000 + b"a" * 4999 + b".", "containers 101 deep"),
    content("container in itself", recursive, "occurs twice"),
    content("container with arrays twice", pickle.dumps([[{"w": ARRAY}] * 2]), "occurs twice"),
    Case("too many opcodes", few_opcodes, ("long.pkl", "more than 100 opcodes")),
    content("key that occurs twice", pickle.dumps({"a.0": ARRAY, "a": [ARRAY + 1]}), "the key 'a.0' occurs twice"),
    content("long key", pickle.dumps({"k" * 2000: ARRAY}), "the key of 2000 characters"),
    content("os.system", b"cos\nsystem\n(S'true'\ntR.", "asks for 'os.system'", "safetensors"),
    content("os.system by INST", b"(S'true'\nios\nsystem\n.", "asks for 'os.system'"),
    content("os.system by OBJ", b"(cos\nsystem\nS'true'\no.", "asks for 'os.system'"),
    content("getattr", b"cbuiltins\ngetattr\n(cos\nsystem\nS'x'\ntR.", "asks for 'builtins.getattr'"),
    content("attributes of a function", b"ccollections\nOrderedDict\n}b.", "set attributes"),
    content("attributes of a dict", FOUR + b"}}b.", "set attributes"),
    content("call of a number", FOUR + b"K\x01)R.", "a call of what is no function"),
    content("call with 20 arguments", b"ctorch\ndevice\n(" + b"N" * 20 + b"tR.", "a call with 20 arguments"),
    content("global with a long name", b"c" + b"a" * 300 + b"\nb\n.", "at most 256 characters"),
    content("global named by numbers", FOUR + b"K\x01K\x02\x93.", "whose name is no text"),
    content("OrderedDict of numbers", FOUR + b"ccollections\nOrderedDict\n]K\x01a\x85R.", "no list of pairs"),
    content("device of a number", b"ctorch\ndevice\n(I1\ntR.", "a device without a name"),
    content("whole module", (FILES / "module.pth").read_bytes(), "asks for 'torch.nn", "save only model.state_dict()"),
    content(
        "options among the weights",
        pickle.dumps({"state_dict": {"w": ARRAY, "args": argparse.Namespace(lr=1)}}),
        "asks for 'argparse.Namespace'",
        "'args'",
    ),
    content("set among the weights", pickle.dumps({"model": {"w": ARRAY, "s": {1}}}), "asks for 'builtins.set'"),
    content("numbers only", pickle.dumps([1, 2]), "holds no arrays"),
    content("text only", pickle.dumps("model.pth"), "holds no arrays"),
    content("empty dict", pickle.dumps({}), "holds no arrays"),
    content("empty wrapper", pickle.dumps({"model": OrderedDict(), "epoch": 3}), "holds no arrays"),
    content("array of objects", pickle.dumps({"w": np.array([None, {}])}), "dtype 'O8'"),
    content("array of text", pickle.dumps({"w": np.array(["a"])}), "dtype 'U1'"),
    content("array of records", pickle.dumps({"w": np.zeros(2, "f4,i4")}), "dtype 'V8'"),
    content("array of times", pickle.dumps({"w": np.zeros(2, "M8[s]")}), "dtype 'M8'"),
    content("array with an odd dtype", array_pickle(dtype=b"f3"), "truncated"),
    content("array with an odd byte order", array_pickle().replace(b"U\x01<", b"U\x01x"), "byte order"),
    content("array with too few bytes", array_pickle(data=b"\0" * 23), "shape (6,)", "23 bytes"),
    content("array with too many bytes", array_pickle(data=b"\0" * 28), "shape (6,)", "28 bytes"),
    content("array of negative shape", array_pickle(shape=b"J\xff\xff\xff\xff\x85"), "(-1,)"),
    content(
        "array of 2**80 numbers",
        array_pickle(shape=b"\x8a\x06\0\0\0\0\0\x01\x8a\x06\0\0\0\0\0\x01\x86"),
        "1099511627776",
    ),
    content("array of 70 dimensions", array_pickle(shape=b"(" + b"K\x01" * 70 + b"t"), "no short tuple"),
    content("array of a shape of text", array_pickle(shape=b"U\x01a\x85"), "'str'"),
    content("array without data", b"\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\n)Rs.", "'w'", "without data"),
    content("bytes in utf-16", b"\x80\x02c_codecs\nencode\nU\x01aU\x06utf-16\x86R.", "another encoding"),
    content("arrays of the same bytes", shared_data, "share data"),
    content(
        "scalar of another length",
        b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nU\x02f4\x85RU\x01a\x86R.",
        "scalar",
    ),
)

STORAGE = b"((S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\ntQ"
REBUILD = b"(S'w'\nctorch._utils\n_rebuild_tensor_v2\n"
TORCH = (
    content("no zip", b"PK\x03\x04 no zip", "BadZipFile"),
    content("zip cut off", (FILES / "zip.pth").read_bytes()[:-100], "truncated"),
    content("compressed storage", entries(compressed=("data/0",)), "data/0 is compressed"),
    content("compressed table", entries(compressed=("data.pkl",)), "data.pkl is compressed"),
    content("encrypted storage", encrypted, "encrypted"),
    content("entries upon each other", upon_each_other, "truncated, damaged"),
    content("no table", entries("data.pkl"), "without PyTorch's data.pkl"),
    content("empty table", entries(**{"data.pkl": b""}), "ends early"),
    content("no storage", entries("data/0"), "data/0"),
    content("short storage", entries(**{"data/0": b"\0" * 8}), "storage 0 has 8 bytes"),
    content("damaged storage", changed("zip.pth", struct.pack("<ff", 1, 2), b"\xff"), "CRC"),
    content("module in a zip", table(b"c__torch__\nNet\n)\x81."), "asks for '__torch__.Net'"),
    content(
        "quantised storage",
        table(REBUILD + STORAGE.replace(b"Float", b"QInt8") + b"."),
        "asks for 'torch.QInt8Storage'",
    ),
    content(
        "storage without a key", table(REBUILD + STORAGE.replace(b"S'0'", b"I0") + b"."), "without a kind or a key"
    ),
    content("storage of a negative length", table(REBUILD + STORAGE.replace(b"I4", b"I-4") + b"."), "(-4,)"),
    content("other persistent id", table(b"(S'stored'\nI1\nI2\nI3\nI4\ntQ."), "unknown persistent id"),
    content("module with its source", table(b"(S'module'\nI1\nI2\nI3\ntQ."), "asks for a module", "state_dict()"),
    content("tensor without a storage", table(REBUILD + b"(NI0\n(I2\nt(I1\ntI00\n(dtRd."), "without a storage"),
    content("tensor beyond its storage", tensor(size=(2, 3)), "'w'", "reaches element 5"),
    content("tensor with an offset beyond", tensor(offset=3), "reaches element 7"),
    content("tensor with a negative offset", tensor(offset=-1), "'w'", "(0, 4, -1)"),
    content("tensor with a negative stride", tensor(stride=(-2, 1)), "(-2, 1)"),
    content("tensor with a stride outside", tensor(stride=(2**62, 1)), "reaches element"),
    content("tensor with a stride of 2**63", tensor(stride=(2**63, 1)), "shape or strides"),
    content("tensor of 2**82 numbers", tensor(size=(2**41, 2**41), stride=(0, 0)), "'w'"),
    content("tensor with too few strides", tensor(stride=(2,)), "stride (2,)"),
    content("tensor of 70 dimensions", tensor(size=(1,) * 70, stride=(1,) * 70), "no short tuple"),
    content("legacy cut off", (FILES / "legacy.pth").read_bytes()[:-5], "truncated, damaged"),
    content("legacy without storages", legacy(pickle.dumps({"w": 1}, 2)), "holds no arrays"),
    content("legacy with an unknown storage", legacy(pickle.dumps({}, 2), ["7"]), "KeyError"),
    content(
        "legacy, a storage without data",
        legacy(REBUILD + STORAGE.replace(b"I4\n", b"I4\nN") + b"I0\n(I2\nt(I1\ntI00\n(dtRd."),
        "no data",
    ),
    content(
        "legacy, a storage of another length",
        legacy(STORAGE[1:].replace(b"I4\n", b"I4\nN") + b".", ["0"], struct.pack("<q", 2**40)),
        "1099511627776",
    ),
)


def safetensors(header, data=b"", *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(dtype="F32", shape=(2,), offsets=(0, 8), size=8):
    return safetensors({"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}, b"\0" * size)


TWICE = {key: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for key in "ab"}
NAMED = tuple(
    content(f"safetensors, {name}", data, *words, file="model.safetensors")
    for name, data, *words in (
        ("empty", b"", "truncated"),
        ("header cut off", one()[:20], "truncated"),
        ("header of 2**60 bytes", safetensors(b"{}", length=2**60), "header too large"),
        ("header of 90 MB in a small file", safetensors(b"{}", length=90_000_000), "truncated"),
        ("header that is no JSON", safetensors(b"{'w': 1}"), "header"),
        ("header that is no utf-8", safetensors(b'{"\xff": 1}'), "header"),
        ("header that is a list", safetensors([]), "header"),
        ("no arrays", safetensors({}), "holds no arrays"),
        ("data cut off", one()[:-1], "truncated"),
        ("data too long", one(size=12), "not fully covered"),
        ("float8", one(dtype="F8_E4M3", shape=(8,)), "w is F8_E4M3", "save it as F32"),
        ("float8 of the other kind", one(dtype="F8_E5M2", shape=(8,)), "w is F8_E5M2"),
        ("float4", one(dtype="F4", shape=(16,)), "w is F4"),
        ("unknown dtype", one(dtype="F99"), "F99"),
        ("shape that overflows", one(shape=(2**40, 2**40)), "overflow"),
        ("shape of another size", one(shape=(3,)), "damaged"),
        ("negative shape", one(shape=(-2,)), "-2"),
        ("offsets in the wrong order", one(offsets=(8, 0)), "damaged"),
        ("offsets beyond the file", one(shape=(2**20,), offsets=(0, 2**22)), "damaged"),
        ("arrays upon each other", safetensors(TWICE, b"\0" * 8), "invalid offset"),
        ("pickle inside", pickle.dumps({"w": ARRAY}), "no safetensors file"),
    )
)
OTHER = (
    content("safetensors named pth", one(), "looks like a safetensors file; rename"),
    content("onnx", b"\x08\x07\x12\x07pytorch", "cannot tell its kind", ".safetensors", file="model.onnx"),
    content("keras", b"\x89HDF\r\n\x1a\n\0\0", "cannot tell its kind", file="model.h5"),
    content("no suffix, unknown content", b"hello, world", "cannot tell its kind", file="model"),
    content("no suffix, empty", b"", "cannot tell its kind", file="model"),
    content("tar archive", b"data/\0" + b"\0" * 251 + b"ustar\x0000" + b"\0" * 248, "another kind", file="model.tar"),
)


CASES: tuple[Case, ...] = PICKLES + TORCH + NAMED + OTHER


@by_name(CASES)
def test_one_error_that_says_what_and_where(case, tmp_path):
    check(case, tmp_path)


@by_name(tuple(case for case in CASES if "deep tuple" not in case.name))
def test_small_files_take_little_memory(case, tmp_path):
    """Files of kilobytes, which name sizes up to 2**60."""
    tracemalloc.start()
    try:
        check(case, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


MEASURE = """
import pathlib, resource, sys
from jaxvision.weights import read_state_dict
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        read_state_dict(pathlib.Path(path))
        print(f"{path} was read")
    except ValueError as error:
        assert path in str(error), error
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def deflated(path):
    """1 GB of zeros in 1 MB, which torch would have stored."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("a/data.pkl", REBUILD + STORAGE.replace(b"I4", b"I268435456") + b".")
        with archive.open("a/data/0", "w") as file:
            for _ in range(64):
                file.write(bytes(2**24))


def repeated(opcodes, count):
    return lambda path: path.write_bytes(FOUR + opcodes * count + b".")


def encoded(path):
    """One text of 1 MB, made into bytes 100,000 times."""
    text = b"X" + struct.pack("<I", 2**20) + b"x" * 2**20
    start = b"c_codecs\nencode\n\x94" + text + b"X\x06\0\0\0latin1\x86\x94"
    path.write_bytes(FOUR + start + b"h\x00h\x01R" * 100_000 + b".")


BOMBS = {
    "memo.pkl": lambda path: path.write_bytes(b"\x80\x02Nr\xff\xff\xff\x0f."),
    "deflated.pth": deflated,
    "dicts.pkl": repeated(b"}", 3_000_000),
    "memos.pkl": repeated(b"}\x94", 1_500_000),
    "encoded.pkl": encoded,
    "tuples.pkl": repeated(b")\x85", 900_000),
}


def test_bombs_take_a_few_hundred_megabytes(tmp_path):
    """Files of megabytes, in a process of their own: they would take gigabytes if they were followed."""
    for name, write in BOMBS.items():
        write(tmp_path / name)
    paths = [str(tmp_path / name) for name in BOMBS]
    command = [sys.executable, "-c", MEASURE, *paths]
    *read, taken = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]
    assert not read and int(taken) < 400e6
