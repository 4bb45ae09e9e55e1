import io
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxvision.data import DetectionRows, batches
from jaxvision.data.prepared import PreparedDetection, PreparedImages

PICTURES = np.random.default_rng(0).integers(0, 256, (6, 5, 7, 3)).astype(np.uint8)


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, "png")
    return buffer.getvalue()


class Toy(tfds.core.GeneratorBasedBuilder):
    """Six pictures of two classes, and a feature nobody asked for."""

    VERSION = tfds.core.Version("1.2.0")
    url_infos = None
    label = tfds.features.ClassLabel(names=["cat", "dog"])

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, PICTURES.shape[-1])),
            "label": self.label,
            "mask": tfds.features.Image(shape=(None, None, 1)),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(range(4)), "test": self._generate_examples(range(4, 6))}

    def _generate_examples(self, indices):
        for index in indices:
            label = index % 2 if isinstance(self.label, tfds.features.ClassLabel) else index / 2
            yield index, {"image": png(PICTURES[index]), "label": label, "mask": png(PICTURES[index, ..., :1])}


class ToyRegression(Toy):
    label = tfds.features.Scalar(np.float32)


class ToyDetection(tfds.core.GeneratorBasedBuilder):
    """Three pictures with as many objects as their number, as TFDS has COCO."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None

    def _info(self):
        objects = {
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            "is_crowd": np.bool_,
        }
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image/id": np.int64,
            "objects": tfds.features.Sequence(objects),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index in range(3):
            box = tfds.features.BBox(ymin=0.2, xmin=1 / 7, ymax=0.8, xmax=3 / 7)
            objects = [{"bbox": box, "label": number, "is_crowd": number == 1} for number in range(index)]
            yield index, {"image": png(PICTURES[index]), "image/id": 40 + index, "objects": objects}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for builder in (Toy, ToyRegression, ToyDetection):
        builder(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return folder


@pytest.mark.parametrize("name", ["toy", "toy:1.2.0"])
def test_reads_what_was_prepared(folder, name):
    train, test = PreparedImages(name, "train", data_dir=folder), PreparedImages(name, "test", data_dir=folder)
    assert (len(train), len(test), train.categories) == (4, 2, ("cat", "dog"))
    for source, row, index in ((train, 0, 0), (train, 3, 3), (test, 1, 5)):
        example = source[row]
        np.testing.assert_array_equal(example["image"], PICTURES[index])
        assert example["label"] == index % 2


def test_reading_needs_no_tensorflow_and_no_builder(folder):
    code = (
        "import sys\n"
        "from jaxvision import data\n"
        f"print(data.PreparedImages('toy', 'test', data_dir={str(folder)!r})[0]['image'].shape)\n"
        "assert 'tensorflow' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "(5, 7, 3)", result.stderr


def test_what_is_missing_is_named(folder, monkeypatch):
    command = f"tfds build cifar10 --data_dir {folder} --file_format array_record"
    with pytest.raises(FileNotFoundError, match=command):
        PreparedImages("cifar10", "train", data_dir=folder)
    with pytest.raises(ValueError, match="toy has the splits test, train, not 'validation'"):
        PreparedImages("toy", "validation", data_dir=folder)
    with pytest.raises(ValueError, match="features image, label, mask; an image and a class label are needed"):
        PreparedImages("toy_regression", "train", data_dir=folder)
    with pytest.raises(ValueError, match="objects with bbox and a class label are needed"):
        PreparedDetection("toy", "train", data_dir=folder)
    with pytest.raises(ValueError, match="image, image/id, objects; an image and a class label are needed"):
        PreparedImages("toy_detection", "train", data_dir=folder)
    monkeypatch.setenv("JAXVISION_DATASETS", str(folder))
    assert len(PreparedImages("toy", "train")) == 4


def test_objects_of_a_prepared_set(folder):
    source = PreparedDetection("toy_detection", "train", data_dir=folder)
    assert (len(source), source.categories, source.category_ids) == (3, ("cat", "dog"), (1, 2))
    for index in range(3):
        example = source[index]
        np.testing.assert_array_equal(example["image"], PICTURES[index])
        assert example["image_id"] == 40 + index and example["labels"].tolist() == list(range(index))
        np.testing.assert_allclose(example["boxes"], np.tile([[1, 1, 3, 4]], (index, 1)), rtol=1e-6)
        assert example["iscrowd"].tolist() == [False, True][:index]
    truth = source.ground_truth()
    assert [image["id"] for image in truth["images"]] == [40, 41, 42]
    assert [(one["image_id"], one["category_id"], one["iscrowd"]) for one in truth["annotations"]] == [
        (41, 1, 0), (42, 1, 0), (42, 2, 1)
    ]  # fmt: skip
    rows = DetectionRows(max_objects=2, with_masks=False)
    batch = next(batches(source, rows, batch_size=3, shapes=((8, 8),)))
    assert batch["targets"].valid.tolist() == [[False, False], [True, False], [True, False]]  # the crowd is left out
