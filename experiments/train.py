"""Train a model: ``python experiments/train.py CONFIG [overrides]``, evaluate it and draw what it predicts.

CONFIG is a module of ``experiments/configs``; ``--help`` lists them, ``CONFIG --help`` every field. The run lives in
``--output``: config.json, metrics.jsonl, TensorBoard events, checkpoints, results.json, pictures. Stop it in any way
and start it with the same command: it goes on from its last checkpoint.
"""

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script from anywhere

import flax.linen as nn
import jax
import jax.numpy as jnp
from PIL import Image

import jaxvision as jv
from experiments.allocator import keep_freed_memory
from experiments.classes import check_same_classes
from experiments.command import script
from experiments.config import Config, Distributed, is_file, parse, to_json, use_compilation_cache
from experiments.reading import Preprocessing, train_batches
from experiments.tasks import task_of
from jaxvision import train
from jaxvision.typing import Array, Key, Variables
from jaxvision.weights import WeightsRecord

# Of a finished run these may differ from what it was made with: they change neither what was learnt nor its figures.
MAY_CHANGE = (
    "output", "pictures", "devices", "distributed", "parallel", "workers", "worker_processes", "data.directory",
    "selective_search.directory", "eval_every", "eval_images", "eval_batch_size", "checkpoint_every", "log_every",
)  # fmt: skip


def run(config: Config) -> dict[str, float]:
    """Train (or go on), evaluate the last parameters on all validation images, write results and pictures.

    Of several processes each evaluates its share, and the first writes.
    Raises: BlockingIOError if another run writes to the folder.
    """
    with train.locked(config.output):  # before anything there is touched
        return _run(config)


def _run(config: Config) -> dict[str, float]:
    if config.batch_size % jax.process_count():
        raise ValueError(f"batch_size={config.batch_size} is no multiple of the {jax.process_count()} processes")
    if (config.devices or 0) > jax.device_count():
        raise ValueError(f"--devices is {config.devices}, but there are only {jax.device_count()} devices here")
    first_host = jax.process_index() == 0
    task = task_of(config.model)
    train_source, val_source = task.sources(config)
    check_same_classes(train_source, val_source)
    checkpointer = train.Checkpointer(config.output / "checkpoints")  # early: it fails where it cannot write
    categories = train_source.categories
    if first_host:
        print(f"{len(train_source)} training and {len(val_source)} validation images, {len(categories)} classes")
        shapes = ", ".join(f"{config.batch_size} x {height} x {width}" for height, width in config.image_size)
        print(f"compiles for {len(config.image_size)} input shape(s): {shapes}")

    axis_name = train.AXIS if config.parallel == "pmap" else None
    weights = find_weights(config)
    options = {**getattr(weights, "model_options", {}), **config.model_options, "num_classes": len(categories)}
    model = jv.get_model(config.model, axis_name=axis_name, **options)
    plain = jv.get_model(config.model, **options)  # to initialise and evaluate, where no device waits for another
    key = jax.random.key(config.seed)
    variables = initial_variables(config, plain, weights, len(categories), key)

    wanted = config.optimizer
    schedule = train.schedule(
        wanted.schedule,
        learning_rate=wanted.learning_rate,
        total_steps=config.steps,
        warmup_steps=wanted.warmup_steps,
        milestones=wanted.milestones,
    )
    tx = train.optimizer(
        wanted.name,
        learning_rate=schedule,
        momentum=wanted.momentum,
        weight_decay=wanted.weight_decay,
        decay_all=wanted.decay_all,
        clip_norm=wanted.clip_norm,
        freeze=wanted.freeze,
    )
    grad_fn = train.value_and_grads(task.loss_of(config, model), freeze=wanted.freeze)
    if config.accumulate > 1:
        grad_fn = train.accumulate(grad_fn, config.accumulate)
    if axis_name is not None:
        grad_fn = train.mean_over(grad_fn, axis_name)
    step = train.make_train_step(grad_fn, tx, learning_rate=schedule, ema_decay=wanted.ema_decay)
    devices = jax.devices()[: config.devices]
    parallel = train.parallelize(step, mode=config.parallel, devices=devices)

    own = [device for device in devices if device.process_index == jax.process_index()]
    evaluate = task.evaluator(config, plain, val_source, own)
    run_config = {**to_json(config), "categories": list(categories)}
    writers = (train.JsonlWriter(config.output), train.TensorBoardWriter(config.output / "tensorboard"))
    if first_host and not (config.output / "config.json").exists():  # a resume that is refused must not change it
        write_json(config.output / "config.json", run_config)
    known = train.gather(known_figures(config))[0]
    latest: dict[int, dict[str, float]] = {}

    def validate(state):
        figures = evaluate(train.state_variables(state), config.eval_images)
        if config.eval_images is None:
            latest[int(state.step)] = figures
        return figures

    state = train.fit(
        parallel,
        train.create_state(key, variables, tx, ema=wanted.ema_decay is not None),
        train_batches(config, task.rows(config), train_source),
        total_steps=config.steps,
        checkpointer=checkpointer,
        config=run_config,
        checkpoint_every=config.checkpoint_every,
        log_every=config.log_every,
        eval_every=config.eval_every,
        evaluate=validate,
        check=lambda state: evaluate(train.state_variables(state), 1),
        best_metric=config.best_metric,
        may_change=MAY_CHANGE,
        writers=writers if first_host else (),
    )
    checkpointer.close()
    variables = train.state_variables(state)
    figures = known or latest.get(int(state.step)) or evaluate(variables)
    if first_host:
        if known is None:
            write_json(config.output / "results.json", figures)
            write_json(config.output / "config.json", run_config)  # last: then known_figures believes the results
        draw(config, plain, variables, val_source)
    return figures


