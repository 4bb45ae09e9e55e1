"""Segmentation as a task (``tasks.Task``): the class of every pixel."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import jaxvision as jv
from experiments.config import Cityscapes, Config, DigitScenes, Maps, Panoptic, Voc
from experiments.reading import decode_at_least, normalized, validation_batches
from experiments.tasks import Prediction
from jaxvision import data, evaluate, inference, losses, train, visualize
from jaxvision.typing import Array, Variables

AUXILIARY_WEIGHT = 0.5  # of the loss of an auxiliary head, as in torchvision's reference training


def sources(config: Config) -> tuple[Any, Any]:
    smaller = dict(decode_at_least=decode_at_least(config))
    match config.data:
        case DigitScenes(directory):
            return tuple(
                data.WithBackground(data.load_digit_scenes(split, data_dir=directory)) for split in ("train", "test")
            )
        case Voc() as voc:
            options = dict(categories=("background", *voc.categories), maps=voc.maps, on_error=voc.on_error)
            training = data.voc_segmentation(voc.devkit, voc.train, **options, **smaller)
            return training, data.voc_segmentation(voc.devkit, voc.val, **options)
        case Cityscapes(root, training, val, on_error):
            options = dict(on_error=on_error)
            return data.cityscapes(root, training, **options, **smaller), data.cityscapes(root, val, **options)
        case Maps() as maps:
            options = dict(categories=maps.names(), zero_is_none=maps.zero_is_none, on_error=maps.on_error)
            training = data.semantic_folders(maps.train_images, maps.train_maps, **options, **smaller)
            return training, data.semantic_folders(maps.val_images, maps.val_maps, **options)
        case Panoptic() as coco:
            options = dict(on_error=coco.on_error, category_ids=coco.category_ids or None)
            training = data.coco_panoptic(
                coco.train_images, coco.train_annotations, coco.train_maps, **options, **smaller
            )
            return training, data.coco_panoptic(coco.val_images, coco.val_annotations, coco.val_maps, **options)
    raise ValueError(f"--data: {config.model} is a segmenter, but {type(config.data).__name__} has no maps of classes")


def rows(config: Config) -> data.SegmentationRows:
    return data.SegmentationRows()


def loss_of(config: Config, model: nn.Module) -> Callable:
    if config.class_weights and len(config.class_weights) != model.num_classes:
        raise ValueError(
            f"--class-weights has {len(config.class_weights)} numbers, but there are {model.num_classes} classes; give "
            "each class its own, or no numbers for weights of 1"
        )

    def loss_fn(params, model_state, batch, key):
        (logits, features), updates = model.apply(
            {"params": params, **model_state},
            normalized(config, batch, dtype=config.compute_dtype),
            train=True,
            rngs={"sample": key},
            mutable=list(model_state),
        )
        terms = terms_of(config, logits, batch["semantic"], axis_name=model.axis_name)
        loss = sum(terms.values())
        if "aux" in features:
            auxiliary = sum(terms_of(config, features["aux"], batch["semantic"], axis_name=model.axis_name).values())
            loss, terms = loss + AUXILIARY_WEIGHT * auxiliary, {**terms, "loss_aux": auxiliary}
        return loss, (terms, updates)

    return loss_fn


def terms_of(config: Config, logits: Array, labels: Array, *, axis_name: str | None = None) -> dict[str, Array]:
    """The configured losses by name, each the mean over the pixels, or images, in which anything is known.

    With ``class_weights`` a network would learn probabilities that are off by these factors, and paint rare classes too
    large. So it learns what they would be but for the factors: they are part of the logits while it trains (as in logit
    adjustment, Menon et al., arXiv:2007.07314, section 5).
    """
    weights = np.array(config.class_weights, np.float32) if config.class_weights else None
    shift = np.zeros(1, np.float32) if weights is None else np.log(weights)
    known = jnp.any(labels != jv.typing.IGNORE, axis=(1, 2))

    def term(name: str) -> Array:
        if name in OF_IMAGES:
            return losses.weighted_mean(OF_IMAGES[name](logits, labels), known, axis_name=axis_name)
        gamma = 2.0 if name == "focal" else 0.0
        shifted = logits + shift[None, None, None]
        values, counted = losses.pixel_cross_entropy(shifted, labels, class_weights=weights, gamma=gamma)
        if name == "hard_pixels":
            counted = losses.hardest(values, counted, share=config.hard_share)
        return losses.weighted_mean(values, counted, axis_name=axis_name)

    return {f"loss_{name}": term(name) for name in config.pixel_losses}


OF_IMAGES = {"dice": losses.dice, "lovasz": losses.lovasz_softmax, "boundary": losses.boundary}


def evaluator(
    config: Config, model: nn.Module, source: Any, devices: Sequence[jax.Device] | None = None
) -> Callable[..., dict[str, float]]:
    """mIoU, pixel accuracy and their like, the score of the borders, the cross-entropy, and the IoU of each class; at
    the size in which the network takes the images."""
    classes = dict(num_classes=len(source.categories))
    devices = list(devices or jax.local_devices())

    def count(variables, batch):
        labels, truth = model.apply(variables, normalized(config, batch))[0], batch["semantic"]
        found = jnp.argmax(labels, axis=-1)
        values, counted = losses.pixel_cross_entropy(labels, truth)
        states = (
            evaluate.confusion(found, truth, **classes),
            evaluate.border_counts(found, truth, **classes),
            jnp.stack([jnp.sum(jnp.where(counted > 0, values, 0)), jnp.sum(counted)]),
        )
        return jax.tree.map(lambda state: state[None], states)  # of this device

    place, on_devices = train.per_device(count, devices)

    def run(variables: Variables, images: int | None = None) -> dict[str, float]:
        part = source if images is None else data.Subset(source, range(min(images, len(source))))
        k = len(source.categories)
        variables, sums = place(variables), [np.zeros((k, k), np.int64), np.zeros((k, 4), np.int64), np.zeros(2)]
        batches = validation_batches(config, rows(config), part, devices=len(devices))
        for batch in tqdm(batches, desc="evaluate", leave=False, disable=None):
            states = jax.device_get(on_devices(variables, batch))
            sums = [whole + state.sum(0, dtype=whole.dtype) for whole, state in zip(sums, states)]
        shares = train.gather([whole.tolist() for whole in sums])
        table, borders, (loss, pixels) = (sum(map(np.asarray, parts)) for parts in zip(*shares))
        figures = evaluate.segmentation_figures(table)
        each = {f"IoU/{name}": float(value) for name, value in zip(source.categories, figures.pop("IoU"))}
        loss = float(loss / pixels) if pixels else float("nan")
        return {**figures, "border_F": evaluate.border_score(borders), "val_loss": loss, **each}

    return run


class AsIs(NamedTuple):
    """Preprocessing that leaves an image's size alone."""

    mean: Sequence[float]
    std: Sequence[float]
    scale: float

    def pixels(self, image: np.ndarray) -> np.ndarray:
        return image


