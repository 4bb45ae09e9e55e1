"""Classifiers against torchvision: logits, features, gradient with respect to the input, and batch statistics after a
pass in training; by goldens that ``make_goldens.py`` wrote, and by those it writes now where torch is installed."""

import json

import numpy as np
import pytest
from compare import AUXILIARY, CLASSIFIERS, FEATURES, HERE, differences, live, torch_python  # pytest adds this folder

GOLDENS = sorted(path.stem for path in (HERE / "goldens").glob("*.npz") if path.stem in CLASSIFIERS)
BOUNDS = dict.fromkeys(("logits", *FEATURES), 0.0001) | dict.fromkeys(("gradient", "statistics", *AUXILIARY), 0.001)


def check(name, golden):
    found = differences(name, golden)
    print(f"{name}, largest differences: {', '.join(f'{part} {value:.1e}' for part, value in found.items())}")
    assert {"logits", "gradient"} <= found.keys()
    assert ("statistics" in found) == (len(golden["scales"]) > 0)
    far = {part: value for part, value in found.items() if not value < BOUNDS[part]}
    assert not far
    return found


@pytest.mark.parametrize("name", GOLDENS)
def test_golden(name):
    golden = dict(np.load(HERE / "goldens" / f"{name}.npz"))
    levels = [part for part in golden if part in FEATURES]
    assert len(levels) >= 3 and levels == [part for part in check(name, golden) if part in FEATURES]


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_live(name, tmp_path):
    if torch_python() is None:
        pytest.skip(
            "torch and torchvision are not installed, and JAXVISION_TORCH_PYTHON names no interpreter with them"
        )
    check(name, live(name, tmp_path))


def test_measured_within_the_bounds():
    measured = json.loads((HERE / "measured.json").read_text())
    assert list(measured) == CLASSIFIERS
    for name, parts in measured.items():
        assert all(value < BOUNDS[part] for part, value in parts.items()), name
