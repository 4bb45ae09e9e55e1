"""Whatever happens to a training, at whatever moment: the same command again goes on, and the end is that of one to
which nothing happened. Killed, interrupted, out of space, started twice, damaged; seeded, one after the other."""

import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from jaxvision.train.checkpoint import Checkpointer
from tests.train import fragile
from tests.train.task import assert_same, make_state

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture
def disk(tmp_path):
    """(folder, ways to fill it and to empty it): a small disk where the system lends one, else as if it were."""
    folder, full = tmp_path / "disk", tmp_path / "full"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        yield folder, full.touch, full.unlink
        return
    filler = folder / "filler"

    def fill():
        with filler.open("wb", buffering=0) as file:
            block = b"x" * 4096
            try:
                while True:
                    file.write(block)
            except OSError:
                pass

    try:
        yield folder, fill, filler.unlink
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


class Run:
    """The command in a process, and what it says."""

    def __init__(self, folder, steps):
        self.folder, self.steps, self.said = folder, steps, []
        beside = folder.parent.parent
        # Standard error in a file: a pipe that nobody reads would stop the process.
        self.errors = (beside / f"errors{time.monotonic_ns()}").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.train.fragile", str(folder), str(steps), str(beside / "full")],
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"},
        )

    def wait_for(self, pattern):
        """What the pattern captured, as a number."""
        for line in self.process.stdout:
            self.said.append(line)
            if found := re.search(pattern, line):
                return int(found[1] or 0)
        raise AssertionError(f"no {pattern} in {''.join(self.said)} {self.finish()}")

    def finish(self, *, quiet=True):
        """(exit status, all that was said); no traceback, if ``quiet``."""
        self.said += self.process.stdout
        self.process.stdout.close()
        code = self.process.wait(timeout=120)
        self.errors.seek(0)
        self.warned = errors = self.errors.read()
        self.errors.close()
        assert not (quiet and "Traceback" in errors), errors
        return code, "".join(self.said) + errors


def steps_of(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints" / "last").iterdir() if path.name.isdecimal())


def flip(path, rng):
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def hurt(kind, run, rng, fill, empty):
    """The step from which the next start must go on, at least."""
    if kind == "sigkill" or kind == "flip":
        run.process.kill()
        assert run.finish()[0] == -signal.SIGKILL
        steps = steps_of(run.folder)
        if kind == "sigkill" or len(steps) < 2:
            return steps[-1] if steps else 0
        files = sorted(path for path in (run.folder / f"checkpoints/last/{steps[-1]}").rglob("*") if path.is_file())
        flip(rng.choice([path for path in files if path.stat().st_size]), rng)
        return steps[-2]
    if kind == "full":
        fill()
        code, said = run.finish()
        empty()
        assert code == 1 and "no space left" in said.lower() and " free" in said, said
        assert said.count("error:") == 1
        steps = steps_of(run.folder)
        assert not steps or f"last/{steps[-1]}" in said, said
        return steps[-1] if steps else 0
    if kind == "twice":
        metrics = run.folder / "metrics.jsonl"
        run.process.send_signal(signal.SIGSTOP)  # lest it end before the second one has begun
        before = metrics.read_bytes()
        code, said = Run(run.folder, run.steps).finish()
        assert code == 1 and f"process {run.process.pid}" in said and "step" not in said, said
        run.process.send_signal(signal.SIGCONT)
        for _ in range(3):
            run.wait_for(r"^step (\d+)/")
        assert metrics.read_bytes().startswith(before)
        kind = "sigterm"
    number = signal.SIGTERM if kind == "sigterm" else signal.SIGINT
    run.process.send_signal(number)
    if kind == "sigint twice":
        time.sleep(rng.uniform(0, 0.1))
        run.process.send_signal(number)
    code, said = run.finish(quiet=kind != "sigint twice")  # the second may find the interpreter on its way out
    assert code == 128 + number or (kind == "sigint twice" and code == -number), said
    assert number.name in said
    if found := re.search(r"after step (\d+)", said.split(number.name, 1)[1]):
        assert int(found[1]) == steps_of(run.folder)[-1]
    else:
        assert kind == "sigint twice", said
    return max(steps_of(run.folder), default=0)


KINDS = ["sigkill", "flip", "full", "sigint", "twice", "sigterm", "sigint twice"]


def result(folder):
    """(state, state of the best step, metrics without times)."""
    last = Checkpointer(folder / "checkpoints").restore(make_state(fragile.TX, ema=True))
    (best,) = (folder / "checkpoints" / "best").iterdir()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = {"images_per_second", "data_seconds"}
    metrics = [{name: value for name, value in line.items() if name not in times} for line in lines]
    return last, int(best.name), metrics


@pytest.mark.parametrize(
    ("seed", "steps", "moments"),
    [
        (1, 50, ["sigkill", "flip", "full"]),
        pytest.param(2, 120, 3 * KINDS[:6] + 2 * KINDS[6:], marks=pytest.mark.slow),
    ],
)
def test_random_moments(seed, steps, moments, disk, tmp_path):
    rng = random.Random(seed)
    folder, fill, empty = disk
    rng.shuffle(moments)
    at_least, damaged = 0, False
    for kind in moments:
        run = Run(folder / "run", steps)
        begin = run.wait_for(r"(?:going on after step (\d+)|training \d+ steps)")
        assert begin >= at_least, (kind, begin, at_least)
        run.wait_for(rf"^step ({begin + rng.randint(1, 5)})/")
        time.sleep(rng.uniform(0, 0.1))
        at_least = hurt(kind, run, rng, fill, empty)
        assert [line for line in run.warned.splitlines() if "damaged" in line][1:] == []
        assert ("damaged" in run.warned) == damaged, run.warned
        damaged = kind == "flip" and max(steps_of(run.folder), default=0) > at_least
    whole = tmp_path / "whole" / "run"  # to which nothing happened
    for path in (folder / "run", whole):
        path.mkdir(parents=True, exist_ok=True)
        code, said = Run(path, steps).finish()
        assert code == 0 and "finished\n" in said, said
    (last, best, metrics), (whole_last, whole_best, whole_metrics) = result(folder / "run"), result(whole)
    assert_same(last.state, whole_last.state)
    assert last[1:] == whole_last[1:] and last.step == steps
    assert best == whole_best and 0 < best < steps
    assert metrics == whole_metrics
