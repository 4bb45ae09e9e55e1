"""The ImageNet SqueezeNet 1.1 fine-tuned on digits in colour over photographs: two CPU cores, no network, minutes.

    python experiments/train.py digits_squeezenet

The weights come with the package ndf (extra "demo"). For the head alone: --optimizer.freeze "(?!classifier_1/)".
"""

from pathlib import Path

from experiments.config import Augmentation, Config, DigitCrops, Optimizer


def config() -> Config:
    return Config(
        data=DigitCrops(),
        model="squeezenet1_1",
        weights="IMAGENET1K_NDF",
        channels="BGR",
        mean=(104.006 / 255, 116.669 / 255, 122.679 / 255),
        std=(1 / 255, 1 / 255, 1 / 255),
        image_size=((64, 64),),
        augmentation=Augmentation(flip=0.0, scale=(1.0, 1.15), colour=0.2),  # a mirrored 2 is not a 2
        batch_size=32,
        steps=900,
        optimizer=Optimizer(
            name="adamw", learning_rate=1e-3, weight_decay=0.01, warmup_steps=50, clip_norm=5.0, ema_decay=0.99
        ),
        eval_every=450,
        eval_batch_size=60,
        best_metric="top1",
        checkpoint_every=450,
        log_every=50,
        output=Path("runs/digits_squeezenet"),
        pictures=16,
    )
