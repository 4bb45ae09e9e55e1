"""Classification sets of TensorFlow Datasets, once they are prepared: reading them needs no TensorFlow."""

import io
import os
import pathlib
from typing import SupportsIndex

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import read_only_builder

from jaxvision.data.source import Example

__all__ = ["PreparedImages"]


class PreparedImages:
    """A split of a prepared set that has the features ``image`` and ``label``; images are decoded by pillow, as RGB.

    name: as TFDS has it, such as "cifar10", "imagenet2012:5.1.0" or "imagenet_v2/top-images".
    data_dir: where data sets live, by default $JAXVISION_DATASETS or ./datasets.
    Raises: FileNotFoundError with the command that prepares the set; ValueError for a split that it does not have, a
    set without these features, and one that is prepared in another format than array_record.
    """

    def __init__(self, name: str, split: str, *, data_dir: str | os.PathLike | None = None):
        folder = pathlib.Path(data_dir or os.environ.get("JAXVISION_DATASETS") or "datasets").expanduser()
        remedy = (
            "pip install 'jaxvision-flax[tfds]' and run "
            f"tfds build {name} --data_dir {folder} --file_format array_record"
        )
        try:
            builder = read_only_builder.builder_from_files(name, data_dir=str(folder))
        except tfds.core.DatasetNotFoundError as error:
            raise FileNotFoundError(f"the data set {name} is not prepared in {folder}; {remedy}") from error
        features, splits = builder.info.features, builder.info.splits
        kinds = {key: type(value) for key, value in features.items()}
        if kinds.get("image") is not tfds.features.Image or kinds.get("label") is not tfds.features.ClassLabel:
            raise ValueError(
                f"{name} has the features {', '.join(sorted(features))}; an image and a class label are needed"
            )
        if split not in splits:
            raise ValueError(f"{name} has the splits {', '.join(sorted(splits))}, not {split!r}")
        if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            raise ValueError(
                f"{name} in {folder} is not in the format array_record, which alone can be shuffled; {remedy}"
            )
        self.categories = tuple(features["label"].names)
        encoded = {key: tfds.decode.SkipDecoding() for key, kind in kinds.items() if kind is tfds.features.Image}
        self.records = builder.as_data_source(split, decoders=encoded)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: SupportsIndex) -> Example:
        record = self.records[index]
        image = Image.open(io.BytesIO(record["image"])).convert("RGB")
        return {"image": np.asarray(image), "label": int(record["label"])}
