"""``save_weights``: variables as a file that torch's world reads."""

import os
from pathlib import Path

import flax.linen as nn
import numpy as np

from jaxvision.typing import Variables
from jaxvision.weights.convert import to_torch


def save_weights(path: str | Path, model: str | nn.Module, variables: Variables) -> None:
    """Writes the variables of the model (a registered name, or a module) under torch's keys to a ``.safetensors`` file.

    The file appears whole or not at all, and replaces one of that name. ``load_weights`` reads it back; so does torch,
    with ``model.load_state_dict(safetensors.torch.load_file(path), strict=True)``. A ``.pth`` file is torch's to write:
    ``torch.save({key: torch.from_numpy(array.copy()) for key, array in jaxvision.to_torch(model,
    variables).items()}, path)``.

    Raises: ValueError for another suffix, or if the variables are not the model's; FileNotFoundError if there is no
    such folder.
    """
    import safetensors.numpy

    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path}: weights are written as .safetensors only; for a .pth file give the arrays of "
            "jaxvision.to_torch(model, variables) to torch.save, see the docstring of save_weights"
        )
    arrays = {key: np.ascontiguousarray(value) for key, value in to_torch(model, variables).items()}
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(safetensors.numpy.save(arrays))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
