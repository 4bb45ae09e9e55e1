import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from jaxvision.train.checkpoint import Checkpointer, load_variables
from jaxvision.train.loop import NonFiniteLossError, fit
from jaxvision.train.optim import optimizer, schedule
from jaxvision.train.parallel import parallelize
from jaxvision.train.state import state_variables
from jaxvision.train.step import make_train_step, mean_over, value_and_grads
from jaxvision.train.writers import JsonlWriter
from tests.train import train_forever
from tests.train.task import Batches, Net, assert_same, make_loss_fn, make_state

RATE = schedule("cosine", learning_rate=0.1, total_steps=20, warmup_steps=4)
TX = optimizer("adamw", learning_rate=RATE, weight_decay=1e-2)
ROOT = pathlib.Path(__file__).parent.parent.parent


def make_parallel(mode="jit", devices=None):
    grad_fn = value_and_grads(make_loss_fn(Net("data" if mode == "pmap" else None), noise=0.1))
    if mode == "pmap":
        grad_fn = mean_over(grad_fn, "data")
    step = make_train_step(grad_fn, TX, learning_rate=RATE, ema_decay=0.9)
    return parallelize(step, mode=mode, devices=devices or jax.devices()[:1])


ONE = make_parallel()


def run(directory, steps, *, parallel=ONE, batches=None, **options):
    options = {"config": {"steps": 20}, "checkpoint_every": 5, "log_every": 2, **options}
    checkpointer, batches = Checkpointer(directory), batches or Batches()
    state = fit(
        parallel,
        make_state(TX, ema=True),
        batches,
        total_steps=steps,
        checkpointer=checkpointer,
        writers=[JsonlWriter(directory)],
        **options,
    )
    checkpointer.close()
    return state, batches


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_stop_and_resume_is_uninterrupted(tmp_path, mode, capsys):
    parallel = make_parallel(mode, jax.devices()[:2])
    whole, batches = run(tmp_path / "whole", 12, parallel=parallel)
    run(tmp_path / "parts", 7, parallel=parallel)
    parts, again = run(tmp_path / "parts", 12, parallel=parallel)
    assert_same(parts, whole)
    assert parts.step == 12 and again.position == batches.position == 12
    assert "going on after step 7" in capsys.readouterr().out
    steps = [line["step"] for line in lines(tmp_path / "parts")]
    assert steps == [2, 4, 5, 6, 7, 8, 10, 12]  # every second, and each checkpoint
    last = next(line for line in lines(tmp_path / "whole") if line["step"] == 12)
    assert lines(tmp_path / "parts")[-1]["loss"] == last["loss"]


def test_a_finished_run_is_left_alone(tmp_path, capsys):
    state, _ = run(tmp_path, 4)
    before = (tmp_path / "metrics.jsonl").read_text()
    again, _ = run(tmp_path, 4)
    assert_same(again, state)
    assert "nothing to train" in capsys.readouterr().out
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_metrics_are_means_over_the_interval(tmp_path, capsys):
    run(tmp_path / "each", 4, log_every=1)
    run(tmp_path / "both", 4, log_every=2)
    each, both = lines(tmp_path / "each"), lines(tmp_path / "both")
    for name in ("loss", "penalty", "right", "learning_rate"):
        means = [(each[i][name] + each[i + 1][name]) / 2 for i in (0, 2)]
        np.testing.assert_allclose([line[name] for line in both], means, rtol=1e-6)
    assert both[1]["images_per_second"] > 0 and both[1]["data_seconds"] >= 0
    out = capsys.readouterr().out
    assert "compiled in" in out and "step 4/4  eta 0:00:00  loss " in out


def test_first_non_finite_loss_stops_the_run(tmp_path):
    with pytest.raises(NonFiniteLossError) as caught:
        run(tmp_path, 20, batches=Batches(fault_at=6), log_every=4)
    error = caught.value
    assert error.step == 7 and error.terms == ["cross_entropy"]  # not the penalty, nor the sum
    assert error.image_ids == list(range(600, 616))
    assert "step 7: cross_entropy not finite; images of the batch: 600, 601" in str(error)
    good, _ = run(tmp_path / "good", 5)
    assert_same(Checkpointer(tmp_path).restore(good).state, good)


