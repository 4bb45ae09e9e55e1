"""Every model's state dict has torchvision's names and shapes, today's and those of older checkpoints."""

import json
import re
from pathlib import Path

import fill  # pytest puts this folder on the path
import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

import jaxvision as jv
from jaxvision.weights.convert import template

NAMES = json.loads((Path(__file__).parent / "goldens" / "names.json").read_text())


def zeros(name):
    """A model's state dict; its zeros take no memory."""
    model = jv.get_model(name)
    leaves = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in template(model).items()}
    return model, jv.to_torch(model, unflatten_dict(leaves))


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes(name):
    _, state = zeros(name)
    assert fill.digest({key: value.shape for key, value in state.items()}) == NAMES[name]


def test_published_detectors_have_older_names():
    model, state = zeros("maskrcnn_resnet50_fpn")
    renames = [
        (r"(inner|layer)_blocks\.(\d)\.0\.", r"\1_blocks.\2."),
        (r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
        (r"mask_head\.(\d)\.0\.", lambda found: f"mask_head.mask_fcn{int(found[1]) + 1}."),
    ]
    older = dict(state)
    for pattern, replacement in renames:
        older = {re.sub(pattern, replacement, key): value for key, value in older.items()}
    assert len(older.keys() - state.keys()) == 26
    variables = jv.from_torch(model, older)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 44_454_513
