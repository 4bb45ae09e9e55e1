import errno
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxvision.train.checkpoint import Checkpointer, load_variables
from jaxvision.train.optim import optimizer
from jaxvision.train.state import create_state, state_variables
from tests.train.task import assert_same, make_state

TX = optimizer("adamw", learning_rate=0.1, freeze=("dense1",))
CONFIG = {"model": "net", "classes": 3, "sizes": [1, 2]}


def random_state(seed=0, *, ema=False):
    state = make_state(TX, seed=seed, ema=ema)
    params = jax.tree.map(lambda x: x + 0.1, state.params)
    return state._replace(step=jnp.int32(seed), params=params)


def test_round_trip(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpointer = Checkpointer("run")  # a relative path
    assert checkpointer.restore(random_state()) is None
    state = random_state(3, ema=True)
    checkpointer.save(3, state, {"position": 7}, CONFIG, {"ap": 0.5})
    checkpointer.close()
    restored = Checkpointer("run").restore(jax.eval_shape(lambda: random_state(0, ema=True)))
    assert_same(restored.state, state)
    assert restored[1:] == ({"position": 7}, CONFIG, 3, {"ap": 0.5})
    assert_same(jax.random.normal(restored.state.key), jax.random.normal(state.key))


def test_every_dtype_and_shape(tmp_path):
    values = [np.float16(1.5), jnp.bfloat16(3), np.bool_(True), np.uint8(255), np.int32(-5), np.uint32(7)]
    params = {f"p{i}": jnp.full((2, i), value) for i, value in enumerate(values)}  # p0 is of size zero
    params["nan"] = jnp.array([jnp.nan, -jnp.inf, -0.0])
    state = make_state(TX)._replace(params=params, key=jax.random.key(5, impl="rbg"))
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, state, None, {})
    restored = checkpointer.restore(state).state
    assert_same(restored, state)
    assert np.signbit(restored.params["nan"][2])
    assert jax.random.key_impl(restored.key) == "rbg"


def test_keeps_the_last_two_and_the_best(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=2)
    for step in range(1, 6):
        checkpointer.save(step, random_state(step), None, CONFIG)
        if step in (1, 2):
            checkpointer.save(step, random_state(step), None, CONFIG, best=True)
    assert sorted(path.name for path in (tmp_path / "last").iterdir()) == ["4", "5"]
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["2"]
    assert checkpointer.restore(random_state()).step == 5


def test_saving_a_step_again_replaces_it(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, random_state(0), None, {})
    checkpointer.save(1, random_state(1), None, {})
    assert_same(checkpointer.restore(random_state()).state, random_state(1))


def test_a_save_cut_off_leaves_the_one_before(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, random_state(1), {"position": 1}, CONFIG)
    checkpointer.save(2, random_state(2), {"position": 2}, CONFIG)
    checkpointer.close()
    complete = tmp_path / "last" / "2"
    complete.rename(tmp_path / "last" / "2.orbax-checkpoint-tmp-0")  # what a kill before the rename leaves
    restored = Checkpointer(tmp_path).restore(random_state())
    assert restored.step == 1 and restored.iterator_state == {"position": 1}


