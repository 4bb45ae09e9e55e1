"""Classification as a task, with the same functions as ``detection``."""

from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

from experiments.augmentation import transforms
from experiments.config import Config, Folders
from jaxvision import data, evaluate, losses, visualize
from jaxvision.typing import Variables


def sources(config: Config) -> tuple[Any, Any]:
    """The training and the validation source."""
    match config.data:
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


def loss_of(model: nn.Module) -> Callable:
    """``loss_fn(params, model_state, batch, key) -> (loss, (metrics, model_state))``."""

    def loss_fn(params, model_state, batch, key):
        if model.axis_name is not None:  # dropout differs between devices
            key = jax.random.fold_in(key, lax.axis_index(model.axis_name))
        (logits, _), updates = model.apply(
            {"params": params, **model_state},
            batch["images"],
            train=True,
            rngs={"dropout": key},
            mutable=list(model_state),
        )
        loss = losses.cross_entropy(logits, batch["labels"]).mean()
        accuracy = jnp.mean(jnp.argmax(logits, -1) == batch["labels"], dtype=logits.dtype)
        return loss, ({"accuracy": accuracy}, updates)

    return loss_fn


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
