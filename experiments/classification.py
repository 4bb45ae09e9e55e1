"""Classification as a task, with the same functions as ``detection``."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

from experiments.augmentation import transforms
from experiments.config import Config, DigitCrops, Digits, Folders, Tfds
from jaxvision import data, evaluate, losses, train, visualize
from jaxvision.typing import Array, Variables

# Of the losses of auxiliary heads: arXiv:1409.4842, section 5; arXiv:1512.00567 gives none, 0.4 is common.
AUXILIARY_WEIGHT = {"googlenet": 0.3, "inception_v3": 0.4}


def sources(config: Config) -> tuple[Any, Any]:
    """The training and the validation source."""
    match config.data:
        case Digits():
            return data.Digits("train"), data.Digits("test")
        case DigitCrops():
            return data.DigitCrops("train"), data.DigitCrops("test")
        case Tfds(name, train_split, val_split, directory):
            return tuple(data.PreparedImages(name, split, data_dir=directory) for split in (train_split, val_split))
        case Folders(train, val, on_error):
            train, val = data.ImageFolder(train, on_error=on_error), data.ImageFolder(val, on_error=on_error)
            if train.categories != val.categories:
                raise ValueError(f"training classes {train.categories} are not the validation's {val.categories}")
            return train, val
    raise ValueError(f"{config.model} is a classifier, but {type(config.data).__name__} is for detectors")


def train_batches(config: Config, source: Any) -> Any:
    """Endless augmented, shuffled batches of this process's share."""
    return _batches(config, source, train=True)


def validation_batches(config: Config, source: Any) -> Any:
    """Every image once, in order; the last batch is padded with rows that are not valid. Every process reads all."""
    return _batches(config, source, train=False)


def loss_of(config: Config, model: nn.Module) -> Callable:
    """``loss_fn(params, model_state, batch, key) -> (loss, (metrics, model_state))``.

    Mixup and cutmix draw the same on all devices, dropout does not.
    """
    weight = AUXILIARY_WEIGHT.get(config.model, 0.3)
    mix = mixing(config.augmentation.mixup, config.augmentation.cutmix)

    def loss_fn(params, model_state, batch, key):
        mix_key, dropout_key = jax.random.split(key)
        if model.axis_name is not None:
            dropout_key = jax.random.fold_in(dropout_key, lax.axis_index(model.axis_name))
        images, labels = batch["images"], batch["labels"]
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


def evaluator(config: Config, model: nn.Module, source: Any) -> Callable[..., dict[str, float]]:
    """``evaluate(variables, images=None)``: top-1, top-5 and the loss on the first so many images (all)."""
    ks = (1, min(5, len(source.categories)))

    @jax.jit
    def score(variables, batch):
        logits, _ = model.apply(variables, batch["images"])
        tops = [evaluate.top_k(logits, batch["labels"], batch["valid"], k) for k in ks]
        return *tops, evaluate.mean(losses.cross_entropy(logits, batch["labels"]), batch["valid"])

    def run(variables: Variables, images: int | None = None) -> dict[str, float]:
        part = source if images is None else data.Subset(source, range(min(images, len(source))))
        states = [
            score(variables, batch) for batch in tqdm(validation_batches(config, part), leave=False, disable=None)
        ]
        top1, topk, loss = (evaluate.merge(parts).result() for parts in zip(*states))
        return {"top1": float(top1), f"top{ks[1]}": float(topk), "val_loss": float(loss)}

    return run


def pictures(
    config: Config, model: nn.Module, variables: Variables, source: Any, count: int
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, RGB picture) of the first validation images with their most probable classes."""
    classify = jax.jit(lambda images: jax.nn.softmax(model.apply(variables, images)[0]))
    first = 0
    for batch in validation_batches(config, data.Subset(source, range(min(count, len(source))))):
        probabilities = np.asarray(classify(batch["images"]))
        for row in np.flatnonzero(batch["valid"]):
            image = source[first + int(row)]["image"]
            yield f"{first + int(row)}", visualize.draw_classes(image, probabilities[row], names=source.categories)
        first += len(probabilities)


def _batches(config: Config, source: Any, *, train: bool) -> Any:
    return data.classification_batches(
        source,
        batch_size=config.batch_size // jax.process_count() if train else config.eval_batch_size,
        image_size=config.image_size,
        mean=config.mean,
        std=config.std,
        seed=config.seed,
        shuffle=train,
        repeat=train,
        transforms=transforms(config, train=train),
        process_index=jax.process_index() if train else 0,
        process_count=jax.process_count() if train else 1,
        workers=config.workers,
    )
