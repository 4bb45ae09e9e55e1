"""ResNet-18 from scratch on CIFAR-10 through TFDS, for accelerators.

    python experiments/train.py cifar10_resnet18

Expects cifar10 prepared by TFDS as array_record; the error message names the command. The pictures are enlarged to 64
pixels, because the stem of an ImageNet network divides by four. Not trained here.
"""

from pathlib import Path

from experiments.config import Augmentation, Config, Optimizer, Tfds


def config() -> Config:
    return Config(
        data=Tfds("cifar10"),
        model="resnet18",
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        image_size=((64, 64),),
        augmentation=Augmentation(flip=0.5, scale=(1.0, 1.25), cutmix=1.0),
        label_smoothing=0.1,
        batch_size=128,
        steps=20_000,
        optimizer=Optimizer(learning_rate=0.1, warmup_steps=400, weight_decay=5e-4),
        eval_every=2_000,
        eval_batch_size=250,
        best_metric="top1",
        checkpoint_every=2_000,
        log_every=100,
        workers=8,
        output=Path("runs/cifar10_resnet18"),
    )
