import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
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
