"""Does an encoder's ImageNet training help a U-Net that sees sixty photographs?

    python experiments/coco100_unet.py FOLDER

FOLDER has COCO's panoptic layout (``images``, ``panoptic``, ``panoptic.json``). The first 60 photographs train, the
others test, on the 20 classes with the most pixels; all else is unknown. ``unet_encoder`` over SqueezeNet 1.1 starts
from the ImageNet weights of the package ndf (extra "demo") or from scratch, with each of three seeds; what is printed
is also in ``results.json`` of the output folder. A second start goes on where the first one stopped. Not run to its end
yet.
"""

import collections
import dataclasses
import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script from anywhere

import numpy as np
import tyro

from experiments import train
from experiments.command import ONCE, SOME, Count, Seed, parse, script
from experiments.config import Augmentation, Config, Optimizer, Panoptic
from jaxvision.data.coco import load_json

TRAIN, CLASSES = 60, 20
WEIGHTS = {"ImageNet": "squeezenet1_1/IMAGENET1K_NDF", "scratch": None}


@dataclasses.dataclass(frozen=True)
class Options:
    """Train a U-Net on sixty photographs, from ImageNet weights and from scratch."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Of the photographs and their panoptic annotations."""
    output: Path = Path("runs/coco100_unet")
    seeds: Annotated[tuple[Seed, ...], SOME, ONCE] = (0, 1, 2)
    steps: Count = 400


def split(folder: Path, output: Path) -> tuple[int, ...]:
    """Writes ``train.json`` and ``val.json`` to ``output``; the ids of the classes with the most pixels in both.

    Raises: ValueError for a file that is not COCO's panoptic format, or has too few photographs.
    """
    content = load_json(folder / "panoptic.json")
    try:
        images = sorted(content["images"], key=lambda image: image["id"])
        pixels = collections.Counter()
        for annotation in content["annotations"]:
            for segment in annotation["segments_info"]:
                pixels[segment["category_id"]] += segment["area"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'panoptic.json'}: a record lacks or misnames {error}") from error
    if len(images) <= TRAIN:
        raise ValueError(f"{folder / 'panoptic.json'}: has {len(images)} images, and {TRAIN} are for training alone")
    for name, part in (("train", images[:TRAIN]), ("val", images[TRAIN:])):
        ids = {image["id"] for image in part}
        annotations = [each for each in content["annotations"] if each["image_id"] in ids]
        train.write_json(output / f"{name}.json", {**content, "images": part, "annotations": annotations})
    return tuple(category for category, _ in pixels.most_common(CLASSES))


def config_of(options: Options, classes: tuple[int, ...], start: str, seed: int) -> Config:
    """One run."""
    images, maps = options.folder / "images", options.folder / "panoptic"
    training, validation = (options.output / f"{name}.json" for name in ("train", "val"))
    return Config(
        data=Panoptic(images, training, maps, images, validation, maps, category_ids=classes),
        model="unet_encoder",
        model_options={"width": 8},
        backbone_weights=WEIGHTS[start],
        channels="BGR",  # as the weights know images
        mean=(104.006 / 255, 116.669 / 255, 122.679 / 255),
        std=(1 / 255, 1 / 255, 1 / 255),
        image_size=((96, 128), (128, 96)),
        augmentation=Augmentation(flip=0.5, scale=(1.0, 1.5), colour=0.3),
        batch_size=8,
        steps=options.steps,
        optimizer=Optimizer(
            name="adamw",
            learning_rate=1e-3,
            weight_decay=0.01,
            warmup_steps=min(50, options.steps - 1),
            clip_norm=5.0,
        ),
        eval_every=options.steps,
        eval_batch_size=10,
        checkpoint_every=options.steps,
        log_every=50,
        output=options.output / f"{start}_{seed}",
        seed=seed,
        pictures=4,
    )


@script
def main() -> None:
    options = parse(Options, description=__doc__)
    options.output.mkdir(parents=True, exist_ok=True)
    classes = split(options.folder, options.output)
    scores = {
        start: [train.run(config_of(options, classes, start, seed))["mIoU"] for seed in options.seeds]
        for start in WEIGHTS
    }
    train.write_json(options.output / "results.json", {"steps": options.steps, "seeds": options.seeds, "mIoU": scores})
    print("\n".join(table(scores, options.seeds)))


def table(scores: dict[str, list[float]], seeds: tuple[int, ...]) -> list[str]:
    """mIoU by start and seed, in Markdown; the spread is the standard deviation between seeds."""
    lines = [f"| start | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | spread |"]
    lines.append("|---|" + "---:|" * (len(seeds) + 2))
    for start, values in scores.items():
        numbers = [*values, np.mean(values), np.std(values)]
        lines.append(f"| {start} | {' | '.join(f'{number:.3f}' for number in numbers)} |")
    return lines


if __name__ == "__main__":
    main()
