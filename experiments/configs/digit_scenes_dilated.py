"""Dilated convolutions and a context module from scratch on digits in photographs.

    python experiments/train.py digit_scenes_dilated

As digit_scenes_fcn but for the model and the number of steps. Not trained to its end yet.
"""

import dataclasses
from pathlib import Path

from experiments.config import Config
from experiments.configs import digit_scenes_fcn


def config() -> Config:
    return dataclasses.replace(
        digit_scenes_fcn.config(), model="dilated_small", steps=3500, output=Path("runs/digit_scenes_dilated")
    )
