"""Time kernels and models, side by side with torchvision: ``python experiments/benchmark.py ops|model``.

torch may live in another environment: ``--torch-python /path/to/its/python``. Both libraries run on the CPU with the
same number of threads and take turns, call by call. Without torch jaxvision is timed alone. The ratio is the median
over the turns of our time by torch's, so below 1 is faster than torch. Other work on the machine does not slow both
alike: threads that wait for each other lose most. On a busy machine believe ``--threads 1`` more, and neither much.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # run as a script from anywhere


@dataclasses.dataclass(frozen=True)
class Options:
    torch_python: Path | None = None
    """An interpreter that has torch and torchvision. Without it, jaxvision is timed alone."""
    repeats: int = 10
    """Timed calls of each library in each case."""
    threads: int = os.cpu_count() or 1
    """Threads of each library; jax is held to so many cores."""
    only: str = ""
    """Run the cases whose name contains this."""


@dataclasses.dataclass(frozen=True)
class Ops(Options):
    """Kernels: RoIAlign, NMS, mask pasting, max pooling."""


@dataclasses.dataclass(frozen=True)
class Model(Options):
    """Models: classifiers forward and in training at 224 x 224, Mask R-CNN at 480 x 640."""


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    torch: dict[str, Any]  # what torch_reference.py builds
    build: Callable[[], tuple[Callable, tuple]]  # a function to compile and its arguments


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
    cases = []
    for name in ("squeezenet1_1", "resnet18", "resnet50"):
        for train in (False, True):
            for batch in (1, 8):
                cases.append(
                    Case(
                        f"{name} {'training step' if train else 'forward'}, batch {batch}",
                        {"kind": "classifier", "name": name, "batch": batch, "train": train},
                        lambda name=name, batch=batch, train=train: classifier(name, batch, train),
                    )
                )
    name = "maskrcnn_resnet50_fpn"
    return [*cases, Case(f"{name} detect and paste", {"kind": "detector", "name": name}, lambda: detector(name))]


def classifier(name: str, batch: int, train: bool) -> tuple[Callable, tuple]:
    import jax
    import jax.numpy as jnp
    import optax

    import jaxvision as jv
    from experiments import benchmark_inputs as inputs

    model = jv.get_model(name, num_classes=1000)
    images = inputs.normal(batch, 224, 224, 3)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    if not train:
        return lambda variables, images: model.apply(variables, images)[0], (variables, images)
    labels, tx = jnp.arange(batch) % 1000, optax.sgd(1e-3, momentum=0.9)
    params, statistics_ = variables["params"], {k: v for k, v in variables.items() if k != "params"}

    def loss(params, statistics_, images, key):
        (logits, _), updated = model.apply(
            {"params": params, **statistics_}, images, train=True, mutable=list(statistics_), rngs={"dropout": key}
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updated

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


class Torch:
    """The worker process with torch, idle except while it answers."""

    # OpenMP's threads spin at barriers by default. If anything else wants their cores, that made torch up to ten times
    # slower with two threads than with one (pasting: 1,742 against 162 ms), and us look good for no merit of ours.
    PASSIVE: ClassVar = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}

    def __init__(self, python: Path, threads: int):
        self.process = subprocess.Popen(
            [str(python), str(HERE / "torch_reference.py"), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | self.PASSIVE,
        )
        self.versions = self._answer()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the torch process ended; its error is above")
        return json.loads(line)


def measure(case: Case, torch: Torch | None, repeats: int) -> dict[str, Any]:
    """Seconds of each call in turn, and of the compilation."""
    import jax

    function, arguments = case.build()
    arguments = jax.device_put(arguments)
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compilation = time.perf_counter() - start
    layout = torch.ask({"prepare": case.torch})["layout"] if torch else "none"
    ours, theirs = [], []
    for _ in range(repeats + 1):  # the first turn warms up
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        ours.append(time.perf_counter() - start)
        if torch:
            theirs.append(torch.ask({"run": True})["seconds"])
    return {"jax": ours[1:], "torch": theirs[1:], "compilation": compilation, "layout": layout}


def table(options: Options, torch: Torch | None) -> Iterator[str]:
    cases = op_cases() if isinstance(options, Ops) else model_cases()
    columns = ["case", "jax ms", *(["torch ms", "ratio"] if torch else []), "compile s"]
    yield f"| {' | '.join(columns)} |"
    yield f"|---{'|---:' * (len(columns) - 1)}|"
    for case in cases:
        if options.only not in case.name:
            continue
        seconds = measure(case, torch, options.repeats)
        row = [case.name, f"{1e3 * statistics.median(seconds['jax']):.1f}"]
        if torch:
            ratios = [ours / theirs for ours, theirs in zip(seconds["jax"], seconds["torch"], strict=True)]
            layout = "" if seconds["layout"] == "none" else f" ({seconds['layout']})"
            row += [f"{1e3 * statistics.median(seconds['torch']):.1f}{layout}", f"{statistics.median(ratios):.2f}"]
        yield f"| {' | '.join([*row, format(seconds['compilation'], '.1f')])} |"


Command = Annotated[Ops, tyro.conf.subcommand("ops")] | Annotated[Model, tyro.conf.subcommand("model")]


def main() -> None:
    options = tyro.cli(Command, description=__doc__)
    if options.repeats < 1 or options.threads < 1:
        sys.exit("--repeats and --threads must be at least 1")
    if hasattr(os, "sched_setaffinity"):  # XLA takes as many threads as it has cores, counted when jax is imported
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    torch = Torch(options.torch_python, options.threads) if options.torch_python else None
    versions = {"jax": jax.__version__, **(torch.versions if torch else {})}
    print(", ".join(f"{name} {version}" for name, version in versions.items()), f"{options.threads} threads", sep=", ")
    if hasattr(os, "getloadavg"):
        load = os.getloadavg()[0]
        print(f"load of the machine before the start: {load:.1f} on {os.cpu_count()} cores")
        if load > 0.3 * (os.cpu_count() or 1):
            print("the machine is busy: these figures are no better than hints")
    print()
    for line in table(options, torch):
        print(line, flush=True)


if __name__ == "__main__":
    main()
