"""Classifiers against torchvision: logits, features, gradient with respect to the input, and batch statistics after a
pass in training; by goldens that ``make_goldens.py`` wrote, and by those it writes now where torch is installed."""

import json

import numpy as np
import pytest
from compare import CLASSIFIERS, FEATURES, GOLDENS, HERE, beyond, compared, live, run_torch, torch_python

import jaxvision as jv


def check(name, golden):
    found = compared(name, golden)
    print(f"{name}, largest differences: {', '.join(f'{part} {value:.1e}' for part, value in found.items())}")
    assert {"logits", "gradient"} <= found.keys()
    assert ("statistics" in found) == (len(golden["scales"]) > 0)
    assert not beyond(found)
    return found


@pytest.mark.parametrize("name", GOLDENS)
def test_golden(name):
    golden = dict(np.load(HERE / "goldens" / f"{name}.npz"))
    levels = [part for part in golden if part in FEATURES]
    assert len(levels) >= 3 and levels == [part for part in check(name, golden) if part in FEATURES]


live_test = pytest.mark.skipif(
    torch_python() is None,
    reason="torch and torchvision are not installed, and JAXVISION_TORCH_PYTHON names no interpreter that has them",
)


@live_test
@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_live(name, tmp_path):
    check(name, live(name, tmp_path))


@live_test
@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_files_go_both_ways(name, tmp_path):
    run_torch("exchange.py", name, tmp_path / "model.pth")
    variables = jv.load_weights(name, tmp_path / "model.pth")
    np.savez(tmp_path / "arrays.npz", **jv.to_torch(name, variables))
    run_torch("exchange.py", name, tmp_path / "model.pth", tmp_path / "arrays.npz")


def test_measured():
    measured = json.loads((HERE / "measured.json").read_text())
    assert list(measured) == CLASSIFIERS
    for name, found in measured.items():
        assert {"logits", "gradient"} <= found.keys() and not beyond(found), name
