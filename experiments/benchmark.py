"""Time kernels and models, side by side with torchvision: ``python experiments/benchmark.py ops|model|data|…``.

torch may live in another environment: ``--torch-python /path/to/its/python``. Both libraries run on the CPU with the
same number of threads and take turns, call by call. Without torch jaxvision is timed alone. The ratio is the median
over the turns of our time by torch's, so below 1 is faster than torch. Other work on the machine does not slow both
alike: threads that wait for each other lose most. On a busy machine believe ``--threads 1`` more, and neither much.
Both keep freed memory (see ``allocator``). Training steps hand their state on, as a training loop does.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script from anywhere

from experiments import benchmark_profile
from experiments.allocator import keep_freed_memory
from experiments.benchmark_cases import Case, classifier_cases, model_cases, op_cases
from experiments.benchmark_detectors import BIAS, detection_cases, time_by_objects
from experiments.benchmark_segmenters import segmentation_cases
from experiments.command import Checked, Count, Name, Number, parse, script

HERE = Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    torch_python: Path | None = None
    """An interpreter that has torch and torchvision. Without it, jaxvision is timed alone."""
    repeats: Count = 10
    """Timed calls of each library in each case."""
    threads: Count = os.cpu_count() or 1
    """Threads of each library; jax is held to so many cores."""
    only: str = ""
    """Run the cases whose name contains this."""
    profile: Number = 0
    """Also list the so many costliest instructions of each of our programs."""


@dataclasses.dataclass(frozen=True)
class Ops(Options):
    """Kernels: RoIAlign, NMS, mask pasting, max pooling."""


@dataclasses.dataclass(frozen=True)
class Model(Options):
    """Models: classifiers forward and in training at 224 x 224, Mask R-CNN at 480 x 640."""


@dataclasses.dataclass(frozen=True)
class Classification(Options):
    """Classifiers: forward and training step, with multiply-adds by the rate of a matrix product, memory, compilation.

    A share of 100 % is the rate (3 multiply-adds a weight and output in training) of the product of two 2048 x 2048
    matrices, measured after each case. Memory is what XLA's program says it needs, arguments included.
    """

    models: tuple[Name, ...] = (
        *("resnet50", "resnext50_32x4d", "vgg16", "mobilenet_v2", "densenet121", "shufflenet_v2_x1_0"),
        "squeezenet1_1",
    )
    batches: tuple[Count, ...] = (1, 8)


@dataclasses.dataclass(frozen=True)
class Detection(Options):
    """Detectors at 480 x 640, one image: inference, a training step, and inference by the number of objects in view."""

    objects: tuple[Number, ...] = (0, 10, 1000)
    """Wished numbers of objects; there are as many as the detector has room for."""


@dataclasses.dataclass(frozen=True)
class Segmentation(Options):
    """Segmenters at 320 x 320, one and four images: inference, and a training step with the auxiliary head."""


@dataclasses.dataclass(frozen=True)
class Data(Options):
    """Reading: images a second and core beside torchvision's DataLoader, on the same files; bytes that an image sends
    to the devices; start-up and memory of a set of COCO's size."""

    repeats: Count = 5
    workers: Number = 2
    """Threads of ours, worker processes of torch."""
    worker_processes: Number = 0
    """Worker processes of ours, each with so many threads."""
    coco_sized: bool = True
    """Also start on made-up annotations of 118,000 images and 860,000 objects, which takes two minutes."""


