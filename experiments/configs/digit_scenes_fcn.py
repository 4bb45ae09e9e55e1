"""FCN from scratch on the semantic maps of digits in photographs, for two CPU cores.

    python experiments/train.py digit_scenes_fcn

Eleven classes: the background, and the ten digits. The background has nine of ten pixels, and with its whole weight
networks find the digits at once but do not begin to tell them apart: 12 % of their pixels are right after 1,500 steps,
as by chance. With a weight of a few hundredths FCN begins within 500.
"""

from pathlib import Path

from experiments.config import Augmentation, Config, DigitScenes, Optimizer


def config() -> Config:
    return Config(
        data=DigitScenes(),
        model="fcn_small",
        image_size=((128, 128),),
        augmentation=Augmentation(flip=0.0, elastic=6.0),  # a mirrored 2 is not a 2
        class_weights=(0.03,) + (1.0,) * 10,
        batch_size=8,
        steps=5000,
        optimizer=Optimizer(name="adamw", learning_rate=4e-3, weight_decay=0.02, warmup_steps=100, clip_norm=10.0),
        eval_every=1000,
        eval_images=100,
        eval_batch_size=20,
        best_metric="mIoU",
        checkpoint_every=1000,
        log_every=50,
        output=Path("runs/digit_scenes_fcn"),
    )