def test_an_unreadable_checkpoint_is_passed_over(tmp_path, caplog):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, random_state(1), None, CONFIG)
    checkpointer.save(2, random_state(2), None, CONFIG)
    checkpointer.close()
    for path in (tmp_path / "last" / "2" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    (tmp_path / "last" / "3").mkdir()
    checkpointer = Checkpointer(tmp_path)
    assert checkpointer.restore(random_state()).step == 1
    (line,) = caplog.messages
    assert line.startswith(f"damaged: {tmp_path}/last/3 (") and "; " in line
    assert line.endswith(f"going back to {tmp_path}/last/1")
    assert {path.name for path in (tmp_path / "last").iterdir()} == {"1", "2.damaged", "3.damaged"}
    checkpointer.save(3, random_state(3), None, CONFIG)
    assert checkpointer.restore(random_state()).step == 3


def test_killed_during_a_save(tmp_path):
    """A process that is killed at a random moment while saving without end leaves something to restore."""
    code = (
        "import os, sys; sys.path.insert(0, os.getcwd())\n"
        "from tests.train.test_checkpoint import Checkpointer, random_state\n"
        f"checkpointer = Checkpointer({str(tmp_path)!r})\n"
        "for step in range(10_000):\n"
        "    checkpointer.save(step, random_state(step % 7), {'position': step}, {})\n"
        "    print(step, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if int(line) == 4:
                process.kill()
                break
        written = [line for line in process.stdout if line.endswith("\n")]
    newest = int(written[-1]) if written else 4
    restored = Checkpointer(tmp_path).restore(random_state())
    assert restored.step in (newest, newest + 1)
    assert restored.iterator_state == {"position": restored.step}
    assert_same(restored.state, random_state(restored.step % 7))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints of a run, and one as its best."""
    folder = tmp_path_factory.mktemp("saved")
    checkpointer = Checkpointer(folder)
    for step in (1, 2):
        checkpointer.save(step, random_state(step), {"position": step}, CONFIG)
    checkpointer.save(1, random_state(1), None, CONFIG, best=True)
    checkpointer.close()
    return folder


def test_one_flipped_bit_anywhere_is_noticed(tmp_path, saved, caplog):
    """In every file of the newest checkpoint, at 3 places each; also by what evaluates and predicts."""
    rng = np.random.default_rng(0)
    files = [path.relative_to(saved) for path in sorted((saved / "last" / "2").rglob("*")) if path.is_file()]
    kinds = {path.name for path in files}
    assert {"metadata", "_METADATA", "manifest.ocdbt", "checksums.json"} < kinds and len(files) > 10
    for name in files:
        for place in rng.integers(0, (saved / name).stat().st_size, 3):
            folder = tmp_path / "run"
            shutil.copytree(saved, folder)
            damaged = bytearray((folder / name).read_bytes())
            damaged[place] ^= 1 << rng.integers(0, 8)
            (folder / name).write_bytes(damaged)
            caplog.clear()
            assert_same(load_variables(folder, which="last")[0], state_variables(random_state(1)))
            assert [f"damaged: {folder}/last/2 (" in line for line in caplog.messages] == [True], (name, place)
            restored = Checkpointer(folder).restore(random_state())
            assert restored.step == 1 and restored.iterator_state == {"position": 1}
            assert (folder / "last" / "2.damaged").is_dir()
            shutil.rmtree(folder)


@pytest.mark.parametrize("remains", ["nothing", "half", "zeros"])
def test_a_missing_or_torn_file_is_noticed(tmp_path, saved, remains, caplog, capfd):
    for path in sorted((saved / "last" / "2").rglob("*")):
        if not path.is_file() or path.stat().st_size < 2:
            continue
        shutil.copytree(saved, tmp_path / "run")
        victim = tmp_path / "run" / path.relative_to(saved)
        content = victim.read_bytes()
        victim.unlink()
        if remains != "nothing":
            victim.write_bytes(content[: len(content) // 2] if remains == "half" else bytes(len(content)))
        assert Checkpointer(tmp_path / "run").restore(random_state()).step == 1
        shutil.rmtree(tmp_path / "run")
    assert all(line.count("\n") == 0 for line in caplog.messages)
    assert capfd.readouterr() == ("", "")  # no traceback of Orbax or TensorStore


def test_no_intact_checkpoint_is_an_error_that_names_them_all(tmp_path, saved):
    shutil.copytree(saved, tmp_path / "run")
    for step in ("last/1", "last/2", "best/1"):
        (tmp_path / "run" / step / "meta" / "metadata").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError) as caught:
        Checkpointer(tmp_path / "run").restore(random_state())
    for word in ("last/1 (meta/metadata has 2 bytes instead of", "last/2", "Nothing was changed", "run/best"):
        assert word in str(caught.value)
    assert "remove" not in str(caught.value) and "delete" not in str(caught.value)
    for which in ("best", "last"):
        with pytest.raises(OSError, match=f"no checkpoint in {tmp_path}/run/{which} is intact"):
            load_variables(tmp_path / "run", which=which)
    assert sorted(tmp_path.rglob("*")) == before


def test_files_of_another_step_are_noticed(tmp_path, saved, caplog):
    shutil.copytree(saved, tmp_path / "run")
    last = tmp_path / "run" / "last"
    (last / "2").rename(last / "7")
    assert Checkpointer(tmp_path / "run").restore(random_state()).step == 1
    assert f"{last}/7 (it is the checkpoint of step 2); going back to {last}/1" in caplog.text


def test_checkpoints_without_checksums_load_and_say_so(tmp_path, caplog):
    """As versions before them wrote them, through Orbax's manager."""
    state = random_state(4)
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state._replace(key=jax.random.key_data(state.key)))
        if leaf.size
    }
    meta = {"iterator": {"position": 4}, "config": CONFIG, "metrics": {}, "keys": {"key": "threefry2x32"}}
    (tmp_path / "last").mkdir()
    with ocp.CheckpointManager(tmp_path / "last") as manager:
        args = ocp.args.Composite(state=ocp.args.StandardSave(leaves), meta=ocp.args.JsonSave(meta))
        manager.save(4, args=args)
    checkpointer = Checkpointer(tmp_path)
    restored = checkpointer.restore(state)
    assert_same(restored.state, state)
    assert restored[1:] == ({"position": 4}, CONFIG, 4, {})
    assert caplog.messages == [f"{tmp_path}/last/4 was written before checkpoints had checksums: read as it is"]
    checkpointer.save(5, random_state(5), None, CONFIG)
    assert checkpointer.restore(state).step == 5 and len(caplog.messages) == 1


