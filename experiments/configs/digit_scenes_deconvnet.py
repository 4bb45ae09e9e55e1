"""A conv-deconv network with switch unpooling from scratch on digits in photographs.

    python experiments/train.py digit_scenes_deconvnet

As digit_scenes_fcn but for the model and the number of steps. Not trained to its end yet.
"""

import dataclasses
from pathlib import Path

from experiments.config import Config
from experiments.configs import digit_scenes_fcn


def config() -> Config:
    return dataclasses.replace(
        digit_scenes_fcn.config(), model="deconvnet_small", steps=4500, output=Path("runs/digit_scenes_deconvnet")
    )
