"""Checkpoints that a disk, a person or another program has changed, folders that cannot be used, and options of
training that are out of range."""

import functools
import json
import pathlib
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from jaxvision.train import (
    Checkpointer,
    accumulate,
    create_state,
    fit,
    load_variables,
    locked,
    make_train_step,
    matching,
    optimizer,
    parallelize,
    schedule,
    value_and_grads,
)
from jaxvision.train.writers import JsonlWriter, TensorBoardWriter
from tests.bad_inputs.case import Case, by_name, check
from tests.train.task import Batches, Net, make_loss_fn, make_state

TX = optimizer("adamw", learning_rate=0.1)


def step(state, batch):
    """As those of ``make_train_step``, without a model to compile."""
    return state._replace(step=state.step + 1), {"loss": jnp.float32(1), "finite": jnp.bool_(True)}


ONE = parallelize(step, devices=jax.devices()[:1])


@functools.cache
def template() -> pathlib.Path:
    """A folder with one checkpoint in ``last`` and one in ``best``, both of step 5."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="checkpoints"))
    checkpointer = Checkpointer(folder)
    metrics = {"best": None, "stale": 0, "metric": None}
    for best in (False, True):
        state = make_state(TX)._replace(step=jnp.int32(5))
        checkpointer.save(5, state, [{"position": 5}], {"model": "net"}, metrics, best=best)
    checkpointer.close()
    return folder


def copied(folder: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(template(), folder / "checkpoints"))


def restore(folder: pathlib.Path, state=None):
    checkpointer = Checkpointer(folder)
    try:
        return checkpointer.restore(make_state(TX) if state is None else state)
    finally:
        checkpointer.close()


def damaged(name, pattern, change, *words, read=restore, largest=True):
    """The largest (or smallest) file of the checkpoint whose path matches is changed; ``change`` gets its bytes and
    gives others, or None to remove it."""

    def run(folder):
        folder = copied(folder)
        files = [path for path in (folder / "last" / "5").glob(pattern) if path.is_file()]
        path = (max if largest else min)(files, key=lambda path: (path.stat().st_size, path.name))
        data = change(path.read_bytes())
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        return read(folder)

    return Case(name, run, (str(pathlib.Path("last") / "5"), *words))


def flipped(place):
    """The bytes with one bit of another value, at a share of their length."""

    def change(data):
        data, at = bytearray(data), int(place * (len(data) - 1))
        data[at] ^= 1 << at % 8
        return bytes(data)

    return change


def cut(data):
    return data[: len(data) // 2]


def empty(data):
    return b""


def gone(data):
    return None


def longer(data):
    return data + b"\0"


def other_json(**changes):
    """JSON with other values; None leaves a name out."""

    def change(data):
        values = {**json.loads(data), **changes}
        return json.dumps({name: value for name, value in values.items() if value is not None}).encode()

    return change


def load(folder):
    return load_variables(folder, which="last")


ARRAYS, META, SUMS = "state/**/d/*", "meta/metadata", "checksums.json"

DAMAGED = (
    damaged("a bit of the arrays' first bytes", ARRAYS, flipped(0.02), "state/", "CRC"),
    damaged("a bit in the middle of the arrays", ARRAYS, flipped(0.5), "state/", "CRC"),
    damaged("a bit of the arrays' last byte", ARRAYS, flipped(1), "state/", "CRC"),
    damaged("a bit of the smallest file of arrays", ARRAYS, flipped(0.3), "state/", "CRC", largest=False),
    damaged("a bit of the arrays, read for inference", ARRAYS, flipped(0.4), "state/", "CRC", read=load),
    damaged("a bit of the array database's manifest", "state/manifest.ocdbt", flipped(0.6), "manifest.ocdbt", "CRC"),
    damaged("a bit of a process's manifest", "state/ocdbt.process_0/manifest.ocdbt", flipped(0.6), "process_0", "CRC"),
    damaged("a bit of the arrays' names", "state/_METADATA", flipped(0.2), "_METADATA", "CRC"),
    damaged("a bit of the position and the config", META, flipped(0.7), META, "CRC"),
    damaged("a bit of Orbax's own metadata", "_CHECKPOINT_METADATA", flipped(0.9), "_CHECKPOINT_METADATA", "CRC"),
    damaged("a bit of the checksums", SUMS, flipped(0.81), SUMS),
    damaged("a bit of the checksums' own sum", SUMS, other_json(crc32=12345), SUMS, "CRC"),
    damaged("checksums that are a list", SUMS, lambda data: b"[1, 2]", SUMS),
    damaged("checksums that are no text", SUMS, lambda data: b"\xff\xfe\xff", SUMS),
    damaged("checksums missing", SUMS, gone, SUMS, "missing"),
    damaged("checksums empty", SUMS, empty, SUMS),
    damaged("arrays cut off", ARRAYS, cut, "state/", "bytes instead of"),
    damaged("arrays empty", ARRAYS, empty, "state/", "0 bytes"),
    damaged("arrays with a byte more", ARRAYS, longer, "state/", "bytes instead of"),
    damaged("arrays missing", ARRAYS, gone, "state/", "missing"),
    damaged("arrays missing, read for inference", ARRAYS, gone, "state/", "missing", read=load),
    damaged("manifest cut off", "state/manifest.ocdbt", cut, "manifest.ocdbt", "bytes instead of"),
    damaged("manifest missing", "state/manifest.ocdbt", gone, "manifest.ocdbt", "missing"),
    damaged("names of the arrays missing", "state/_METADATA", gone, "_METADATA", "missing"),
    damaged("names of the arrays empty", "state/_METADATA", empty, "_METADATA", "0 bytes"),
    damaged("position and config missing", META, gone, META, "missing"),
    damaged("position and config cut off", META, cut, META, "bytes instead of"),
    damaged("a learning rate changed by hand", META, other_json(config={"rate": 9}), META),
)


def old(change):
    """Without checksums, as versions before them wrote it, and changed."""

    def run(folder):
        folder = copied(folder)
        (folder / "last" / "5" / SUMS).unlink()
        path = folder / "last" / "5" / META
        values = json.loads(path.read_text())
        path.write_bytes(change({name: values[name] for name in ("iterator", "config", "metrics", "keys")}))
        return restore(folder)

    return run


def swapped(folder):
    """Two checkpoints of one run that have changed places."""
    checkpointer = Checkpointer(folder)
    for number in (1, 2):
        checkpointer.save(number, make_state(TX, seed=number), [number], {})
    checkpointer.close()
    for old, new in (("1", "x"), ("2", "1"), ("x", "2")):
        (folder / "last" / old).rename(folder / "last" / new)
    return restore(folder)


def mixed(folder):
    """The arrays of one checkpoint with the position of another."""
    checkpointer = Checkpointer(folder)
    for number in (1, 2):
        checkpointer.save(number, make_state(TX, seed=number), [number], {})
    checkpointer.close()
    for number in (1, 2):
        (folder / "last" / f"{number}/state").rename(folder / f"state{number}")
    for number in (1, 2):
        (folder / f"state{3 - number}").rename(folder / "last" / f"{number}/state")
    return restore(folder)


def best_damaged(folder):
    folder = copied(folder)
    for path in (folder / "best" / "5" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(flipped(0.5)(path.read_bytes()))
    return load_variables(folder)


def only_a_file(folder):
    folder = copied(folder)
    shutil.rmtree(folder / "last" / "5")
    (folder / "last" / "5").write_text("not a folder")
    return restore(folder)


def an_empty_folder(folder):
    (folder / "last" / "12").mkdir(parents=True)
    return restore(folder)


WRONG = (
    Case(
        "an old checkpoint without a position", old(lambda v: other_json(iterator=None)(json.dumps(v))), ("iterator",)
    ),
    Case("an old checkpoint without the keys' kinds", old(lambda v: other_json(keys=None)(json.dumps(v))), ("keys",)),
    Case("an old checkpoint whose JSON is cut off", old(lambda v: cut(json.dumps(v).encode())), ("last/5",)),
    Case("an old checkpoint whose JSON is a list", old(lambda v: b"[]"), ("last/5",)),
    Case("an old checkpoint whose JSON is empty", old(lambda v: b""), ("last/5",)),
    Case("two checkpoints swapped", swapped, ("last/2", "it is the checkpoint of step 1")),
    Case("the arrays of two checkpoints swapped", mixed, ("last/2", "last/1", "CRC")),
    Case("the best checkpoint damaged", best_damaged, ("best/5", "CRC", "last")),
    Case("a file in the place of a checkpoint", only_a_file, ("last/5",)),
    Case("an empty folder in the place of a checkpoint", an_empty_folder, ("last/12",)),
)


def changed_params(change):
    """A state whose parameters differ from those of the checkpoint."""

    def run(folder):
        variables = Net().init(jax.random.key(0), jnp.zeros((1, 5)))
        variables["params"] = change(variables["params"])
        return restore(copied(folder), create_state(jax.random.key(0), variables, TX))

    return run


def renamed(params):
    params["head"] = params.pop("dense2")
    return params


def half(params):
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)


def wide(params):
    params["dense2"]["kernel"] = jnp.zeros((16, 7))
    return params


def fitted(folder, **options):
    """A run over a copy of the checkpoint, or in an empty folder."""
    checkpointer = Checkpointer(folder)
    options = {"total_steps": 6, "config": {"model": "net"}, "checkpoint_every": 3, "log_every": 1} | options
    try:
        return fit(ONE, make_state(TX), Batches(), checkpointer=checkpointer, **options)
    finally:
        checkpointer.close()


def two_processes(folder):
    checkpointer = Checkpointer(folder)
    checkpointer.save(3, make_state(TX), [{"position": 3}] * 2, {}, {"best": None, "stale": 0, "metric": None})
    checkpointer.close()
    return fitted(folder)


def of_weights_alone(folder):
    """As rcnn_svm.py writes it: for inference."""
    checkpointer = Checkpointer(folder)
    checkpointer.save(0, make_state(TX), None, {})
    checkpointer.close()
    return fitted(folder)


def evaluated(values):
    return {"evaluate": lambda state: values, "check": lambda state: values, "eval_every": 2}


FOREIGN = (
    Case("layers of another name", changed_params(renamed), ("params/head/kernel", "params/dense2/kernel", "last/5")),
    Case("a head of another width", changed_params(wide), ("params/dense2/kernel", "[16, 3]", "[16, 7]")),
    Case("parameters of another dtype", changed_params(half), ("params/bn/bias", "float32", "bfloat16")),
    Case(
        "another optimiser",
        lambda folder: restore(copied(folder), make_state(optimizer("sgd", learning_rate=0.1))),
        ("opt_state", "last/5"),
    ),
    Case("an average that was not kept", lambda f: restore(copied(f), make_state(TX, ema=True)), ("ema/", "missing")),
    Case("of two processes", two_processes, ("step 3", "2 processes", "start as many")),
    Case("a checkpoint for inference", of_weights_alone, ("step 0", "position")),
    Case("another model on a finished run", lambda f: fitted(copied(f), total_steps=5, config={"model": "other"}),
         ("model was net, is other now", "step 5")),
    Case("fewer steps than there were", lambda f: fitted(copied(f), total_steps=2, config={"model": "net", "steps": 2}),
         ("steps was", "is 2 now")),
)  # fmt: skip


def held(folder):
    with locked(folder), locked(folder):
        pass


def in_a_file(use, *parts):
    """A folder under a path that is a file."""

    def run(folder):
        (folder / "file").write_text("")
        return use((folder / "file").joinpath(*parts))

    return run


def lock(folder):
    with locked(folder):
        pass


FOLDERS = (
    Case("a folder that another run has", held, ("is in use", "process ", "started")),
    Case("a lock under a file", in_a_file(lock, "run"), ("cannot write to the output folder", "file/run")),
    Case("checkpoints under a file", in_a_file(Checkpointer, "run"), ("cannot write to the output folder", "file/run")),
    Case("checkpoints in a file", in_a_file(Checkpointer), ("cannot write to the output folder", "file")),
    Case("checkpoints where /proc is", lambda f: Checkpointer("/proc/run"), ("cannot write", "/proc/run")),
    Case("metrics under a file", in_a_file(lambda f: JsonlWriter(f).start(0)), ("cannot write", "metrics.jsonl")),
    Case("events under a file", in_a_file(lambda f: TensorBoardWriter(f).start(0)), ("cannot write", "file")),
    Case("a run that is not there", lambda f: load_variables(f / "nowhere"), ("no checkpoint in", "nowhere/best")),
    Case("a run without a best", lambda f: Checkpointer(f) and load_variables(f), ("no checkpoint in", "best")),
    Case("neither best nor last", lambda f: load_variables(f, which="newest"), ("'newest'", "best or last")),
)


def fit_with(**options):
    return lambda folder: fitted(folder, **options)


def optimize(**options):
    return lambda folder: optimizer(**{"name": "sgd", "learning_rate": 0.1, **options})


def plan(**options):
    return lambda folder: schedule(**{"name": "step", "learning_rate": 0.1, "total_steps": 10, **options})


def frozen(*patterns):
    return lambda folder: matching({"conv": 1, "fc": 2}, patterns)


GRADIENT = value_and_grads(make_loss_fn(Net()))
SCORE = evaluated({"ap": 0.5})

OPTIONS = (
    Case("no checkpoint is kept", lambda f: Checkpointer(f, keep=0), ("keep=0",)),
    Case("no step", fit_with(total_steps=0), ("total_steps=0",)),
    Case("a step that is True", fit_with(total_steps=True), ("total_steps=True",)),
    Case("a checkpoint every 0 steps", fit_with(checkpoint_every=0), ("checkpoint_every=0",)),
    Case("metrics every -1 steps", fit_with(log_every=-1), ("log_every=-1",)),
    Case("an evaluation every 0 steps", fit_with(**SCORE | {"eval_every": 0}), ("eval_every=0",)),
    Case("patience of 0", fit_with(**SCORE, best_metric="ap", patience=0), ("patience=0",)),
    Case("patience without a metric", fit_with(**SCORE, patience=2), ("patience=2", "best_metric")),
    Case("a best metric without evaluation", fit_with(best_metric="ap"), ("best_metric='ap'", "evaluate")),
    Case("a best metric that is none", fit_with(**SCORE, best_metric="mAP"), ("best_metric='mAP'", "ap")),
    Case("a figure that is a list", fit_with(**evaluated({"ap": [1, 2]})), ("ap=", "[1, 2]", "number")),
    Case("a config that JSON cannot hold", fit_with(config={"rate": np.float32}), ("JSON",)),
    Case("an unknown optimiser", optimize(name="lion"), ("'lion'", "sgd or adamw")),
    Case("a negative learning rate", optimize(learning_rate=-0.1), ("learning_rate=-0.1",)),
    Case("a learning rate of NaN", optimize(learning_rate=float("nan")), ("learning_rate=nan",)),
    Case("momentum of 1", optimize(momentum=1.0), ("momentum=1.0",)),
    Case("b2 of 1.5", optimize(name="adamw", b2=1.5), ("b2=1.5",)),
    Case("negative weight decay", optimize(weight_decay=-1e-4), ("weight_decay=-0.0001",)),
    Case("a clip of 0", optimize(clip_norm=0.0), ("clip_norm=0.0",)),
    Case("an infinite clip", optimize(clip_norm=float("inf")), ("clip_norm=inf",)),
    Case("nesterov without momentum", optimize(momentum=0.0, nesterov=True), ("nesterov", "momentum")),
    Case("a pattern that matches nothing", frozen("conv", "bacbone"), ("'bacbone'", "conv, fc")),
    Case("a pattern that is no expression", frozen("(conv"), ("'(conv'",)),
    Case("an unknown schedule", plan(name="linear"), ("'linear'", "cosine")),
    Case("an infinite learning rate", plan(learning_rate=float("inf")), ("learning_rate=inf",)),
    Case("a warm-up as long as the run", plan(warmup_steps=10), ("warmup_steps=10", "total_steps=10")),
    Case("a negative warm-up", plan(warmup_steps=-1), ("warmup_steps=-1",)),
    Case("milestones out of order", plan(milestones=(7, 4)), ("milestones=(7, 4)",)),
    Case(
        "a milestone within the warm-up", plan(warmup_steps=5, milestones=(3,)), ("milestones=(3,)", "warmup_steps=5")
    ),
    Case("a negative gamma", plan(gamma=-0.1), ("gamma=-0.1",)),
    Case("no parts of a batch", lambda f: accumulate(GRADIENT, 0), ("n=0",)),
    Case("an average that never moves", lambda f: make_train_step(GRADIENT, TX, ema_decay=1.0), ("ema_decay=1.0",)),
    Case("no devices", lambda f: parallelize(step, devices=[]), ("devices",)),
    Case("an unknown way of many devices", lambda f: parallelize(step, mode="ddp"), ("'ddp'", "jit or pmap")),
)

CASES = DAMAGED + WRONG + FOREIGN + FOLDERS + OPTIONS


@by_name(CASES)
def test_one_error_that_names_it(case, tmp_path):
    check(case, tmp_path)


def test_the_template_itself_is_intact(tmp_path):
    """Or the cases above would fail for another reason."""
    restored = restore(copied(tmp_path))
    assert restored.step == 5 and restored.config == {"model": "net"}
    assert fitted(tmp_path / "checkpoints").step == 6
