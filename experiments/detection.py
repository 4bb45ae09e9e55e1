"""Detection as a task: sources, batches, loss, evaluation and pictures for ``train.py``, ``evaluate.py`` and
``predict.py``."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from tqdm import tqdm

from experiments.augmentation import transforms
from experiments.config import Coco, Config, DigitScenes, Tfds, Voc
from jaxvision import data, evaluate, visualize
from jaxvision.inference import detect_with
from jaxvision.typing import Detections, Variables


def sources(config: Config) -> tuple[Any, Any]:
    """The training and the validation source, with regions if the config wants any."""
    train, val = annotated(config)
    wanted = config.selective_search
    if not wanted.max_regions:
        return train, val
    folder = wanted.directory or Path(os.environ.get("JAXVISION_DATASETS") or "datasets").expanduser() / "regions"
    # A file of regions belongs to these images and settings.
    settings = f"{config.data}-{wanted.max_regions}-{wanted.mode}-{wanted.min_side}".encode()
    name = f"{type(config.data).__name__}-{hashlib.sha256(settings).hexdigest()[:12]}"
    options = dict(mode=wanted.mode, max_regions=wanted.max_regions, min_side=wanted.min_side)
    searched = data.with_selective_search(train, folder / f"{name}-train.npz", **options)
    if val is train:
        return searched, searched
    return searched, data.with_selective_search(val, folder / f"{name}-val.npz", **options)


def annotated(config: Config) -> tuple[Any, Any]:
    """The configured images with their boxes."""
    match config.data:
        case DigitScenes(directory):
            return data.load_digit_scenes("train", data_dir=directory), data.load_digit_scenes(
                "test", data_dir=directory
            )
        case Coco() as coco:
            masks = "mask" in config.model
            train = data.CocoDetection(
                coco.train_images, coco.train_annotations, with_masks=masks, on_error=coco.on_error
            )
            if coco.limit is not None:
                train = data.Subset(train, range(min(coco.limit, len(train))))
            if coco.val_images is None:
                return train, train
            val = data.CocoDetection(coco.val_images, coco.val_annotations, with_masks=masks, on_error=coco.on_error)
            return train, val
        case Tfds(name, train, val, directory):
            return tuple(data.PreparedDetection(name, split, data_dir=directory) for split in (train, val))
        case Voc(devkit, train, val, on_error):
            return tuple(data.VocDetection(devkit, splits, on_error=on_error) for splits in (train, val))
    raise ValueError(f"{config.model} is a detector, but {type(config.data).__name__} has no boxes")


def train_batches(config: Config, source: Any) -> Any:
    """Endless augmented, shuffled batches of this process's share."""
    return data.detection_batches(
        source,
        batch_size=config.batch_size // jax.process_count(),
        image_size=config.image_size,
        max_objects=config.max_objects,
        mean=config.mean,
        std=config.std,
        seed=config.seed,
        shuffle=True,
        repeat=True,
        transforms=transforms(config, train=True),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        with_masks="mask" in config.model,
        max_regions=config.selective_search.max_regions,
        workers=config.workers,
    )


def validation_batches(config: Config, source: Any) -> Any:
    """Every image once, in order; the last batch is padded with rows that are not valid. Every process reads all."""
    return data.detection_batches(
        source,
        batch_size=config.eval_batch_size,
        image_size=config.image_size,
        max_objects=config.max_objects,
        mean=config.mean,
        std=config.std,
        seed=0,
        shuffle=False,
        repeat=False,
        transforms=transforms(config, train=False),
        with_masks="mask" in config.model,
        max_regions=config.selective_search.max_regions,
    )


def loss_of(config: Config, model: nn.Module) -> Callable:
    """``loss_fn(params, model_state, batch, key) -> (loss, (metrics, model_state))``."""

    def loss_fn(params, model_state, batch, key):
        (loss, metrics), updates = model.apply(
            {"params": params, **model_state},
            batch["images"],
            batch["targets"],
            batch["image_sizes"],
            **given(batch),
            train=True,
            method="loss",
            rngs={"sample": key},
            mutable=list(model_state),
        )
        return loss, (metrics, updates)

    return loss_fn


