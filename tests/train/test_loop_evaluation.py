"""Evaluation in the loop: after the checkpoint, done again where it was not finished, tried before the first step."""

import json

import numpy as np
import pytest

from jaxvision.train.checkpoint import Checkpointer, load_variables
from jaxvision.train.state import state_variables
from tests.train.task import assert_same
from tests.train.test_loop import lines, run


def figure(state):
    """Falls, but for step 6: the best is neither the first nor the last."""
    return {"ap": 1.0 - 0.01 * int(state.step) + 0.5 * (int(state.step) == 6)}


class Fails:
    """An evaluation that raises at one step, once."""

    def __init__(self, step):
        self.step, self.calls = step, []

    def __call__(self, state):
        self.calls.append(int(state.step))
        if state.step == self.step:
            self.step = None
            raise RuntimeError("the evaluation is broken")
        return figure(state)


OPTIONS = {"eval_every": 2, "best_metric": "ap", "patience": 3, "checkpoint_every": 4}


@pytest.mark.parametrize("step", [2, 6, 12])
def test_an_evaluation_that_ends_the_process_loses_nothing(tmp_path, step):
    """What is kept, counted and logged is that of a run whose evaluations all went well."""
    whole, _ = run(tmp_path / "whole", 20, evaluate=figure, **OPTIONS)
    assert whole.step == 12  # out of patience
    evaluate = Fails(step)
    with pytest.raises(RuntimeError, match="is broken"):
        run(tmp_path / "parts", 20, evaluate=evaluate, **OPTIONS)
    assert max(int(path.name) for path in (tmp_path / "parts" / "last").iterdir()) == step
    parts, _ = run(tmp_path / "parts", 20, evaluate=evaluate, **OPTIONS)
    assert evaluate.calls.count(step) == 2 and len(evaluate.calls) == 7
    assert_same(parts, whole)
    for which in ("last", "best"):
        kept, wanted = (load_variables(tmp_path / name, which=which)[0] for name in ("parts", "whole"))
        assert_same(kept, wanted)
    assert [path.name for path in (tmp_path / "parts" / "best").iterdir()] == ["6"]
    found, wanted = ([(line["step"], line.get("ap")) for line in lines(tmp_path / name)] for name in ("parts", "whole"))
    assert found == wanted
    counters = [json.loads((tmp_path / name / "evaluation.json").read_text())["value"] for name in ("parts", "whole")]
    for value in counters:
        del value["checkpoint"]  # which of the two it is of
    assert (
        counters[0]
        == counters[1]
        == {"step": 12, "best": figure(whole._replace(step=6))["ap"], "stale": 3, "metric": "ap"}
    )


def test_killed_between_the_best_checkpoint_and_the_note_of_it(tmp_path, monkeypatch):
    """The evaluation is done, logged and its state kept, and the process ends: nothing is counted or written twice."""

    def die(*_):
        raise KeyboardInterrupt

    whole, _ = run(tmp_path / "whole", 8, evaluate=figure, **OPTIONS)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpointer, "write_evaluation", die)
        run(tmp_path / "parts", 8, evaluate=figure, **OPTIONS)
    parts, _ = run(tmp_path / "parts", 8, evaluate=figure, **OPTIONS)
    assert_same(parts, whole)
    assert_same(load_variables(tmp_path / "parts")[0], load_variables(tmp_path / "whole")[0])
    found, wanted = ([(line["step"], line.get("ap")) for line in lines(tmp_path / name)] for name in ("parts", "whole"))
    assert found == wanted


def test_an_evaluation_that_was_finished_is_not_done_again(tmp_path, capsys):
    evaluate = Fails(None)
    run(tmp_path, 4, evaluate=evaluate, **OPTIONS)
    state, _ = run(tmp_path, 4, evaluate=evaluate, **OPTIONS)
    assert evaluate.calls == [2, 4] and "nothing to train" in capsys.readouterr().out
    (tmp_path / "evaluation.json").write_text("{")  # damaged: then it is
    again, _ = run(tmp_path, 4, evaluate=evaluate, **OPTIONS)
    assert evaluate.calls == [2, 4, 4]
    assert_same(again, state)
    run(tmp_path, 6, evaluate=evaluate, **OPTIONS)
    assert evaluate.calls == [2, 4, 4, 6]


