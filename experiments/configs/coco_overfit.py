"""A small Mask R-CNN learns a few COCO-format images by heart: a rehearsal that your data and the whole path work.

    python experiments/train.py coco_overfit --data.train-images DIR --data.train-annotations FILE.json

The first twenty images (--data.limit) on two CPU cores; the figures to reach are in the README.
"""

from pathlib import Path

from experiments.config import Augmentation, Coco, Config, Optimizer


def config() -> Config:
    return Config(
        data=Coco(Path("datasets/coco/val2017"), Path("datasets/coco/annotations/instances_val2017.json"), limit=20),
        model="maskrcnn_small",
        model_options={"anchor_sizes": (12, 28, 64, 128, 256), "regions": 128, "max_detections": 100},
        image_size=((384, 384),),
        max_objects=40,
        augmentation=Augmentation(flip=0.0),
        batch_size=4,
        steps=400,
        optimizer=Optimizer(name="adamw", learning_rate=1e-3, weight_decay=0.0, clip_norm=10.0),
        eval_every=200,
        eval_batch_size=4,
        checkpoint_every=200,
        output=Path("runs/coco_overfit"),
        pictures=20,
    )
