"""The committed table of classifiers says what the code, the records and the published figures say."""

import inspect
import re

import pytest

import jaxvision as jv
from experiments.zoo_table import COLUMNS, INTRODUCTION, TABLE

NAMES = jv.list_models(task="classification")
TRACED = ("parameters", "multiply-adds", "field / stride")
# The default run traces one of each family; the others differ in depth, width or norms alone.
QUICK = {
    "alexnet_2012",
    "densenet121",
    "googlenet",
    "inception_v3",
    "mobilenet_v2",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x1_0",
    "squeezenet1_1",
    "vgg_a_lrn",
}

# torchvision 0.29 meta["_ops"]: 1e9 multiply-adds at 224 pixels, or 299 for Inception.
TORCHVISION = {
    "alexnet": 0.714,
    "vgg11": 7.609,
    "vgg11_bn": 7.609,
    "vgg13": 11.308,
    "vgg13_bn": 11.308,
    "vgg16": 15.470,
    "vgg16_bn": 15.470,
    "vgg19": 19.632,
    "vgg19_bn": 19.632,
    "resnet18": 1.814,
    "resnet34": 3.664,
    "resnet50": 4.089,
    "resnet101": 7.801,
    "resnet152": 11.514,
    "resnext50_32x4d": 4.230,
    "resnext101_32x8d": 16.414,
    "resnext101_64x4d": 15.460,
    "wide_resnet50_2": 11.398,
    "wide_resnet101_2": 22.753,
    "squeezenet1_0": 0.819,
    "squeezenet1_1": 0.349,
    "densenet121": 2.834,
    "densenet161": 7.728,
    "densenet169": 3.360,
    "densenet201": 4.291,
    "googlenet": 1.498,
    "inception_v3": 5.713,
    "shufflenet_v2_x0_5": 0.040,
    "shufflenet_v2_x1_0": 0.145,
    "shufflenet_v2_x1_5": 0.296,
    "shufflenet_v2_x2_0": 0.583,
    "mobilenet_v2": 0.301,
    "mnasnet0_5": 0.104,
    "mnasnet0_75": 0.215,
    "mnasnet1_0": 0.314,
    "mnasnet1_3": 0.526,
}
RESNET_PAPER = {  # arXiv:1512.03385, table 1
    "resnet18": 1.8,
    "resnet34": 3.6,
    "resnet50_paper": 3.8,
    "resnet101_paper": 7.6,
    "resnet152_paper": 11.3,
}


def committed():
    rows = [line[2:-2].split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): dict(zip(COLUMNS, row, strict=True)) for row in rows}


def test_every_classifier_has_a_row():
    assert list(committed()) == NAMES
    assert TABLE.read_text().startswith(INTRODUCTION)


@pytest.mark.parametrize("name", NAMES)
def test_row_says_what_the_records_say(name):
    row = committed()[name]
    expected = {column: cell(name) for column, cell in COLUMNS.items() if column not in TRACED}
    assert {column: row[column] for column in expected} == expected, "run experiments/zoo_table.py"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in NAMES]
)
def test_row_says_what_the_code_does(name):
    row = committed()[name]
    expected = {column: COLUMNS[column](name) for column in TRACED}
    assert {column: row[column] for column in expected} == expected, "run experiments/zoo_table.py"


def billions(name):
    return float(committed()[name]["multiply-adds"].split()[0])


def test_multiply_adds_equal_torchvision():
    assert {name: billions(name) for name in TORCHVISION} == TORCHVISION


def test_multiply_adds_agree_with_the_resnet_paper():
    for name, published in RESNET_PAPER.items():
        assert abs(billions(name) / published - 1) < 0.03


@pytest.mark.parametrize("name", NAMES)
def test_paper_is_the_one_of_the_model_file(name):
    """By its arXiv number where it has one; AlexNet's first paper has none."""
    module = inspect.getmodule(type(jv.get_model(name)))
    number = re.search(r"arxiv.org/abs/([\d.]+)\)", committed()[name]["paper"])
    assert (f"arXiv:{number[1]}" if number else "NeurIPS 2012") in module.__doc__