def test_a_run_out_of_patience_has_ended(tmp_path, capsys):
    state, _ = run(tmp_path, 20, evaluate=figure, **OPTIONS)
    again, _ = run(tmp_path, 20, evaluate=figure, **OPTIONS)
    assert_same(again, state)
    assert "already at step 12 of 20: ap is no better since 3 evaluations" in capsys.readouterr().out
    assert run(tmp_path, 20, evaluate=figure, **{**OPTIONS, "patience": 4})[0].step == 14


def test_another_metric_starts_its_own_count(tmp_path):
    run(tmp_path, 4, evaluate=lambda state: {"ap": 0.9, "val": float(state.step)}, eval_every=2, best_metric="ap")
    state, _ = run(tmp_path, 6, evaluate=lambda _: {"ap": 0.1, "val": 0.2}, eval_every=2, best_metric="-val")
    assert_same(load_variables(tmp_path, which="best")[0], state_variables(state))


def test_what_can_be_checked_is_checked_before_the_first_step(tmp_path, capsys):
    names = {f"bbox/AP{threshold}": 0.5 for threshold in range(50, 100, 5)} | {"bbox/AP/cat": 0.5, "val_loss": 1.0}
    checked = []

    def check(state):
        checked.append(int(state.step))
        return names

    options = {"evaluate": lambda _: names, "check": check, "eval_every": 2}
    with pytest.raises(ValueError) as caught:
        run(tmp_path, 4, best_metric="bbox/AR", **options)
    first, *rest = str(caught.value).splitlines()
    assert first == "best_metric='bbox/AR' is none of the figures of an evaluation:"
    assert len(rest) == 2 and all(len(line) <= 80 for line in rest)
    assert ", ".join(map(str.strip, rest)).replace(",,", ",").split(", ") == sorted(names.keys() - {"bbox/AP/cat"})
    with pytest.raises(TypeError, match="evaluate gave ap='high', which is not a number"):
        run(tmp_path, 4, evaluate=options["evaluate"], check=lambda _: {"ap": "high"})
    assert "step" not in capsys.readouterr().out and not (tmp_path / "metrics.jsonl").exists()
    run(tmp_path, 2, best_metric="val_loss", **options)
    run(tmp_path, 4, best_metric="val_loss", **options)
    run(tmp_path, 4, best_metric="val_loss", **options)  # has ended: nothing is left to check
    assert checked == [0, 0, 2]


def test_a_finished_run_refuses_other_options(tmp_path):
    config = {"steps": 4, "optimizer": {"rate": 0.1, "name": "sgd"}, "data": {"directory": "a"}, "output": "x"}
    state, _ = run(tmp_path, 4, config=config)
    other = {"steps": 3, "optimizer": {"rate": 0.2, "name": "sgd"}, "data": {"directory": "b"}, "output": "y", "new": 1}
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    with pytest.raises(ValueError) as caught:
        run(tmp_path, 3, config=other, may_change=("output", "data"))
    assert str(caught.value).splitlines()[1:-1] == [
        "  new was None, is 1 now", "  optimizer.rate was 0.1, is 0.2 now", "  steps was 4, is 3 now",
    ]  # fmt: skip
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before
    free = {**config, "data": {"directory": "b"}, "output": "y"}
    assert_same(run(tmp_path, 4, config=free, may_change=("output", "data"))[0], state)
    with pytest.raises(ValueError, match=r"data.directory was a, is b now"):
        run(tmp_path, 4, config=free, may_change=("output", "data.dir"))
    longer, _ = run(tmp_path, 6, config={**other, "steps": 6})
    assert longer.step == 6


def test_damage_is_trained_again(tmp_path, caplog):
    """The newest checkpoint is damaged: the run goes back one and ends where it would have."""
    whole, _ = run(tmp_path / "whole", 12, evaluate=figure, **OPTIONS)
    run(tmp_path / "parts", 8, evaluate=figure, **OPTIONS)
    (victim, *_) = (tmp_path / "parts" / "last" / "8" / "state" / "d").iterdir()
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 4
    victim.write_bytes(content)
    parts, _ = run(tmp_path / "parts", 12, evaluate=figure, **OPTIONS)
    assert f"going back to {tmp_path}/parts/last/6" in caplog.text
    assert_same(parts, whole)
    assert_same(load_variables(tmp_path / "parts")[0], load_variables(tmp_path / "whole")[0])
    found, wanted = ([line["step"] for line in lines(tmp_path / name)] for name in ("parts", "whole"))
    assert found == wanted
    assert np.isfinite(parts.params["dense1"]["kernel"]).all()
