"""Writes the goldens of this folder: ``python tests/parity/make_goldens.py`` with torch 2.14.1, torchvision 0.29.1."""

import functools
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).parent))
import fill

OUT = Path(__file__).parent / "goldens"
FEATURES = {
    "squeezenet1_0": ("features.5", "features.10", "features.12"),
    "squeezenet1_1": ("features.4", "features.7", "features.12"),
    "resnet18": ("layer1", "layer2", "layer3", "layer4"),
    "resnet50": ("layer1", "layer2", "layer3", "layer4"),
}
MODELS = [
    *("squeezenet1_0", "squeezenet1_1", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn"),
]


def filled(model: torch.nn.Module, gains=fill.CLASSIFIER_GAINS) -> torch.nn.Module:
    state = {k: torch.from_numpy(fill.fill(k, tuple(v.shape), gains)) for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    return model.eval()


def nchw(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def keep(kept: dict, level: str, module: torch.nn.Module, args: tuple, output: torch.Tensor) -> None:
    kept[level] = output


def classifier(name: str) -> dict[str, np.ndarray]:
    """In float64: in float32 torch's own gradient is 6 % off where two values in a pool differ by rounding."""
    model = filled(torchvision.models.get_model(name)).double()
    kept = {}
    for index, path in enumerate(FEATURES[name]):
        model.get_submodule(path).register_forward_hook(functools.partial(keep, kept, f"c{index + 2}"))
    images = nchw(fill.normalise(fill.images(2, 64, 64))).double().requires_grad_()
    logits = model(images)
    torch.logsumexp(logits, 1).sum().backward()
    golden = {level: output.detach().numpy()[:, :8].transpose(0, 2, 3, 1) for level, output in kept.items()}
    gradient = images.grad.numpy().transpose(0, 2, 3, 1)
    golden |= {"logits": logits.detach().numpy(), "gradient": gradient[:, 1::2, 1::2]}
    if name == "resnet18":
        with torch.no_grad():
            model.train()(images)
        golden |= {
            f"after_{key}": value.numpy()
            for key, value in model.state_dict().items()
            if key.endswith(("running_mean", "running_var"))
        }
    return {key: value.astype(np.float32) for key, value in golden.items()}


def detector(height: int, width: int) -> dict[str, np.ndarray]:
    """100 detections in the top left part of the image; torchvision pads it to multiples of 32 itself."""
    model = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=91, min_size=height, max_size=width
    )
    filled(model, fill.DETECTOR_GAINS)
    kept = []
    model.roi_heads.register_forward_hook(lambda module, args, output: kept.append(dict(output[0][0])))
    with torch.no_grad():
        (final,) = model(list(nchw(fill.images(1, 256, 320)[:, :height, :width])))
    (raw,) = kept  # copied, as torchvision then puts the pasted masks into the same dict
    assert len(raw["scores"]) == 100
    golden = {key: raw[key].numpy() for key in ("boxes", "scores", "labels")}
    if (height, width) != (256, 320):
        return golden
    areas = (raw["boxes"][:, 2:] - raw["boxes"][:, :2]).prod(1).numpy()
    pasted = np.argsort(areas)[[5, 30, 60]]
    golden |= {"pasted_index": pasted, "pasted": final["masks"].numpy()[pasted, 0]}
    return {**golden, "masks": raw["masks"].numpy()[:, 0]}


def names(model: str) -> str:
    """A digest of all keys and shapes of a model's state dict."""
    options = {"weights_backbone": None} if "rcnn" in model else {}
    state = torchvision.models.get_model(model, weights=None, **options).state_dict()
    return fill.digest({key: tuple(value.shape) for key, value in state.items()})


def main() -> None:
    OUT.mkdir(exist_ok=True)
    (OUT / "names.json").write_text(json.dumps({model: names(model) for model in MODELS}, indent=1) + "\n")
    torch.set_num_threads(2)
    for name in FEATURES:
        np.savez_compressed(OUT / f"{name}.npz", **classifier(name))
    np.savez_compressed(OUT / "maskrcnn_resnet50_fpn.npz", **detector(256, 320))
    np.savez_compressed(OUT / "maskrcnn_resnet50_fpn_padded.npz", **detector(240, 300))


if __name__ == "__main__":
    main()
