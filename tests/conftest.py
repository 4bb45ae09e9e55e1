"""A strict session: eight virtual CPU devices, rank promotion raises, warnings are errors (pyproject.toml), and the
jaxtyping import hook checks every annotated shape of the package (``--jaxtyping-packages``)."""

import logging
import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# Files that take minutes, longest first, so that none of them is left for one worker at the end.
LONG = ("train/test_detector", "test_experiments", "test_models", "test_two_processes", "parity", "test_notebooks")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: next((i for i, name in enumerate(LONG) if name in item.nodeid), len(LONG)))


@pytest.fixture(autouse=True, scope="module")
def quick_compilation(request):
    """Most programs of the tests run once or twice, and compile in less time without LLVM's optimisations. Not so where
    one trains: many steps, also in other processes, which must agree bit for bit. (What was compiled before the change
    is forgotten, for JAX would go on with it.)"""
    quick = "tests/train/" not in request.node.nodeid
    if jax.config.read("jax_disable_most_optimizations") != quick:
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", quick)


@pytest.fixture(autouse=True)
def log_level():
    """A script that is run in a test may silence the log for its own good."""
    before = logging.root.level
    yield
    logging.root.setLevel(before)


@pytest.fixture
def x64():
    """float64 for finite differences."""
    with jax.enable_x64(True):
        yield
