"""Mask R-CNN R50-FPN from COCO weights on your own images and masks in COCO's format, for accelerators.

    python experiments/train.py coco_own --data.train-images DIR --data.train-annotations FILE.json
        --data.val-images DIR --data.val-annotations FILE.json

Without validation images the training images validate. For boxes without masks: --model fasterrcnn_resnet50_fpn.
coco_overfit rehearses it on two CPU cores. Not trained here.
"""

from pathlib import Path

from experiments.config import Augmentation, Coco, Config, Optimizer


def config() -> Config:
    return Config(
        data=Coco(Path("datasets/own/train"), Path("datasets/own/train.json")),
        model="maskrcnn_resnet50_fpn",
        weights="COCO_V1",
        image_size=((800, 1344), (1344, 800)),
        resize=(800, 1333),
        augmentation=Augmentation(flip=0.5),
        batch_size=4,
        steps=5_000,
        optimizer=Optimizer(learning_rate=0.005, warmup_steps=200, freeze=("backbone/(conv1|bn1|layer1_)",)),
        eval_every=1_000,
        best_metric="bbox/AP",
        checkpoint_every=500,
        output=Path("runs/coco_own"),
    )