def predictor(
    config: Config | None,
    model: nn.Module,
    variables: Variables,
    *,
    preprocessing: Any,
    categories: Sequence[str],
    tile: tuple[int, int] | None = None,
) -> Callable[..., Prediction]:
    """The class of each pixel of the image. tile: (height, width) of overlapping tiles in which the image goes through
    the network at its own size, however large; without it the image is prepared as for training."""
    if tile is None:
        shapes = None if config is None else config.image_size
        options = dict(preprocessing=preprocessing, shapes=shapes)
        ask = functools.partial(jv.predict, model, variables, batch_size=1, **options)
    else:
        in_tiles = inference.tiled(inference.detect_with(model), size=tile)
        options = dict(preprocessing=AsIs(preprocessing.mean, preprocessing.std, preprocessing.scale), bucket=1)
        ask = functools.partial(jv.predict, in_tiles, variables, batch_size=1, **options)
    background = 0 if categories[0] == "background" else None

    def predict(image: np.ndarray, example: Any = None) -> Prediction:
        (found,) = ask([image])
        classes, pixels = np.unique(found.labels, return_counts=True)
        order = np.argsort(-pixels, kind="stable")
        shares = [{"class": categories[classes[i]], "share": float(pixels[i] / found.labels.size)} for i in order]
        lines = [f"{row['share']:7.4f}  {row['class']}" for row in shares]
        picture = visualize.draw_segmentation(image, found.labels, names=categories, background=background)
        files = {"labels": visualize.label_picture(found.labels)}
        return Prediction(lines, picture, {"classes": shares}, files)

    return predict