def test_no_checkpoint_is_written_over_an_unseen_fault(tmp_path):
    with pytest.raises(NonFiniteLossError):
        run(tmp_path, 20, batches=Batches(fault_at=8), log_every=1000)
    assert sorted(path.name for path in (tmp_path / "last").iterdir()) == ["5"]


def test_best_is_kept_and_patience_ends_the_run(tmp_path, capsys):
    values = iter([0.1, 0.5, 0.3, float("nan"), 0.4, 0.9])
    states = []

    def evaluate(state):
        states.append(state)
        return {"ap": next(values)}

    options = {"evaluate": evaluate, "eval_every": 2, "best_metric": "ap", "patience": 3}
    state, _ = run(tmp_path, 8, **options)  # the fourth evaluation is the second without gain
    assert state.step == 8
    state, _ = run(tmp_path, 20, **options)  # remembers it
    assert state.step == 10
    assert "no better since 3" in capsys.readouterr().out
    variables, config = load_variables(tmp_path, which="best")
    assert_same(variables, state_variables(states[1]))
    assert config == {"steps": 20}
    assert_same(load_variables(tmp_path, which="last")[0], state_variables(states[-1]))
    assert [line["ap"] for line in lines(tmp_path) if "ap" in line] == [0.1, 0.5, 0.3, None, 0.4]


def test_lower_is_better_with_a_minus(tmp_path):
    values = iter([0.5, 0.2, 0.3])
    run(tmp_path, 6, evaluate=lambda state: {"loss": next(values)}, eval_every=2, best_metric="-loss")
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["4"]
    with pytest.raises(ValueError, match="'ap' is none of the figures of an evaluation:\n  loss"):
        run(tmp_path / "b", 2, evaluate=lambda state: {"loss": 0.0}, eval_every=2, best_metric="ap")
    with pytest.raises(ValueError, match="needs evaluate"):
        run(tmp_path / "c", 2, best_metric="ap")


def test_batches_that_end_and_other_configs(tmp_path, capsys):
    class Few(Batches):
        def __next__(self):
            if self.position == 6:
                raise StopIteration
            return super().__next__()

    with pytest.raises(ValueError, match="ended before step 7"):
        run(tmp_path, 20, batches=Few())
    run(tmp_path, 8, config={"steps": 8, "size": (1, 2)})
    assert "note: steps was 20, is 8 now" in capsys.readouterr().out
    run(tmp_path, 9, config={"steps": 8, "size": (1, 2)})
    assert "note" not in capsys.readouterr().out
    with pytest.raises(TypeError, match="JSON"):
        run(tmp_path / "b", 9, config={"rate": RATE})


def test_another_number_of_processes_is_refused(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(3, make_state(TX, ema=True), [{"position": 3}, {"position": 3}], {}, {"best": None, "stale": 0})
    checkpointer.close()
    with pytest.raises(ValueError, match="step 3 was written by 2 processes"):
        run(tmp_path, 5)


def test_new_shapes_are_announced(tmp_path, capsys):
    class Growing(Batches):
        def __next__(self):
            self.size = 8 if self.position < 2 else 16
            return super().__next__()

    run(tmp_path, 4, batches=Growing())
    out = capsys.readouterr().out
    assert out.count("compiled in") == 2 and "(8, 5), (8,)" in out and "(16, 5), (16,)" in out


def test_runs_outside_the_main_thread(tmp_path):
    thread = threading.Thread(target=run, args=(tmp_path, 2))
    thread.start()
    thread.join()
    assert (tmp_path / "last" / "2").is_dir()


def start(folder, steps):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.train.train_forever", str(folder), str(steps)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment,
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_loses_nothing(tmp_path, number):
    with start(tmp_path / "run", 10_000) as process:
        for line in process.stdout:
            if line.startswith("step 12/"):
                process.send_signal(number)
        # SIGKILL leaves the last checkpoint; the others finish their step and save.
    newest = max(int(path.name) for path in (tmp_path / "run" / "last").iterdir() if path.name.isdigit())
    assert newest == 10 if number == signal.SIGKILL else newest >= 12
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)

    resumed = train_forever.run(tmp_path / "run", newest + 3, batches=Batches())
    whole = train_forever.run(tmp_path / "whole", newest + 3, batches=Batches())
    assert_same(resumed, whole)
    steps = [line["step"] for line in lines(tmp_path / "run")]
    assert steps == sorted(set(steps))
