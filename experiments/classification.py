"""Classification as a task (``tasks.Task``)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

from experiments.config import Config, DigitCrops, Digits, Folders, Tfds
from experiments.reading import decode_at_least, normalized, validation_batches
from experiments.tasks import Prediction
from jaxvision import data, evaluate, losses, ops, train, visualize
from jaxvision.typing import Array, Variables

# Of the losses of auxiliary heads: arXiv:1409.4842, section 5; arXiv:1512.00567 gives none, 0.4 is common.
AUXILIARY_WEIGHT = {"googlenet": 0.3, "inception_v3": 0.4}


def sources(config: Config) -> tuple[Any, Any]:
    smaller = decode_at_least(config)
    match config.data:
        case Digits():
            return data.Digits("train"), data.Digits("test")
        case DigitCrops():
            return data.DigitCrops("train"), data.DigitCrops("test")
        case Tfds(name, train_split, val_split, directory):
            return (
                data.PreparedImages(name, train_split, data_dir=directory, decode_at_least=smaller),
                data.PreparedImages(name, val_split, data_dir=directory),
            )
        case Folders(train, val, on_error):
            return (
                data.ImageFolder(train, on_error=on_error, decode_at_least=smaller),
                data.ImageFolder(val, on_error=on_error),
            )
    raise ValueError(f"--data: {config.model} is a classifier, but {type(config.data).__name__} is for detectors")


def rows(config: Config) -> data.ClassificationRows:
    return data.ClassificationRows()


def loss_of(config: Config, model: nn.Module) -> Callable:
    """Mixup and cutmix draw the same on all devices, dropout does not."""
    weight = AUXILIARY_WEIGHT.get(config.model, 0.3)
    mix = mixing(config.augmentation.mixup, config.augmentation.cutmix)

    def loss_fn(params, model_state, batch, key):
        mix_key, dropout_key = jax.random.split(key)
        if model.axis_name is not None:
            dropout_key = jax.random.fold_in(dropout_key, lax.axis_index(model.axis_name))
        images, labels = normalized(config, batch, dtype=config.compute_dtype), batch["labels"]
        if mix is not None:
            images, labels = mix(mix_key, images, jax.nn.one_hot(labels, model.num_classes))
        (logits, features), updates = model.apply(
            {"params": params, **model_state},
            images,
            train=True,
            rngs={"dropout": dropout_key},
            mutable=list(model_state),
        )

        def cross_entropy(logits):
            return losses.cross_entropy(logits, labels, label_smoothing=config.label_smoothing).mean()

        loss = cross_entropy(logits)
        auxiliary = {f"loss_{name}": cross_entropy(features[name]) for name in ("aux1", "aux2") if name in features}
        loss += weight * sum(auxiliary.values())
        accuracy = jnp.mean(jnp.argmax(logits, -1) == batch["labels"], dtype=loss.dtype)
        return loss, ({"accuracy": accuracy, **auxiliary}, updates)

    return loss_fn


def mixing(mixup: float, cutmix: float) -> Callable[..., tuple[Array, Array]] | None:
    """``mix(key, images, soft labels)``: the one that has an alpha; if both have, a coin decides for each batch."""
    pairs = ((train.mixup, mixup), (train.cutmix, cutmix))
    kinds = [partial(function, alpha=alpha) for function, alpha in pairs if alpha]
    if len(kinds) < 2:
        return kinds[0] if kinds else None

    def either(key, images, labels):
        coin_key, key = jax.random.split(key)
        return lax.cond(jax.random.bernoulli(coin_key), *kinds, key, images, labels)

    return either


def evaluator(
    config: Config, model: nn.Module, source: Any, devices: Sequence[jax.Device] | None = None
) -> Callable[..., dict[str, float]]:
    """Top-1, top-5 and the loss."""
    ks = (1, min(5, len(source.categories)))
    devices = list(devices or jax.local_devices())

    def score(variables, batch):
        logits, _ = model.apply(variables, normalized(config, batch))
        tops = [evaluate.top_k(logits, batch["labels"], batch["valid"], k) for k in ks]
        states = *tops, evaluate.mean(losses.cross_entropy(logits, batch["labels"]), batch["valid"])
        return jnp.asarray(states)[None]  # [1, 3, 2]: of this device

    place, on_devices = train.per_device(score, devices)

    def run(variables: Variables, images: int | None = None) -> dict[str, float]:
        part = source if images is None else data.Subset(source, range(min(images, len(source))))
        variables, states = place(variables), []
        batches = validation_batches(config, rows(config), part, devices=len(devices))
        for batch in tqdm(batches, desc="evaluate", leave=False, disable=None):
            states += np.asarray(on_devices(variables, batch)).tolist()
        states = [state for share in train.gather(states) for state in share]
        top1, topk, loss = (evaluate.merge(evaluate.Mean(*part) for part in parts).result() for parts in zip(*states))
        return {"top1": top1, f"top{ks[1]}": topk, "val_loss": loss}

    return run


def predictor(
    config: Config,
    model: nn.Module,
    variables: Variables,
    *,
    preprocessing: Any,
    categories: Sequence[str],
    top: int = 5,
) -> Callable[..., Prediction]:
    """The ``top`` most probable classes. preprocessing: ``reading.Preprocessing`` or that of a weights record."""
    numbers = dict(mean=preprocessing.mean, std=preprocessing.std, scale=preprocessing.scale)
    classify = jax.jit(
        lambda variables, image: jax.nn.softmax(model.apply(variables, ops.normalize(image, None, **numbers))[0])
    )

    def predict(image: np.ndarray, example: Any = None) -> Prediction:
        probabilities = np.asarray(classify(variables, preprocessing.pixels(image)[None]))[0]
        best = np.argsort(-probabilities)[:top]
        lines = [f"{probabilities[index]:7.4f}  {categories[index]}" for index in best]
        picture = visualize.draw_classes(image, probabilities, names=categories, top=top)
        values = [{"class": categories[index], "probability": float(probabilities[index])} for index in best]
        return Prediction(lines, picture, {"classes": values})

    return predict