def test_leftovers_of_a_killed_process_go_with_the_next_save(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, random_state(1), None, CONFIG)
    for name in ("2.writing", "2.writing.orbax-checkpoint-tmp", "3.orbax-checkpoint-tmp-7", "0.deleting"):
        (tmp_path / "last" / name).mkdir()
    (tmp_path / "last" / "0.damaged").mkdir()
    checkpointer = Checkpointer(tmp_path)
    assert checkpointer.restore(random_state()).step == 1 and len(list((tmp_path / "last").iterdir())) == 6
    checkpointer.save(2, random_state(2), None, CONFIG)
    assert sorted(path.name for path in (tmp_path / "last").iterdir()) == ["0.damaged", "1", "2"]


FULL = (
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    ValueError('RESOURCE_EXHAUSTED: Failed writing: "/x": Failed to write 9 bytes to file 8: No space left on device'),
)


@pytest.mark.parametrize("error", FULL, ids=["disk", "quota", "tensorstore"])
def test_a_full_disk_is_one_message(tmp_path, monkeypatch, error):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, random_state(1), None, CONFIG)

    def fill(path, *args, **options):
        path.mkdir()
        raise error

    monkeypatch.setattr(checkpointer._orbax, "save", fill)
    with pytest.raises(OSError, match=r"last/2: no space left; up to 0.0 MB wanted, [\d,.]+ MB free. .*last/1;"):
        checkpointer.save(2, random_state(2), None, CONFIG)
    assert [path.name for path in (tmp_path / "last").iterdir()] == ["1"]
    monkeypatch.undo()
    checkpointer.save(2, random_state(2), None, CONFIG)
    assert checkpointer.restore(random_state()).step == 2


def test_evaluations_are_of_one_checkpoint(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, random_state(1), None, CONFIG)
    assert checkpointer.read_evaluation(1) is None
    checkpointer.write_evaluation(1, {"best": 0.5})
    assert checkpointer.read_evaluation(1) == {"best": 0.5} and checkpointer.read_evaluation(2) is None
    again = Checkpointer(tmp_path)
    again.restore(random_state())
    assert again.read_evaluation(1) == {"best": 0.5}
    text = (tmp_path / "evaluation.json").read_text()
    (tmp_path / "evaluation.json").write_text(text.replace("0.5", "0.6"))
    assert again.read_evaluation(1) is None
    (tmp_path / "evaluation.json").write_text(text)
    again.save(1, random_state(1), None, CONFIG)  # another one of the same step
    assert again.read_evaluation(1) is None


def test_another_model_is_refused_by_name(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, random_state(), None, CONFIG)
    variables = state_variables(random_state())
    head = {"kernel": jnp.zeros((16, 5)), "bias": jnp.zeros(5)}
    params = {**variables["params"], "dense2": head, "dense9": head}
    del params["bn"]
    other = create_state(jax.random.key(0), {**variables, "params": params}, TX)
    with pytest.raises(ValueError) as error:
        checkpointer.restore(other)
    text = str(error.value)
    assert "params/dense2/kernel: float32[16, 3] in the checkpoint, float32[16, 5] in the model" in text
    assert "params/dense9/bias: missing in the checkpoint" in text
    assert "params/bn/scale: in the checkpoint only" in text
    assert str(tmp_path / "last" / "1") in text


@pytest.mark.parametrize("ema", [False, True])
def test_variables_for_inference(tmp_path, ema):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, random_state(1, ema=ema), None, CONFIG, best=True)
    checkpointer.save(2, random_state(2, ema=ema), None, CONFIG)
    for which, seed in (("best", 1), ("last", 2)):
        variables, config = load_variables(tmp_path, which=which)
        assert config == json.loads(json.dumps(CONFIG))
        assert_same(variables, state_variables(random_state(seed, ema=ema)))
    with pytest.raises(ValueError, match="'worst'"):
        load_variables(tmp_path, which="worst")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_variables(tmp_path / "nowhere")
    assert not os.path.exists(tmp_path / "nowhere")


def test_a_folder_that_cannot_be_written_is_named_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=f"cannot write to the output folder {tmp_path}/file/run"):
        Checkpointer(tmp_path / "file" / "run")
