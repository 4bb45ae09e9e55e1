"""Detection as a task (``tasks.Task``): boxes, and masks where the model has a head for them."""

import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import jaxvision as jv
from experiments.config import Coco, Config, DigitScenes, SelectiveSearch, Tfds, Voc
from experiments.reading import decode_at_least, normalized, validation_batches
from experiments.tasks import Prediction
from jaxvision import data, evaluate, train, visualize
from jaxvision.typing import Variables


def sources(config: Config) -> tuple[Any, Any]:
    """With regions if the config wants any."""
    training, val = annotated(config)
    wanted = config.selective_search
    if not wanted.max_regions:
        return training, val
    folder = wanted.directory or Path(os.environ.get("JAXVISION_DATASETS") or "datasets").expanduser() / "regions"
    # A file of regions belongs to these images and settings.
    settings = f"{config.data}-{wanted.max_regions}-{wanted.mode}-{wanted.min_side}".encode()
    name = f"{type(config.data).__name__}-{hashlib.sha256(settings).hexdigest()[:12]}"
    options = search_options(wanted)
    searched = data.with_selective_search(training, folder / f"{name}-train.npz", **options)
    if val is training:
        return searched, searched
    return searched, data.with_selective_search(val, folder / f"{name}-val.npz", **options)


def annotated(config: Config) -> tuple[Any, Any]:
    """The configured images with their boxes."""
    masks, smaller = has_masks(config), decode_at_least(config)
    match config.data:
        case DigitScenes(directory):
            return tuple(data.load_digit_scenes(split, data_dir=directory) for split in ("train", "test"))
        case Coco() as coco:
            options = dict(with_masks=masks, mask_side=config.mask_side, on_error=coco.on_error)
            training = data.CocoDetection(
                coco.train_images,
                coco.train_annotations,
                decode_at_least=None if coco.val_images is None else smaller,
                **options,
            )
            if coco.limit is not None:
                training = data.Subset(training, range(min(coco.limit, len(training))))
            if coco.val_images is None:
                return training, training
            return training, data.CocoDetection(coco.val_images, coco.val_annotations, **options)
        case Tfds(name, training, val, directory):
            return (
                data.PreparedDetection(name, training, data_dir=directory, decode_at_least=smaller),
                data.PreparedDetection(name, val, data_dir=directory),
            )
        case Voc() as voc:
            options = dict(categories=voc.categories, on_error=voc.on_error)
            return (
                data.VocDetection(voc.devkit, voc.train, decode_at_least=smaller, **options),
                data.VocDetection(voc.devkit, voc.val, **options),
            )
    raise ValueError(f"--data: {config.model} is a detector, but {type(config.data).__name__} has no boxes")


def has_masks(config: Config) -> bool:
    """Whether the configured model has a mask head."""
    return getattr(jv.get_model(config.model, **config.model_options), "mask_head", None) is not None


def search_options(wanted: SelectiveSearch) -> dict[str, Any]:
    return dict(mode=wanted.mode, max_regions=wanted.max_regions, min_side=wanted.min_side)


def rows(config: Config) -> data.DetectionRows:
    return data.DetectionRows(
        max_objects=config.max_objects,
        with_masks=has_masks(config),
        mask_side=config.mask_side,
        max_regions=config.selective_search.max_regions,
    )


