"""The public surface: names, signatures and docstrings."""

import importlib
import inspect
import pkgutil

import pytest

import jaxvision as jv

MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(jv.__path__, "jaxvision.")
    if not info.name.rsplit(".", 1)[1].startswith("_")
)


def public(module):
    """What a module defines itself: its ``__all__``, or every name without a leading underscore."""
    for name in getattr(module, "__all__", vars(module)):
        value = getattr(module, name)
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__ and callable(value):
            yield name, value


@pytest.mark.parametrize("name", MODULES)
def test_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    missing = [item for item, value in public(module) if not value.__doc__]
    assert not missing, f"{name}: no docstring for {missing}"


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("jaxvision.ops.")])
def test_kernels_take_key_first_and_options_by_keyword(name):
    for item, function in public(importlib.import_module(name)):
        if not inspect.isfunction(function):
            continue
        parameters = list(inspect.signature(function).parameters.values())
        names = [parameter.name for parameter in parameters]
        assert "key" not in names[1:], f"{name}.{item}: the key comes first"
        optional = [p.name for p in parameters if p.default is not p.empty and p.kind is not p.KEYWORD_ONLY]
        assert not optional, f"{name}.{item}: {optional} must be keyword-only"


def test_fixed_signatures():
    def keyword_only(function):
        parameters = inspect.signature(function).parameters.values()
        return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}

    assert keyword_only(jv.ops.nms) == {"iou_threshold", "max_output"}
    assert keyword_only(jv.ops.roi_align) == {"size", "spatial_scale", "sampling_ratio", "aligned"}
    assert keyword_only(jv.ops.max_pool_with_indices) == {"window", "strides", "padding", "ceil_mode"}
    assert keyword_only(jv.ops.max_unpool) == {"output_size"}
