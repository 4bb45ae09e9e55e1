"""Two processes, eight virtual devices and one device train to the same parameters: same examples, same mixing, batch
norm over the whole batch; and two processes stop and go on together."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.train.two_processes import RUNS, evaluations, ten_steps

ROOT = pathlib.Path(__file__).parent.parent.parent
# Relative to the length of the vector: a bias that started at zero may differ by 1e-4 of itself in float32, where one
# activation that rounding moves over the kink of a ReLU is enough.
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-10}


@pytest.fixture(scope="module")
def alone():
    return {dtype: ten_steps("jit", dtype, 1) for dtype in TOLERANCE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the two processes left: one with two devices each, so that there are four."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=2"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.two_processes", coordinator, str(process), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        for process in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    (folder / "output0").write_text(outputs[0])
    (folder / "output1").write_text(outputs[1])
    return folder


def assert_same_training(found, wanted, dtype):
    (vector, losses), (expected, expected_losses) = found, wanted
    assert vector.dtype == expected.dtype == dtype and vector.shape == expected.shape
    assert np.linalg.norm(vector - expected) < TOLERANCE[dtype] * np.linalg.norm(expected)
    np.testing.assert_allclose(losses, expected_losses, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize(("mode", "dtype"), RUNS)
def test_eight_devices_equal_one(mode, dtype, alone):
    assert jax.device_count() == 8
    assert_same_training(ten_steps(mode, dtype), alone[dtype], dtype)


@pytest.mark.parametrize(("mode", "dtype"), RUNS)
def test_two_processes_equal_one(mode, dtype, alone, folder):
    name = f"{mode}_{np.dtype(dtype)}"
    for process in range(2):
        results = np.load(folder / f"process{process}.npz")
        assert_same_training((results[name], results[f"{name}_losses"]), alone[dtype], dtype)


def test_two_processes_evaluate_as_one(folder):
    """Each its share, and both get the figures of all."""
    alone = evaluations(jax.devices()[:1])
    assert 0.05 < alone["bbox/AP"] < 1
    for process in range(2):
        figures = json.loads(str(np.load(folder / f"process{process}.npz")["figures"]))
        assert figures.keys() == alone.keys()
        for name, value in alone.items():
            np.testing.assert_allclose(figures[name], value, rtol=1e-6 if "loss" in name else 0, err_msg=name)


def test_two_processes_stop_and_go_on_together(folder):
    """The second one alone gets SIGTERM in its third step; they agree at its checkpoint, before the evaluation."""
    for process in range(2):
        results = np.load(folder / f"process{process}.npz")
        assert results["stopped"] == 128 + signal.SIGTERM
        np.testing.assert_array_equal(results["parts"], results["whole"])
    assert "stopped by SIGTERM after step 3" in (folder / "output0").read_text()
    assert "step 6/6" not in (folder / "output1").read_text()  # the first one speaks
    steps = [json.loads(line)["step"] for line in (folder / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == 6
    for run in ("whole", "parts"):
        assert [path.name for path in (folder / run / "best").iterdir()] == ["6"]