def loss_of(config: Config, model: nn.Module) -> Callable:
    def loss_fn(params, model_state, batch, key):
        (loss, metrics), updates = model.apply(
            {"params": params, **model_state},
            normalized(config, batch, dtype=config.compute_dtype),
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


def evaluator(
    config: Config, model: nn.Module, source: Any, devices: Sequence[jax.Device] | None = None
) -> Callable[..., dict[str, float]]:
    """COCO figures and validation losses."""
    devices = list(devices or jax.local_devices())

    def look(variables, batch):
        images, sizes = normalized(config, batch), batch["image_sizes"]
        found = model.apply(variables, images, sizes, **given(batch), method="detect")
        key = jax.random.key(0)
        _, terms = model.apply(
            variables, images, batch["targets"], sizes, **given(batch), method="loss", rngs={"sample": key}
        )
        weight = jnp.sum(batch["valid"], dtype=jnp.float32)
        return found, jax.tree.map(lambda value: value[None], {"weight": weight, **terms})

    place, on_devices = train.per_device(look, devices)

    def run(variables: Variables, images: int | None = None) -> dict[str, float]:
        part = source if images is None else data.Subset(source, range(min(images, len(source))))
        variables, results, terms = place(variables), [], []
        batches = validation_batches(config, rows(config), part, devices=len(devices))
        for batch in tqdm(batches, desc="evaluate", leave=False, disable=None):
            found, losses = jax.device_get(on_devices(variables, without_gaps(batch, len(devices))))
            results += evaluate.to_results(
                found,
                image_ids=batch["image_ids"],
                image_sizes=batch["image_sizes"],
                original_sizes=batch["original_sizes"],
                category_ids=part.category_ids,
                valid=batch["valid"],
            )
            terms += [dict(zip(losses, map(float, values))) for values in zip(*losses.values())]
        results, terms = (list(itertools.chain(*shares)) for shares in zip(*train.gather([results, terms])))
        weights = [term.pop("weight") for term in terms]
        if not sum(weights):
            raise ValueError("none of the validation images could be read; see the log for the reasons")
        figures = {f"val_{name}": float(np.average([one[name] for one in terms], weights=weights)) for name in terms[0]}
        truth = part.ground_truth()
        if not truth["annotations"] and (part is source or not source.ground_truth()["annotations"]):
            raise ValueError(
                f"none of the {len(source)} validation images has an annotation: there is nothing to evaluate. Some "
                "sets keep those of their test split to themselves; name another in data.val_split"
            )
        return figures | precision(model, truth, results)

    return run


def without_gaps(batch: dict[str, Any], devices: int) -> dict[str, Any]:
    """The batch with each device's first valid row in place of those that are not: rows of padding would count in the
    losses as images without objects. The losses of a device without any have no weight."""
    valid = batch["valid"].reshape(devices, -1)
    own = np.where(valid, np.arange(valid.shape[1]), valid.argmax(1)[:, None])
    index = (own + np.arange(devices)[:, None] * valid.shape[1]).ravel()
    replaced = jax.tree.map(lambda leaf: leaf[index], batch) if not valid.all() else batch
    return {**replaced, "valid": batch["valid"]}


def precision(model: nn.Module, truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float]:
    """COCO's figures; NaN where there is no truth."""
    kinds = ["bbox"] + (["segm"] if getattr(model, "mask_head", None) is not None else [])
    figures = {}
    for kind in kinds:
        found = evaluate.average_precision(
            truth, results, iou_type=kind, class_agnostic=getattr(model, "class_agnostic", False)
        )
        figures |= {f"{kind}/{name}": value for name, value in found.items()}
    return figures


def predictor(
    config: Config | None,
    model: nn.Module,
    variables: Variables,
    *,
    preprocessing: Any,
    categories: Sequence[str],
    min_score: float = 0.5,
) -> Callable[..., Prediction]:
    """The objects found, in pixels of the image; those below ``min_score`` are left out. Where the config gives the
    detector its regions, those of the example, or what selective search finds."""
    names = ("object",) if getattr(model, "class_agnostic", False) else tuple(categories)
    shapes = None if config is None else config.image_size
    ask = functools.partial(
        jv.predict, model, variables, preprocessing=preprocessing, shapes=shapes, batch_size=1, min_score=min_score
    )

    def predict(image: np.ndarray, example: Any = None) -> Prediction:
        regions = None
        if config is not None and config.selective_search.max_regions:
            known = example is not None and "regions" in example
            regions = (
                example["regions"] if known else data.selective_search(image, **search_options(config.selective_search))
            )
        (found,) = ask([image], regions=None if regions is None else [regions])
        rows = [
            {"class": names[label], "score": float(score), "box": [float(side) for side in box]}
            for score, label, box in zip(found.scores, found.labels, found.boxes)
        ]
        lines = [
            f"{row['score']:7.4f}  {row['class']:16s} " + " ".join(f"{side:7.1f}" for side in row["box"])
            for row in rows
        ]
        picture = visualize.draw_detections(image, found, names=names, min_score=min_score)
        return Prediction(lines, picture, {"objects": rows})

    return predict
