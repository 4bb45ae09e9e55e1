"""The version, alone in a file so that building a wheel does not import jax."""

__version__ = "0.1.0"