def known_figures(config: Config) -> dict[str, float] | None:
    """Those that a finished run has written, or None where it still has to train or to evaluate."""
    try:
        steps = json.loads((config.output / "config.json").read_text())["steps"]
        figures = json.loads((config.output / "results.json").read_text())
    except (OSError, ValueError, KeyError):
        return None
    if steps != config.steps or not (config.output / "checkpoints" / "last" / str(steps)).is_dir():
        return None
    return {name: math.nan if value is None else value for name, value in figures.items()}


def draw(config: Config, model: nn.Module, variables: Variables, source: Any) -> None:
    """Pictures of the predictions on the first validation images, each named by its file, or by its id or number where
    it comes from none."""
    task = task_of(config.model)
    preprocessing = Preprocessing(config, task.rows(config))
    predict = task.predictor(config, model, variables, preprocessing=preprocessing, categories=source.categories)
    folder, drawn = config.output / "pictures", set()
    for index in range(min(config.pictures, len(source))):
        example = source[index]
        if example is not None:
            folder.mkdir(exist_ok=True)
            picture = predict(example["image"], example).picture
            name = Path(example["file"]).with_suffix("") if "file" in example else example.get("image_id", index)
            path = folder / f"{str(name).replace(os.sep, '_')}.png"
            if path in drawn:  # a.jpg and a.png
                path = path.with_stem(f"{path.stem}_{index}")
            drawn.add(path)
            Image.fromarray(picture).save(path)


def find_weights(config: Config) -> WeightsRecord | Path | None:
    """The record or the file that the config names."""
    if config.weights is None:
        return None
    return Path(config.weights) if is_file(config.weights) else jv.get_record(config.model, config.weights)


def initial_variables(
    config: Config, model: nn.Module, weights: WeightsRecord | Path | None, num_classes: int, key: Key[Array, ""]
) -> Variables:
    """Fresh variables, or the configured weights with new layers where the classes differ."""
    images = jnp.zeros((1, *config.image_size[0], 3))
    if weights is not None:
        return jv.load_weights(model, weights, num_classes=num_classes)
    variables = jax.jit(model.init)(key, images)
    if config.backbone_weights is not None:
        backbone = jv.load_weights(model.backbone, jv.get_record(*config.backbone_weights.split("/", 1)))
        variables = {
            collection: {**tree, "backbone": backbone[collection]} if "backbone" in tree else tree
            for collection, tree in variables.items()
        }
    return variables


def connect(wanted: Distributed) -> None:
    """Join the other processes, if there are any."""
    if wanted.coordinator is not None:
        address = None if wanted.coordinator == "auto" else wanted.coordinator
        train.connect(address, processes=wanted.processes, process=wanted.process)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """All or nothing. NaN, which JSON does not know, becomes null."""
    known = {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(known, indent=1) + "\n")
    part.replace(path)


@script
def main() -> None:
    keep_freed_memory()
    use_compilation_cache()
    config = parse(__doc__)
    connect(config.distributed)
    began = time.perf_counter()
    figures = run(config)
    if jax.process_index() > 0:
        return
    for name, value in figures.items():
        if name.count("/") < 2:  # the figures of each class are in results.json
            print(f"{name:28s} {value:.4f}")
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes; results and pictures are in {config.output}")


if __name__ == "__main__":
    main()
