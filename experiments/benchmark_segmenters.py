"""Segmenters on our side of the benchmark: inference, and a training step with the auxiliary head."""

import functools
import itertools
from collections.abc import Callable

from experiments.benchmark_cases import Case

NAMES, BATCHES, SIZE = ("fcn_resnet50", "deeplabv3_resnet50"), (1, 4), 320


def segmentation_cases() -> list[Case]:
    """Each segmenter forward and in training, with each batch size."""
    return [
        Case(
            f"{name} {'training step' if train else 'forward'}, batch {batch}",
            {"kind": "segmenter", "name": name, "batch": batch, "size": SIZE, "train": train},
            functools.partial(segmenter, name, batch, train),
            carried=3 if train else 0,
        )
        for name, train, batch in itertools.product(NAMES, (False, True), BATCHES)
    ]


def segmenter(name: str, batch: int, train: bool) -> tuple[Callable, tuple]:
    import jax
    import jax.numpy as jnp
    import optax

    import jaxvision as jv
    from experiments import benchmark_inputs as inputs
    from jaxvision import losses

    model = jv.get_model(name, auxiliary=train)
    images = inputs.normal(batch, SIZE, SIZE, 3)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    if not train:
        return lambda variables, images: model.apply(variables, images)[0], (variables, images)
    labels, tx = jnp.arange(SIZE**2).reshape(1, SIZE, SIZE) % 21, optax.sgd(1e-3, momentum=0.9)
    labels = jnp.tile(labels, (batch, 1, 1))
    params, statistics = variables["params"], {k: v for k, v in variables.items() if k != "params"}

    def loss(params, statistics, images, labels, key):
        (logits, features), updated = model.apply(
            {"params": params, **statistics}, images, train=True, mutable=list(statistics), rngs={"sample": key}
        )
        main, aux = (losses.weighted_mean(*losses.pixel_cross_entropy(x, labels)) for x in (logits, features["aux"]))
        return main + 0.5 * aux, updated

    def step(params, statistics, state, images, labels, key):
        (_, updated), gradient = jax.value_and_grad(loss, has_aux=True)(params, statistics, images, labels, key)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), updated, state

    return step, (params, statistics, tx.init(params), images, labels, jax.random.key(1))
