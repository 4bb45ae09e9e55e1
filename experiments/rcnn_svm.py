"""R-CNN's last step as published: ``python experiments/rcnn_svm.py runs/digit_scenes_rcnn``.

On the features of a trained run it fits a linear support vector machine a class, with hard negatives, and a ridge
regression of the boxes (arXiv:1311.2524, appendices B and C), puts them in place of the network's last layers,
evaluates the result and writes it as a run of its own, which evaluate.py and predict.py take.
"""

import dataclasses
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script from anywhere

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from tqdm import tqdm

import jaxvision as jv
from experiments import detection
from experiments.command import Checked, Count, NotNegative, Positive, Seed, parse, script
from experiments.config import to_json, use_compilation_cache
from experiments.evaluate import load_run
from experiments.reading import normalized, validation_batches
from experiments.train import write_json
from jaxvision import data, train
from jaxvision.models.rcnn import RegionNetwork, region_codes
from jaxvision.ops import boxes
from jaxvision.typing import Regions

MEAN_NORM = 20  # features are scaled to it before the machines see them, in the published code


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """Fit R-CNN's machines and box regressions on the features of a trained run, and evaluate them."""

    run: Annotated[Path, tyro.conf.Positional]
    """The folder of an R-CNN that train.py wrote."""
    output: Path | None = None
    """Folder of the result; the run's name with "_svm" by default."""
    images: Count | None = 300
    """Look at the first so many training images; the features of all their regions are kept in memory."""
    cost: Positive = 1e-3
    """C of the machines."""
    ridge: NotNegative = 1000.0
    """Weight of the squared coefficients in the regression of boxes."""
    seed: Seed = 0


class Seen(NamedTuple):
    """What the network makes of the training images: a row an object or a region."""

    objects: np.ndarray  # [o, h]: features of the true boxes
    labels: np.ndarray  # [o]
    regions: np.ndarray  # [r, h]
    overlaps: np.ndarray  # [r, k]: IoU of each region with the nearest object of each class
    maps: np.ndarray  # [p, d]: last maps of the regions that overlap an object by more than 0.6
    offsets: np.ndarray  # [p, 4]: from these regions to their objects
    classes: np.ndarray  # [p]


def look(config, model, variables, source, *, num_classes: int) -> Seen:
    """Features of all true boxes and regions of a source."""

    @jax.jit
    def features(variables, batch):
        targets, regions = batch["targets"], batch["regions"]
        both = Regions(
            jnp.concatenate([targets.boxes, regions.boxes], axis=1),
            jnp.concatenate([targets.valid, regions.valid], axis=1),
        )
        overlap = jax.vmap(lambda truth, found: boxes.pairwise(boxes.iou, truth, found))(targets.boxes, regions.boxes)
        return *region_codes(model, variables, normalized(config, batch), both), overlap

    rows: list[tuple[np.ndarray, ...]] = []
    for batch in tqdm(
        validation_batches(config, detection.rows(config), source), desc="features", leave=False, disable=None
    ):
        targets, regions = batch["targets"], batch["regions"]
        codes, maps, overlap = jax.device_get(features(variables, batch))
        room = targets.boxes.shape[1]
        for row in np.flatnonzero(batch["valid"]):
            real, found = targets.valid[row], regions.valid[row]
            labels, iou = targets.labels[row][real], overlap[row][real][:, found]
            of_class = np.zeros((found.sum(), num_classes), np.float32)
            for label, values in zip(labels, iou):
                of_class[:, label] = np.maximum(of_class[:, label], values)
            near = iou.max(0, initial=0) > 0.6
            nearest = iou[:, near].argmax(0) if len(labels) else np.zeros(0, int)
            rows.append(
                (
                    codes[row, :room][real],
                    labels,
                    codes[row, room:][found],
                    of_class,
                    maps[row, room:][found][near],
                    targets.boxes[row][real][nearest],
                    regions.boxes[row][found][near],
                    labels[nearest],
                )
            )
    *others, true_boxes, near_boxes, classes = (np.concatenate(parts) for parts in zip(*rows))
    return Seen(*others, np.asarray(boxes.encode(true_boxes, near_boxes)), classes)


