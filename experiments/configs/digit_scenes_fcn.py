"""FCN from scratch on the semantic maps of digits in photographs: two CPU cores, minutes.

    python experiments/train.py digit_scenes_fcn

Eleven classes: the background, and the ten digits. ``--model`` takes another segmenter.
"""

from pathlib import Path

from experiments.config import Augmentation, Config, DigitScenes, Optimizer


def config() -> Config:
    return Config(
        data=DigitScenes(),
        model="fcn_small",
        image_size=((128, 128),),
        augmentation=Augmentation(flip=0.0, colour=0.0),  # a mirrored 2 is not a 2
        batch_size=8,
        steps=1500,
        pixel_losses=("cross_entropy", "dice"),
        optimizer=Optimizer(name="adamw", learning_rate=3e-3, weight_decay=0.02, warmup_steps=100, clip_norm=10.0),
        eval_every=500,
        eval_images=100,
        eval_batch_size=20,
        best_metric="mIoU",
        checkpoint_every=500,
        log_every=50,
        output=Path("runs/digit_scenes_fcn"),
    )
