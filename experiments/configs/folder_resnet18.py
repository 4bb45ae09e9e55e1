"""ResNet-18 from ImageNet weights on your own images, one folder a class.

python experiments/train.py folder_resnet18 --data.train DIR --data.val DIR
"""

from pathlib import Path

from experiments.config import Augmentation, Config, Folders, Optimizer


def config() -> Config:
    return Config(
        data=Folders(Path("datasets/folders/train"), Path("datasets/folders/val")),
        model="resnet18",
        weights="IMAGENET1K_V1",
        image_size=((224, 224),),
        augmentation=Augmentation(flip=0.5, scale=(1.0, 1.5), colour=0.2),
        batch_size=32,
        steps=1_000,
        optimizer=Optimizer(learning_rate=0.01, warmup_steps=50),
        eval_every=200,
        eval_batch_size=32,
        best_metric="top1",
        checkpoint_every=200,
        output=Path("runs/folder_resnet18"),
    )
