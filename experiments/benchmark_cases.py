"""What the benchmark times on our side; ``torch_reference`` builds the same from each case's ``torch``."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    torch: dict[str, Any]  # what torch_reference.py builds
    build: Callable[[], tuple[Callable, tuple]]  # a function to compile and its arguments
    carried: int = 0  # so many of its first results are the first arguments of the next call
    multiply_adds: float = 0.0


def op_cases() -> list[Case]:
    import jax

    from experiments import benchmark_inputs as inputs
    from jaxvision import ops

    def roi_align(maps, boxes):
        levels = ops.assign_levels(boxes, num_levels=len(maps))
        scales = tuple(1 / stride for stride in inputs.STRIDES)
        return ops.multilevel_roi_align(maps, boxes, levels, size=(7, 7), spatial_scales=scales, sampling_ratio=2)

    def max_pool(x):
        return ops.max_pool(x, window=3, strides=2, padding=1)

    def with_gradient(function):
        def both(upstream, x, *rest):
            out, pull_back = jax.vjp(lambda x: function(x, *rest), x)
            return out, pull_back(upstream)

        return both

    def nms(count):
        def run(boxes, scores):
            return ops.nms(boxes, scores, iou_threshold=0.5, max_output=count)

        return lambda: (run, (inputs.boxes(count), inputs.uniform(count)))

    def paste(masks, boxes):
        return ops.masks.paste(masks, boxes, image_size=inputs.IMAGE)

    regions = lambda: (inputs.pyramid(), inputs.boxes(512))  # noqa: E731
    picture = lambda: (inputs.normal(8, 112, 112, 64),)  # noqa: E731
    roi_upstream, pool_upstream = (512, 7, 7, 256), (8, 56, 56, 64)
    return [
        Case("RoIAlign forward", {"kind": "roi_align", "backward": False}, lambda: (roi_align, regions())),
        Case(
            "RoIAlign forward + backward",
            {"kind": "roi_align", "backward": True},
            lambda: (with_gradient(roi_align), (inputs.normal(*roi_upstream), *regions())),
        ),
        Case("NMS, 2,000 boxes", {"kind": "nms", "count": 2000}, nms(2000)),
        Case("NMS, 8,000 boxes", {"kind": "nms", "count": 8000}, nms(8000)),
        Case("paste 100 masks", {"kind": "paste"}, lambda: (paste, (inputs.uniform(100, 28, 28), inputs.boxes(100)))),
        Case("max pool 3x3/2 forward", {"kind": "max_pool", "backward": False}, lambda: (max_pool, picture())),
        Case(
            "max pool 3x3/2 forward + backward",
            {"kind": "max_pool", "backward": True},
            lambda: (with_gradient(max_pool), (inputs.normal(*pool_upstream), *picture())),
        ),
    ]


def model_cases() -> list[Case]:
    name = "maskrcnn_resnet50_fpn"
    detection = Case(f"{name} detect and paste", {"kind": "detector", "name": name}, lambda: detector(name))
    return [*classifier_cases(("squeezenet1_1", "resnet18", "resnet50"), (1, 8)), detection]


def classifier_cases(names: Sequence[str], batches: Sequence[int]) -> list[Case]:
    """Each model forward and in training, with each batch size."""
    import jaxvision as jv
    from jaxvision.models.counting import count

    cases = []
    for name, train, batch in itertools.product(names, (False, True), batches):
        size = 299 if name == "inception_v3" else 224
        work = count(jv.get_model(name), (batch, size, size, 3)).multiply_adds
        cases.append(
            Case(
                f"{name} {'training step' if train else 'forward'}, batch {batch}",
                {"kind": "classifier", "name": name, "batch": batch, "size": size, "train": train},
                functools.partial(classifier, name, batch, size, train),
                carried=3 if train else 0,
                multiply_adds=work * (3 if train else 1),
            )
        )
    return cases


def classifier(name: str, batch: int, size: int, train: bool) -> tuple[Callable, tuple]:
    import jax
    import jax.numpy as jnp
    import optax

    import jaxvision as jv
    from experiments import benchmark_inputs as inputs

    model = jv.get_model(name, num_classes=1000)
    images = inputs.normal(batch, size, size, 3)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    if not train:
        return lambda variables, images: model.apply(variables, images)[0], (variables, images)
    labels, tx = jnp.arange(batch) % 1000, optax.sgd(1e-3, momentum=0.9)
    params, statistics_ = variables["params"], {k: v for k, v in variables.items() if k != "params"}

    def loss(params, statistics_, images, key):
        (logits, features), updated = model.apply(
            {"params": params, **statistics_}, images, train=True, mutable=list(statistics_), rngs={"dropout": key}
        )
        heads = [logits, *(value for name, value in features.items() if name.startswith("aux"))]
        return sum(optax.softmax_cross_entropy_with_integer_labels(head, labels).mean() for head in heads), updated

    def step(params, statistics_, state, images, key):
        (_, updated), gradient = jax.value_and_grad(loss, has_aux=True)(params, statistics_, images, key)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), updated, state

    return step, (params, statistics_, tx.init(params), images, jax.random.key(1))


def detector(name: str) -> tuple[Callable, tuple]:
    """Random weights, but sure of class 0, as on torch's side: 100 detections to find and paste."""
    import jax

    import jaxvision as jv
    from experiments import benchmark_inputs as inputs
    from jaxvision import ops

    model = jv.get_model(name)
    images = inputs.uniform(1, *inputs.IMAGE, 3)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    flat, tree = jax.tree_util.tree_flatten_with_path(variables)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    (bias,) = [i for i, path in enumerate(names) if path.endswith("cls_score/bias") and "rpn" not in path]
    leaves = [leaf.at[1].set(5.0) if i == bias else leaf for i, (_, leaf) in enumerate(flat)]

    def detect(variables, images):
        found = model.apply(variables, images, method="detect")
        return found, ops.masks.paste(found.masks[0], found.boxes[0], image_size=inputs.IMAGE)

    return detect, (jax.tree.unflatten(tree, leaves), images)
