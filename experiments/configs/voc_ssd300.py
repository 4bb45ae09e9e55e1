"""SSD300 on PASCAL VOC 2007+2012 from ImageNet features, with the published schedule, for accelerators.

    python experiments/train.py voc_ssd300

Expects VOC's archives unpacked in datasets/VOCdevkit. The authors publish 77.2 mAP (VOC's own, on VOC2007 test) for
120,000 steps of 32 images with random crops by overlap; here images are enlarged and cropped, or made smaller, at
random. Not trained here.
"""

from pathlib import Path

from experiments.config import Augmentation, Config, Optimizer, Voc


def config() -> Config:
    return Config(
        data=Voc(Path("datasets/VOCdevkit")),
        model="ssd300_vgg16",
        backbone_weights="vgg16/IMAGENET1K_FEATURES",
        mean=(0.48235, 0.45882, 0.40784),
        std=(1 / 255, 1 / 255, 1 / 255),
        image_size=((300, 300),),
        augmentation=Augmentation(flip=0.5, scale=(0.25, 3.0), colour=0.5),
        batch_size=32,
        steps=120_000,
        optimizer=Optimizer(
            learning_rate=1e-3,
            schedule="step",
            milestones=(80_000, 100_000),
            warmup_steps=1_000,
            weight_decay=5e-4,
        ),
        best_metric="bbox/AP50",
        output=Path("runs/voc_ssd300"),
    )
