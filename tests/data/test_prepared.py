import io
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxvision.data.prepared import PreparedImages

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for builder in (Toy, ToyRegression):
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
    monkeypatch.setenv("JAXVISION_DATASETS", str(folder))
    assert len(PreparedImages("toy", "train")) == 4
