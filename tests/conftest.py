"""A strict session: eight virtual CPU devices, rank promotion raises, warnings are errors (pyproject.toml), and the
jaxtyping import hook checks every annotated shape of the package (``--jaxtyping-packages``)."""

import os

# Compiling takes most of the time here, and half of that without the optimisations of the last stage.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """float64 for finite differences."""
    with jax.enable_x64(True):
        yield
