"""GridNet on Cityscapes from scratch, for accelerators.

    python experiments/train.py cityscapes_gridnet

Expects leftImg8bit and gtFine unpacked in datasets/cityscapes. The authors' release trains by Adam at 0.01 on batches
of four crops of 400 pixels, from images of 1024 x 2048 enlarged by 1 to 2.5; here the crops come from images in which
the longer side has 800 pixels, enlarged as much. Not trained here.
"""

from pathlib import Path

from experiments.config import Augmentation, Cityscapes, Config, Optimizer


def config() -> Config:
    return Config(
        data=Cityscapes(Path("datasets/cityscapes")),
        model="gridnet",
        image_size=((400, 800),),
        augmentation=Augmentation(flip=0.5, scale=(1.0, 2.5)),
        batch_size=4,
        steps=90_000,
        optimizer=Optimizer(name="adamw", learning_rate=0.01, schedule="constant", weight_decay=0.0),
        best_metric="mIoU",
        output=Path("runs/cityscapes_gridnet"),
    )
