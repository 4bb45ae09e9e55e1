"""DeepLabV3 with ResNet-50 on PASCAL VOC 2012 from ImageNet features, for accelerators.

    python experiments/train.py voc_deeplabv3

Expects VOC's archives unpacked in datasets/VOCdevkit, and the 10,582 training images of Hariharan et al. as people hand
them around: VOC2012/SegmentationClassAug and the list ImageSets/Segmentation/trainaug.txt. The schedule is the paper's
(arXiv:1706.05587, section 4): 30,000 steps of 16 crops of 513 pixels, scaled by 0.5 to 2, the rate falling by "poly"
from 0.007. Not trained here.
"""

from pathlib import Path

from experiments.config import Augmentation, Config, Optimizer, Voc


def config() -> Config:
    return Config(
        data=Voc(
            Path("datasets/VOCdevkit"), train=("VOC2012/trainaug",), val=("VOC2012/val",), maps="SegmentationClassAug"
        ),
        model="deeplabv3_resnet50",
        model_options={"auxiliary": True},
        backbone_weights="resnet50/IMAGENET1K_V2",
        image_size=((513, 513),),
        augmentation=Augmentation(flip=0.5, scale=(0.5, 2.0)),
        batch_size=16,
        steps=30_000,
        optimizer=Optimizer(learning_rate=0.007, schedule="poly", warmup_steps=0, weight_decay=1e-4),
        best_metric="mIoU",
        output=Path("runs/voc_deeplabv3"),
    )
