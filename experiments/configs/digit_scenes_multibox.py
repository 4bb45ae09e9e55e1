"""MultiBox, small and from scratch: boxes of digits in photographs, whatever their class, on two CPU cores in minutes.

python experiments/train.py digit_scenes_multibox
"""

from pathlib import Path

from experiments.config import Augmentation, Config, DigitScenes, Optimizer


def config() -> Config:
    return Config(
        data=DigitScenes(),
        model="multibox_small",
        image_size=((128, 128),),
        max_objects=6,
        augmentation=Augmentation(flip=0.5, scale=(0.8, 1.3)),  # a mirrored 2 is an object, too
        batch_size=16,
        steps=6000,
        optimizer=Optimizer(name="adamw", learning_rate=2e-3, weight_decay=0.05, clip_norm=20.0),
        eval_every=3000,
        eval_images=100,
        eval_batch_size=50,
        best_metric="bbox/R10_50",
        checkpoint_every=1000,
        output=Path("runs/digit_scenes_multibox"),
    )