def fit_machine(
    positives: np.ndarray, negatives: np.ndarray, *, cost: float, rng: np.random.Generator, rounds: int = 10
) -> tuple[np.ndarray, float]:
    """(weights, bias) of a machine: first against a random part of the negatives, then, round by round, against those
    that it has let come close (margin above -1), without those that have become easy (below -1.2)."""
    from sklearn.svm import LinearSVC

    cache = rng.permutation(len(negatives))[: 5 * len(positives) + 1000]
    for _ in range(rounds):
        machine = LinearSVC(C=cost, loss="hinge", class_weight={1: 2}, intercept_scaling=10, random_state=0)
        rows = np.concatenate([positives, negatives[cache]])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "failed to converge": the next round starts from nearly the same rows
            machine.fit(rows, np.arange(len(rows)) < len(positives))
        margin = machine.decision_function(negatives)
        new = np.setdiff1d(np.flatnonzero(margin > -1), cache)
        if not len(new):
            break
        cache = np.union1d(cache[margin[cache] > -1.2], new)
    return machine.coef_[0], float(machine.intercept_[0])


def fit(seen: Seen, params: dict[str, Any], *, weights: tuple[float, ...], options: Options) -> dict[str, Any]:
    """The head's parameters with machines for ``cls_score`` and regressions for ``bbox_pred``; a class that the images
    do not have keeps what it had. weights: by which the detector divides offsets."""
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(options.seed)
    scale = MEAN_NORM / np.linalg.norm(seen.regions, axis=1).mean()
    shift = {name: np.array(leaf) for name, leaf in params["bbox_pred"].items()}
    # The margin over the background, of those that keep what they had.
    score = {name: np.array(leaf - leaf[..., :1]) for name, leaf in params["cls_score"].items()}
    # Views of the outputs sorted by class.
    coefficients, intercepts = (shift[name].reshape(-1, len(score["bias"]), 4) for name in ("kernel", "bias"))
    for label in tqdm(range(seen.overlaps.shape[1]), desc="machines", leave=False, disable=None):
        positives = scale * seen.objects[seen.labels == label]
        if len(positives):
            negatives = scale * seen.regions[seen.overlaps[:, label] < 0.3]
            kernel, bias = fit_machine(positives, negatives, cost=options.cost, rng=rng)
            score["kernel"][:, label + 1], score["bias"][label + 1] = scale * kernel, bias
        near = seen.classes == label
        if near.any():
            # Linear in the offsets, so that whitening them, as published, would change nothing.
            ridge = Ridge(alpha=options.ridge).fit(seen.maps[near], seen.offsets[near] * np.array(weights))
            coefficients[:, label + 1], intercepts[:, label + 1] = ridge.coef_.T, ridge.intercept_
    return {**params, "cls_score": score, "bbox_pred": shift}


def run(options: Options, output: Path) -> dict[str, float]:
    """Fit, evaluate, write; the figures of the evaluation."""
    if output.resolve() == options.run.resolve():
        raise ValueError(f"--output {output} is the run itself, whose results would be lost: choose another folder")
    if (output / "metrics.jsonl").exists():
        raise ValueError(f"--output {output} holds a training, whose results would be lost: choose another folder")
    with train.locked(output):
        return _run(options, output)


def _run(options: Options, output: Path) -> dict[str, float]:
    config, model, variables, categories = load_run(options.run)
    if not isinstance(getattr(model, "box_head", None), RegionNetwork):
        raise ValueError(f"{options.run} is a run of {config.model}; the machines are those of an R-CNN")
    checkpointer = train.Checkpointer(output / "checkpoints")  # early: it fails where it cannot write
    train_source, val_source = detection.sources(config)
    if options.images is not None:
        train_source = data.Subset(train_source, range(min(options.images, len(train_source))))
    seen = look(config, model, variables, train_source, num_classes=len(categories))
    print(f"{len(seen.objects)} objects, {len(seen.regions)} regions, {len(seen.classes)} of them near an object")

    head = fit(seen, variables["params"]["box_head"], weights=model.box_weights, options=options)
    variables = jax.tree.map(jnp.asarray, {**variables, "params": {**variables["params"], "box_head": head}})
    config = dataclasses.replace(config, model_options={**config.model_options, "scores": "one_vs_rest"}, output=output)
    model = jv.get_model(config.model, num_classes=len(categories), **config.model_options)
    figures = detection.evaluator(config, model, val_source)(variables)
    run_config = {**to_json(config), "categories": list(categories)}
    checkpointer.save(0, train.create_state(jax.random.key(0), variables, optax.identity()), None, run_config)
    checkpointer.close()
    write_json(output / "config.json", run_config)
    write_json(output / "results.json", figures)
    return figures


@script
def main() -> None:
    use_compilation_cache()
    options = parse(Options, description=__doc__)
    began = time.perf_counter()
    output = options.output or options.run.with_name(f"{options.run.name}_svm")
    figures = run(options, output)
    for name in ("bbox/AP", "bbox/AP50", "bbox/AP75"):
        print(f"{name:28s} {figures[name]:.4f}")
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes; the results are in {output}")


if __name__ == "__main__":
    main()
