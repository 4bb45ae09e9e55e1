"""How far a classifier is from torchvision's of the same name: ``python tests/parity/compare.py [name ...]`` writes
``measured.json``, with the interpreter that ``JAXVISION_TORCH_PYTHON`` names where torch is not installed here."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import fill
import flax.linen as nn
import jax
import numpy as np

import jaxvision as jv
from jaxvision.weights.convert import torch_shapes

HERE = Path(__file__).parent
NAMES = json.loads((HERE / "goldens" / "names.json").read_text())
DETECTORS = [name for name in NAMES if name in jv.list_models(task="detection")]
CLASSIFIERS = [name for name in NAMES if name not in DETECTORS]
GOLDENS = [name for name in CLASSIFIERS if (HERE / "goldens" / f"{name}.npz").exists()]  # one a family, or more
FEATURES = ("c0", "c1", "c2", "c3", "c4", "c5")
AUXILIARY = ("aux1", "aux2")
# Relative differences in float32; and in float64, for a gradient beyond, as is explained below.
BOUNDS = {"logits": 1e-4, "gradient": 1e-3, "statistics": 1e-3, "gradient_float64": 1e-6}
BOUNDS |= dict.fromkeys(FEATURES, 1e-4) | dict.fromkeys(AUXILIARY, 1e-3)
# The compiler takes most of the time here, and half of that without the optimisations of its last stage.


def differences(name: str, golden: dict[str, np.ndarray], dtype: type = np.float32) -> dict[str, float]:
    """The largest, each relative to the golden's largest value; batch statistics are in units of their norm's scale."""
    options = {"aux_logits": bool(golden["aux_logits"])} if "aux_logits" in golden else {}
    model = jv.get_model(name, **fill.OPTIONS.get(name, {}), **options)
    variables = jv.from_torch(model, fill.calibrated(torch_shapes(model), golden["scales"]))
    variables = jax.tree.map(lambda leaf: leaf.astype(dtype), variables)
    found = inference(model, variables, images(golden["size"], dtype))
    if "momentum" in golden:
        found |= training(model, variables, images(golden["training_size"], dtype), golden)
    return {part: relative(part, golden, found) for part in golden if part in found}


def compared(name: str, golden: dict[str, np.ndarray]) -> dict[str, float]:
    """Differences in float32. A value within rounding of a kink, ReLU's or a pool's, makes a gradient jump, by up to a
    few thousandths in deep nets; then ``gradient_float64`` says what the difference is without rounding."""
    found = differences(name, golden)
    if found["gradient"] >= BOUNDS["gradient"]:
        with jax.enable_x64(True):
            found["gradient_float64"] = differences(name, golden, np.float64)["gradient"]
    return found


def beyond(found: dict[str, float]) -> dict[str, float]:
    """The differences that are too large."""
    excused = {"gradient"} if "gradient_float64" in found else set()
    return {part: value for part, value in found.items() if part not in excused and not value < BOUNDS[part]}


def images(size: np.ndarray, dtype: type) -> np.ndarray:
    return fill.normalise(fill.images(2, int(size), int(size))).astype(dtype)


def relative(part: str, golden: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> float:
    ours, theirs = np.asarray(found[part], np.float64), golden[part]
    if part in FEATURES:
        ours = ours[:1, :8, :8, :8]
    if part == "gradient":
        ours = ours[:, 1::3, 1::3]
    assert ours.shape == theirs.shape, f"{part}: {ours.shape}, torchvision's is {theirs.shape}"
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def inference(model: nn.Module, variables: dict, images: np.ndarray) -> dict[str, np.ndarray]:
    """Logits, features, and the gradient of the logits' logsumexp with respect to the images."""

    @jax.jit
    def run(variables, images):
        def score(images):
            logits, features = model.apply(variables, images)
            return jax.nn.logsumexp(logits, axis=1).sum(), {"logits": logits, **features}

        gradient, found = jax.grad(score, has_aux=True)(images)
        return {**found, "gradient": gradient}

    return run(variables, images)


def training(
    model: nn.Module, variables: dict, images: np.ndarray, golden: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Auxiliary logits of a pass in training without dropout, and what the running statistics took in."""

    def without_dropout(call, args, kwargs, context):
        return args[0] if isinstance(context.module, nn.Dropout) else call(*args, **kwargs)

    @jax.jit
    def run(variables, images):
        with nn.intercept_methods(without_dropout):
            (_, features), moved = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return {part: features[part] for part in AUXILIARY if part in features}, moved

    found, moved = run(variables, images)
    before, after = jv.to_torch(model, variables), jv.to_torch(model, {**variables, **moved})
    statistics = []
    for norm, scale in zip(fill.norms(before), golden["scales"], strict=True):
        for key, unit in ((f"{norm}.running_mean", scale**0.5), (f"{norm}.running_var", scale)):
            old, new = before[key][:4].astype(np.float64), after[key][:4]
            statistics.append((old + (new - old) / golden["momentum"]) / unit)
    return {**found, "statistics": np.stack(statistics)}


def torch_python() -> str | None:
    """An interpreter that has torch and torchvision, or None."""
    here = importlib.util.find_spec("torch") and importlib.util.find_spec("torchvision")
    return os.environ.get("JAXVISION_TORCH_PYTHON") or (sys.executable if here else None)


def run_torch(script: str, *args: str | Path) -> None:
    subprocess.run([torch_python(), HERE / script, *args], check=True)


def live(name: str, folder: Path) -> dict[str, np.ndarray]:
    """The golden that torchvision gives now."""
    path = folder / f"{name}.npz"
    run_torch("make_goldens.py", name, path)
    return dict(np.load(path))


def main() -> None:
    out = HERE / "measured.json"
    measured = json.loads(out.read_text()) if out.exists() else {}
    for name in sys.argv[1:] or CLASSIFIERS:
        with tempfile.TemporaryDirectory() as folder:
            found = compared(name, live(name, Path(folder)))
        measured[name] = {part: float(f"{found[part]:.1e}") for part in found if part not in FEATURES}
        print(name, measured[name], flush=True)
        ordered = {name: measured[name] for name in CLASSIFIERS if name in measured}
        out.write_text(json.dumps(ordered, indent=1) + "\n")


if __name__ == "__main__":
    main()
