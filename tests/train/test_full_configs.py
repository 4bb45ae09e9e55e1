"""The configs for COCO and ImageNet, end to end on files of those sets' layouts: their own models and options, with few
and small images. Only weights that would have to be downloaded are left out."""

import dataclasses
import io
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from experiments import train
from experiments.config import available

pytestmark = pytest.mark.slow  # full-size networks compile for a few minutes

STEPS = 20
RNG = np.random.default_rng(0)


def jpeg(height, width):
    """A picture of smooth noise, so that JPEG keeps it."""
    noise = Image.fromarray(RNG.integers(0, 256, (6, 8, 3), np.uint8))
    buffer = io.BytesIO()
    noise.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "jpeg")
    return buffer.getvalue()


def coco_layout(root, part, sizes):
    """``root/PART`` with images and ``root/annotations/instances_PART.json``: polygons, a crowd as RLE, and an image
    without objects; ids with gaps, as COCO's."""
    (root / part).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for number, (height, width) in enumerate(sizes):
        name = f"{number + 139:012d}.jpg"
        (root / part / name).write_bytes(jpeg(height, width))
        images.append({"id": number + 139, "file_name": name, "height": height, "width": width})
        for index in range(number % 3):
            left, top = 5.0 + 20 * index, 4.0 + 3 * index
            polygon = [left, top, left + 30, top, left + 30, top + 25, left, top + 20]
            annotations.append(
                {"image_id": number + 139, "category_id": (1, 18, 90)[index], "bbox": [left, top, 30.0, 25.0],
                 "area": 675.0, "iscrowd": 0, "segmentation": [polygon]}
            )  # fmt: skip
    height, width = sizes[0]
    crowd = {"size": [height, width], "counts": [0, height * 10, height * (width - 10)]}
    annotations.append(
        {"image_id": 139, "category_id": 1, "bbox": [0.0, 0.0, 10.0, float(height)], "area": 10.0 * height,
         "iscrowd": 1, "segmentation": crowd}
    )  # fmt: skip
    annotations = [{"id": 908400000 + index, **one} for index, one in enumerate(annotations)]
    categories = [{"id": i, "name": name, "supercategory": "x"} for i, name in ((1, "person"), (18, "dog"), (90, "b"))]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))


def test_coco_maskrcnn(tmp_path, capsys):
    sizes = [(96, 128), (128, 96), (96, 128), (100, 130), (120, 90), (97, 128)]
    coco_layout(tmp_path, "train2017", sizes)
    coco_layout(tmp_path, "val2017", sizes[:5])
    config = available()["coco_maskrcnn"][1]
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data,
            train_images=tmp_path / "train2017",
            train_annotations=tmp_path / "annotations" / "instances_train2017.json",
            val_images=tmp_path / "val2017",
            val_annotations=tmp_path / "annotations" / "instances_val2017.json",
        ),
        backbone_weights=None,
        image_size=tuple(tuple(round(side / 1344 * 128) for side in shape) for shape in config.image_size),
        resize=(76, 128),
        batch_size=2,
        steps=STEPS,
        # Without the backbone's weights its frozen norms keep no scale, and gradients are huge.
        optimizer=dataclasses.replace(
            config.optimizer, warmup_steps=5, milestones=(10, 15), learning_rate=1e-4, clip_norm=1.0
        ),
        eval_every=STEPS,
        eval_batch_size=2,
        devices=1,
        pictures=2,
        output=tmp_path / "run",
    )
    figures = train.run(config)
    assert {"bbox/AP", "segm/AP", "val_loss_mask"} <= figures.keys() and np.isfinite(figures["val_loss"])
    lines = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == STEPS and all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
    said = capsys.readouterr().out
    assert "compiles for 2 input shape(s): 2 x 76 x 128, 2 x 128 x 76" in said
    assert said.count("compiled in") == 2  # each shape once
    assert len(list((config.output / "pictures").iterdir())) == 2


class Imagenet2012(tfds.core.GeneratorBasedBuilder):
    """The features of TFDS's builder of that name, on a few pictures."""

    name = "imagenet2012"
    VERSION = tfds.core.Version("5.1.0")
    url_infos = None

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=1000),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(12), "validation": self._generate_examples(10)}

    def _generate_examples(self, count):
        for index in range(count):
            height, width = ((375, 500), (500, 333), (1200, 1600))[index % 3]
            image = io.BytesIO(jpeg(height, width))
            yield index, {"image": image, "label": 83 * index, "file_name": f"n0144076{index}.JPEG"}


def test_imagenet_resnet50(tmp_path):
    Imagenet2012(data_dir=str(tmp_path / "data"), file_format="array_record").download_and_prepare()
    config = available()["imagenet_resnet50"][1]
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, directory=tmp_path / "data"),
        image_size=((56, 56),),
        batch_size=4,
        steps=STEPS,
        optimizer=dataclasses.replace(config.optimizer, milestones=(5, 10, 15), learning_rate=0.01),
        eval_every=10,
        eval_batch_size=4,
        checkpoint_every=10,
        log_every=5,
        devices=1,
        workers=2,
        pictures=2,
        output=tmp_path / "run",
    )
    figures = train.run(config)
    assert figures.keys() == {"top1", "top5", "val_loss"} and np.isfinite(figures["val_loss"])
    lines = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [5, 10, 15, 20]
    assert len(list((config.output / "pictures").iterdir())) == 2
