"""Mask R-CNN R50-FPN on COCO 2017 from ImageNet weights, with the published 1x schedule, for accelerators.

    python experiments/train.py coco_maskrcnn

Expects COCO where Detectron2 does: datasets/coco/{train2017,val2017,annotations}. torchvision and Detectron2 publish
box AP 37.9 and mask AP 34.6-35.2 for this schedule (16 images a step, 90,000 steps); not trained here.
"""

from pathlib import Path

from experiments.config import Augmentation, Coco, Config, Optimizer


def config() -> Config:
    coco = Path("datasets/coco")
    return Config(
        data=Coco(
            train_images=coco / "train2017",
            train_annotations=coco / "annotations" / "instances_train2017.json",
            val_images=coco / "val2017",
            val_annotations=coco / "annotations" / "instances_val2017.json",
            on_error="skip",  # two boxes of train2017 have no area
        ),
        model="maskrcnn_resnet50_fpn",
        backbone_weights="resnet50/IMAGENET1K_V2",
        image_size=((800, 1344), (1344, 800)),
        resize=(800, 1333),
        augmentation=Augmentation(flip=0.5),
        optimizer=Optimizer(
            learning_rate=0.02,
            schedule="step",
            milestones=(60_000, 80_000),
            warmup_steps=1_000,
            freeze=("backbone/(conv1|bn1|layer1_)",),
        ),
        best_metric="segm/AP",
        output=Path("runs/coco_maskrcnn"),
    )