class Torch:
    """The worker process with torch, idle except while it answers."""

    # OpenMP's threads spin at barriers by default. If anything else wants their cores, that made torch up to ten times
    # slower with two threads than with one (pasting: 1,742 against 162 ms), and us look good for no merit of ours.
    PASSIVE: ClassVar = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}

    def __init__(self, python: Path, script: str, threads: int):
        self.process = subprocess.Popen(
            [str(python), str(HERE / script), str(threads)],
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


def measure(case: Case, torch: Torch | None, repeats: int, profile: int = 0) -> dict[str, Any]:
    """Seconds of each call in turn, and of the compilation; the memory of the program in bytes; its profile."""
    import jax

    function, arguments = case.build()
    arguments = list(jax.device_put(arguments))
    donated = tuple(range(case.carried))

    def compiled():
        start = time.perf_counter()
        program = jax.jit(function, donate_argnums=donated).lower(*arguments).compile()
        return program, time.perf_counter() - start

    _, cold = compiled()
    jax.clear_caches()
    program, cached = compiled()  # from the cache on disk
    layout = torch.ask({"prepare": case.torch})["layout"] if torch else "none"
    ours, theirs = [], []
    for _ in range(repeats + 1):  # the first turn warms up
        start = time.perf_counter()
        outputs = jax.block_until_ready(program(*arguments))
        ours.append(time.perf_counter() - start)
        if case.carried:
            arguments[: case.carried] = outputs[: case.carried]
        del outputs
        if torch:
            theirs.append(torch.ask({"run": True})["seconds"])
    sizes = program.memory_analysis()
    memory = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    return {
        "jax": ours[1:],
        "torch": theirs[1:],
        "cold": cold,
        "cached": cached,
        "layout": layout,
        "profile": benchmark_profile.table(benchmark_profile.costs(program, arguments), profile) if profile else [],
        "memory": memory - sizes.alias_size_in_bytes,
    }


def product_rate() -> float:
    """Multiply-adds a second of a product of two 2048 x 2048 matrices, as it is now."""
    import jax
    import jax.numpy as jnp

    matrix = jnp.ones((2048, 2048))
    product = jax.jit(lambda a, b: a @ b)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2048**3 / statistics.median(seconds[1:])


def table(options: Options, torch: Torch | None) -> Iterator[str]:
    makers = {Ops: op_cases, Model: model_cases, Detection: detection_cases, Segmentation: segmentation_cases}
    cases = makers.get(type(options), lambda: classifier_cases(options.models, options.batches))()
    wide = isinstance(options, Classification)
    columns = ["case", "jax ms", *(["torch ms", "ratio"] if torch else []), *(["share", "MB"] if wide else [])]
    columns += ["compile s", "from cache s"]
    yield f"| {' | '.join(columns)} |"
    yield f"|---{'|---:' * (len(columns) - 1)}|"
    ratios, profiles = {}, []
    for case in cases:
        if options.only not in case.name:
            continue
        figures = measure(case, torch, options.repeats, options.profile)
        ours = statistics.median(figures["jax"])
        row = [case.name, f"{1e3 * ours:.1f}"]
        if torch:
            turns = zip(figures["jax"], figures["torch"], strict=True)
            ratio = ratios[case.name] = statistics.median(ours / theirs for ours, theirs in turns)
            layout = "" if figures["layout"] == "none" else f" ({figures['layout']})"
            row += [f"{1e3 * statistics.median(figures['torch']):.1f}{layout}", f"{ratio:.2f}"]
        if wide:
            row += [f"{case.multiply_adds / ours / product_rate():.0%}", f"{figures['memory'] / 1e6:.0f}"]
        row += [f"{figures['cold']:.1f}", f"{figures['cached']:.1f}"]
        yield f"| {' | '.join(row)} |"
        profiles += ["", f"{case.name}:", "", *figures["profile"]] if options.profile else []
    yield from profiles
    for part in ("forward", "training step"):
        of_part = [ratio for name, ratio in ratios.items() if part in name]
        if of_part:
            yield f"\ngeometric mean, {part}: {statistics.geometric_mean(of_part):.2f}"


def objects_table(options: Detection) -> Iterator[str]:
    """Median inference time by the number of objects in view, and the largest ratio of two of them."""
    yield f"| detector | {' | '.join(f'{count:,} objects: found, ms' for count in options.objects)} | spread |"
    yield f"|---{'|---:' * (len(options.objects) + 1)}|"
    for name in BIAS:
        if options.only not in name:
            continue
        figures = time_by_objects(name, options.objects, options.repeats)
        medians = [1e3 * statistics.median(seconds) for _, seconds in figures.values()]
        cells = [f"{found}, {median:.1f}" for (found, _), median in zip(figures.values(), medians)]
        yield f"| {name} | {' | '.join(cells)} | {max(medians) / min(medians) - 1:.1%} |"


def data_lines(options: Data, torch: Torch | None) -> Iterator[str]:
    from experiments import benchmark_data  # the pipeline takes a while to import

    workers = dict(workers=options.workers, worker_processes=options.worker_processes)
    yield from benchmark_data.table(torch, only=options.only, repeats=options.repeats, cores=options.threads, **workers)
    yield ""
    yield from benchmark_data.bytes_of_an_image()
    if options.coco_sized:
        yield benchmark_data.start_of_coco()


Command = (
    Annotated[Ops, tyro.conf.subcommand("ops")]
    | Annotated[Model, tyro.conf.subcommand("model")]
    | Annotated[Classification, tyro.conf.subcommand("classification")]
    | Annotated[Detection, tyro.conf.subcommand("detection")]
    | Annotated[Segmentation, tyro.conf.subcommand("segmentation")]
    | Annotated[Data, tyro.conf.subcommand("data")]
)


@script
def main() -> None:
    options = parse(Command, description=__doc__)
    if hasattr(os, "sched_setaffinity"):  # XLA takes as many threads as it has cores, counted when jax is imported
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    keep_freed_memory()
    import jax

    cache = tempfile.TemporaryDirectory()
    jax.config.update("jax_compilation_cache_dir", cache.name)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    script = "torch_data_reference.py" if isinstance(options, Data) else "torch_reference.py"
    torch = Torch(options.torch_python, script, options.threads) if options.torch_python else None
    versions = {"jax": jax.__version__, **(torch.versions if torch else {})}
    print(", ".join(f"{name} {version}" for name, version in versions.items()), f"{options.threads} threads", sep=", ")
    if hasattr(os, "getloadavg"):
        load = os.getloadavg()[0]
        print(f"load of the machine before the start: {load:.1f} on {os.cpu_count()} cores")
        if load > 0.3 * (os.cpu_count() or 1):
            print("the machine is busy: these figures are no better than hints")
    print()
    with cache:
        for line in data_lines(options, torch) if isinstance(options, Data) else table(options, torch):
            print(line, flush=True)
        if isinstance(options, Detection):
            print()
            for line in objects_table(options):
                print(line, flush=True)


if __name__ == "__main__":
    main()
