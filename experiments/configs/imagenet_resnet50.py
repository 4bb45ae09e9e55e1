"""ResNet-50 on ImageNet-1k with the recipe behind torchvision's IMAGENET1K_V1 weights, for accelerators.

    python experiments/train.py imagenet_resnet50

Expects imagenet2012 prepared by TFDS as array_record; the error message names the command. torchvision publishes top-1
76.13 for this recipe: 90 epochs, SGD, batch 256; not trained here. Parts of its newer recipe (IMAGENET1K_V2, 80.86) are
options:

    --label-smoothing 0.1 --augmentation.mixup 0.2 --augmentation.cutmix 1.0
    --optimizer.schedule cosine --optimizer.milestones --optimizer.ema-decay 0.99997

Repeated augmentation, TrivialAugment and random erasing are not here.
"""

from pathlib import Path

from experiments.config import Augmentation, Config, Optimizer, Tfds

EPOCH = 5_005  # steps: 1,281,167 images in batches of 256


def config() -> Config:
    return Config(
        data=Tfds("imagenet2012", val_split="validation"),
        model="resnet50",
        image_size=((224, 224),),
        eval_crop=224 / 256,
        augmentation=Augmentation(flip=0.5, crop_area=(0.08, 1.0)),
        batch_size=256,
        steps=90 * EPOCH,
        optimizer=Optimizer(
            learning_rate=0.1,
            schedule="step",
            milestones=(30 * EPOCH, 60 * EPOCH),
            warmup_steps=0,
            weight_decay=1e-4,
            decay_all=True,
        ),
        eval_every=EPOCH,
        eval_batch_size=250,
        best_metric="top1",
        checkpoint_every=EPOCH,
        log_every=100,
        workers=16,
        output=Path("runs/imagenet_resnet50"),
    )
