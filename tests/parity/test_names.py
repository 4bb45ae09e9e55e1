"""Every model's state dict has torchvision's names and shapes, today's and those of older checkpoints."""

import re

import fill  # pytest puts this folder on the path
import jax
import numpy as np
import pytest
from compare import DETECTORS, GOLDENS, NAMES

import jaxvision as jv
from jaxvision.weights.convert import torch_shapes

DEPTHS = [pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name not in [*GOLDENS, *DETECTORS]]


@pytest.mark.parametrize("name", [*GOLDENS, *DETECTORS, *DEPTHS])
def test_names_and_shapes(name):
    assert fill.digest(torch_shapes(jv.get_model(name))) == NAMES[name]


def older(state, *renames):
    """The state dict under the names of older checkpoints."""
    for pattern, replacement in renames:
        state = {re.sub(pattern, replacement, key): value for key, value in state.items()}
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in state.items()}


def test_published_detectors_have_older_names():
    state = torch_shapes(jv.get_model("maskrcnn_resnet50_fpn"))
    renamed = older(
        state,
        (r"(inner|layer)_blocks\.(\d)\.0\.", r"\1_blocks.\2."),
        (r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
        (r"mask_head\.(\d)\.0\.", lambda found: f"mask_head.mask_fcn{int(found[1]) + 1}."),
    )
    assert len(renamed.keys() - state.keys()) == 26
    variables = jv.from_torch("maskrcnn_resnet50_fpn", renamed)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 44_454_513


def test_published_retinanets_have_older_names():
    state = torch_shapes(jv.get_model("retinanet_resnet50_fpn"))
    renamed = older(
        state,
        (r"(inner|layer)_blocks\.(\d)\.0\.", r"\1_blocks.\2."),
        (r"_head\.conv\.(\d)\.0\.", lambda found: f"_head.conv.{2 * int(found[1])}."),
    )
    assert len(renamed.keys() - state.keys()) == 12 + 16
    variables = jv.from_torch("retinanet_resnet50_fpn", renamed)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 34_068_119


def test_published_densenets_have_older_names():
    state = torch_shapes(jv.get_model("densenet121"))
    renamed = older(state, (r"(denselayer\d+\.)(norm|conv)([12])\.", r"\1\2.\3."))
    assert len(renamed.keys() - state.keys()) == 58 * (4 + 4 + 2)
    variables = jv.from_torch("densenet121", renamed)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 7_978_856