def given(batch: dict[str, Any]) -> dict[str, Any]:
    """What a detector takes besides images, if it is given its regions."""
    return {"regions": batch["regions"]} if "regions" in batch else {}


def detect(model: nn.Module, variables: Variables, batch: dict[str, Any]) -> Detections:
    """What the model finds in a batch, fetched; compiled once a model and shape."""
    found = detect_with(model)(variables, batch["images"], batch["image_sizes"], *given(batch).values())
    return jax.device_get(found)


def evaluator(config: Config, model: nn.Module, source: Any) -> Callable[..., dict[str, float]]:
    """``evaluate(variables, images=None)``: COCO figures and validation losses on the first so many images (all)."""
    losses = jax.jit(
        lambda variables, batch: model.apply(
            variables,
            batch["images"],
            batch["targets"],
            batch["image_sizes"],
            **given(batch),
            method="loss",
            rngs={"sample": jax.random.key(0)},
        )[1]
    )

    def run(variables: Variables, images: int | None = None) -> dict[str, float]:
        part = source if images is None else data.Subset(source, range(min(images, len(source))))
        results, terms, weights = [], [], []
        batches = validation_batches(config, part)
        for batch in tqdm(batches, desc="evaluate", leave=False, disable=None):
            found = detect(model, variables, batch)
            results += evaluate.to_results(
                found,
                image_ids=batch["image_ids"],
                image_sizes=batch["image_sizes"],
                original_sizes=batch["original_sizes"],
                category_ids=part.category_ids,
                valid=batch["valid"],
            )
            if batch["valid"].any():
                # Rows of padding would count as images without objects: the first image stands in for them.
                rows = np.where(batch["valid"], np.arange(len(batch["valid"])), np.flatnonzero(batch["valid"])[0])
                terms.append(jax.device_get(losses(variables, jax.tree.map(lambda leaf, rows=rows: leaf[rows], batch))))
                weights.append(int(batch["valid"].sum()))
        if not terms:
            raise ValueError("none of the validation images could be read; see the log for the reasons")
        truth = part.ground_truth()
        if not truth["annotations"]:
            raise ValueError(
                f"none of the {len(part)} validation images has an annotation: there is nothing to evaluate. Some sets "
                "keep those of their test split to themselves; name another in data.val_split"
            )
        figures = {
            f"val_{name}": float(np.average([term[name] for term in terms], weights=weights)) for name in terms[0]
        }
        kinds = ["bbox"] + (["segm"] if getattr(model, "mask_head", None) is not None else [])
        for kind in kinds:
            found = evaluate.average_precision(
                truth, results, iou_type=kind, class_agnostic=getattr(model, "class_agnostic", False)
            )
            figures |= {f"{kind}/{name}": value for name, value in found.items()}
        return figures

    return run


def pictures(
    config: Config, model: nn.Module, variables: Variables, source: Any, count: int, *, min_score: float = 0.5
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, RGB picture) of the predictions on the first validation images."""
    names = ("object",) if getattr(model, "class_agnostic", False) else source.categories
    part = data.Subset(source, range(min(count, len(source))))
    for batch in validation_batches(config, part):
        found = detect(model, variables, batch)
        for row in np.flatnonzero(batch["valid"]):
            height, width = (int(side) for side in batch["image_sizes"][row])
            image = np.asarray(batch["images"][row][:height, :width]) * np.array(config.std) + np.array(config.mean)
            image = np.clip(np.round(image * 255), 0, 255).astype(np.uint8)
            one = jax.tree.map(lambda leaf, row=row: leaf[row], found)
            yield (
                f"{int(batch['image_ids'][row])}",
                visualize.draw_detections(image, one, names=names, min_score=min_score),
            )
