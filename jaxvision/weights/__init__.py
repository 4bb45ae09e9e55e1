"""Weights other people trained: records of what is published, readers of their files, one converter, one writer."""

from jaxvision.weights.convert import from_torch, to_torch
from jaxvision.weights.files import read_state_dict
from jaxvision.weights.load import load_weights
from jaxvision.weights.records import Preprocessing, WeightsRecord, get_record, list_weights
from jaxvision.weights.save import save_weights
from jaxvision.weights.torch_pickle import UnsafePickleError

__all__ = [
    "Preprocessing",
    "UnsafePickleError",
    "WeightsRecord",
    "from_torch",
    "get_record",
    "list_weights",
    "load_weights",
    "read_state_dict",
    "save_weights",
    "to_torch",
]
