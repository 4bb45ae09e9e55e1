"""RetinaNet, small and from scratch, on digits in photographs, on two CPU cores in minutes.

python experiments/train.py digit_scenes_retinanet
"""

from pathlib import Path

from experiments.config import Augmentation, Config, DigitScenes, Optimizer


def config() -> Config:
    return Config(
        data=DigitScenes(),
        model="retinanet_small",
        image_size=((128, 128),),
        max_objects=6,
        augmentation=Augmentation(flip=0.0),  # a mirrored 2 is not a 2
        batch_size=16,
        steps=2500,
        optimizer=Optimizer(name="adamw", learning_rate=3e-3, weight_decay=0.02, clip_norm=10.0),
        eval_every=1250,
        eval_images=100,
        eval_batch_size=20,
        best_metric="bbox/AP",
        checkpoint_every=500,
        output=Path("runs/digit_scenes_retinanet"),
    )
