"""Mask R-CNN from scratch on digits in photographs: the main job, on two CPU cores in minutes.

python experiments/train.py digit_scenes_maskrcnn
"""

from pathlib import Path

from experiments.config import Augmentation, Config, DigitScenes, Optimizer


def config() -> Config:
    return Config(
        data=DigitScenes(),
        model="maskrcnn_small",
        image_size=((128, 128),),
        max_objects=6,
        augmentation=Augmentation(flip=0.0, colour=0.0),  # a mirrored 2 is not a 2
        batch_size=8,
        steps=2300,
        optimizer=Optimizer(name="adamw", learning_rate=2e-3, weight_decay=0.02, clip_norm=10.0),
        eval_every=1150,
        eval_images=100,
        eval_batch_size=20,
        best_metric="bbox/AP",
        checkpoint_every=230,
        output=Path("runs/digit_scenes_maskrcnn"),
    )
