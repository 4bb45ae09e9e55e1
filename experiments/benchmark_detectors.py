"""Detectors on our side of the benchmark: inference, a training step, and whether objects in view change the time."""

import functools
from collections.abc import Callable
from typing import Any

from experiments.benchmark_cases import Case

# Where the class logits get their biases, and the side that the images are resized to (None: as they are).
BIAS = {
    "fasterrcnn_resnet50_fpn": "cls_score/bias",
    "retinanet_resnet50_fpn": "cls_logits/bias",
    "ssd300_vgg16": "classification_heads",
}
SIDE = {"ssd300_vgg16": 300}
OPTIONS = {"fasterrcnn_resnet50_fpn": {"frozen_norm": False}, "retinanet_resnet50_fpn": {"frozen_norm": False}}


def detection_cases() -> list[Case]:
    """Each detector forward and in training, on one image of 480 x 640 pixels."""
    return [
        Case(
            f"{name} {'training step' if train else 'forward'}, batch 1",
            {"kind": "detector_step" if train else "detector", "name": name},
            functools.partial(training if train else inference, name),
            carried=3 if train else 0,
        )
        for name in BIAS
        for train in (False, True)
    ]


def inference(name: str, bias: float = 5.0) -> tuple[Callable, tuple]:
    """Random weights, but sure of class 0 by ``bias``, as on torch's side: as many detections as there is room for."""
    model, variables, images = _model(name)
    return functools.partial(_detect, model, name), (biased(name, variables, bias), images)


def training(name: str) -> tuple[Callable, tuple]:
    """Loss, gradients and an SGD step, with five objects in the image."""
    import jax
    import jax.numpy as jnp
    import optax

    from experiments import benchmark_inputs as inputs
    from jaxvision.typing import Targets

    model, variables, images = _model(name)
    tx = optax.sgd(1e-3, momentum=0.9)
    params, statistics = variables["params"], {k: v for k, v in variables.items() if k != "params"}

    def step(params, statistics, state, images, boxes, key):
        images, scale = _resized(name, images)
        targets = Targets((boxes * scale[None])[None], jnp.arange(5)[None], jnp.ones((1, 5), bool))

        def loss(params):
            (total, _), updated = model.apply(
                {"params": params, **statistics}, images, targets,
                train=True, method="loss", rngs={"sample": key}, mutable=list(statistics),
            )  # fmt: skip
            return total, updated

        (_, updated), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), updated, state

    boxes = jnp.clip(inputs.boxes(5), 0, jnp.array([inputs.IMAGE[1], inputs.IMAGE[0]] * 2, jnp.float32)[None])
    return step, (params, statistics, tx.init(params), images, boxes, jax.random.key(1))


def time_by_objects(name: str, counts: tuple[int, ...], repeats: int) -> dict[int, tuple[int, list[float]]]:
    """For each wished number of objects in view the number that was found, and seconds of calls in turn.

    The same program and image; the bias of the class logits is searched for that makes the number of detections, which
    cannot pass what the detector has room for.
    """
    import time

    import jax

    model, variables, images = _model(name)
    program = jax.jit(functools.partial(_detect, model, name))
    with_bias = functools.partial(biased, name, variables)
    settings = {count: with_bias(_bias_for(count, program, with_bias, images)) for count in counts}
    found = {count: int(program(values, images).valid.sum()) for count, values in settings.items()}
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(repeats):
        for count, values in settings.items():
            start = time.perf_counter()
            jax.block_until_ready(program(values, images))
            seconds[count].append(time.perf_counter() - start)
    return {count: (found[count], seconds[count]) for count in counts}


def biased(name: str, variables: Any, bias: float) -> Any:
    """The variables with this bias for class 0 in every box's logits, and its opposite for the background."""
    import jax

    def change(path, leaf):
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        if BIAS[name] not in where or not where.endswith("bias") or "proposals" in where:
            return leaf
        leaf = leaf.reshape(-1, 91).at[:, 1].set(bias)  # torchvision's class 0 is the background, or unused
        return (leaf if "retinanet" in name else leaf.at[:, 0].set(-bias)).reshape(-1)

    return jax.tree_util.tree_map_with_path(change, variables)


def _bias_for(count: int, program: Callable, with_bias: Callable, images: Any) -> float:
    """By bisection; the number of detections grows with the bias."""
    low, high = -30.0, 30.0
    if count == 0:
        return low
    for _ in range(14):
        middle = (low + high) / 2
        enough = int(program(with_bias(middle), images).valid.sum()) >= count
        low, high = (low, middle) if enough else (middle, high)
    return high


def _model(name: str):
    import jax

    import jaxvision as jv
    from experiments import benchmark_inputs as inputs

    model = jv.get_model(name, **OPTIONS.get(name, {}))
    images = inputs.uniform(1, *inputs.IMAGE, 3)
    return model, jax.jit(model.init)(jax.random.key(0), _resized(name, images)[0]), images


def _resized(name: str, images: Any):
    """The images at the network's size, as torchvision resizes inside of its models, and the scale of their boxes."""
    import jax.numpy as jnp

    from jaxvision import ops

    height, width = images.shape[1:3]
    side = SIDE.get(name)
    if side is None:
        return images, jnp.ones(4)
    return ops.resize(images, size=(side, side)), jnp.array([side / width, side / height] * 2, jnp.float32)


def _detect(model: Any, name: str, variables: Any, images: Any):
    return model.apply(variables, _resized(name, images)[0], method="detect")
