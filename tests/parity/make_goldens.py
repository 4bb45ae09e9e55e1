"""Writes the goldens of this folder: ``python tests/parity/make_goldens.py`` with torch 2.14.1, torchvision 0.29.1; or
with a classifier's name and a file, the golden of that one."""

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
RESNET = {"c1": "relu", "c2": "layer1", "c3": "layer2", "c4": "layer3", "c5": "layer4"}
# The goldens of the default tests: at least one model a family, and where its features are.
FEATURES = {
    "alexnet": {"c2": "features.1", "c3": "features.4", "c4": "features.11", "c5": "features.12"},
    "vgg11_bn": {f"c{stage}": f"features.{layer}" for stage, layer in enumerate((2, 6, 13, 20, 27, 28))},
    "resnet18": RESNET,
    "resnet50": RESNET,
    "resnext50_32x4d": RESNET,
    "squeezenet1_0": {"c2": "features.5", "c3": "features.10", "c4": "features.12"},
    "squeezenet1_1": {"c2": "features.4", "c3": "features.7", "c4": "features.12"},
    "densenet121": {"c1": "features.relu0"} | {f"c{block + 1}": f"features.denseblock{block}" for block in (1, 2, 3)},
    "googlenet": {"c1": "conv1", "c2": "conv3", "c3": "inception3b", "c4": "inception4e", "c5": "inception5b"},
    "inception_v3": {
        "c1": "Conv2d_2b_3x3",
        "c2": "Conv2d_4a_3x3",
        "c3": "Mixed_5d",
        "c4": "Mixed_6e",
        "c5": "Mixed_7c",
    },
    "shufflenet_v2_x1_0": {"c1": "conv1", "c2": "maxpool", "c3": "stage2", "c4": "stage3", "c5": "conv5"},
    "mobilenet_v2": {f"c{level}": f"features.{layer}" for level, layer in enumerate((1, 3, 6, 13, 18), start=1)},
    "mnasnet1_0": {f"c{level}": f"layers.{layer}" for level, layer in enumerate((7, 8, 9, 11, 16), start=1)},
}
DETECTORS = [
    *(f"{family}rcnn_resnet50_fpn{version}" for family in ("faster", "mask") for version in ("", "_v2")),
    *("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "ssd300_vgg16"),
]
CLASSIFIERS = [
    *(f"squeezenet1_{minor}" for minor in (0, 1)),
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
    "alexnet",
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
    *(f"densenet{depth}" for depth in (121, 161, 169, 201)),
    *("googlenet", "inception_v3"),
    *(f"shufflenet_v2_x{width}" for width in ("0_5", "1_0", "1_5", "2_0")),
    "mobilenet_v2",
    *(f"mnasnet{width}" for width in ("0_5", "0_75", "1_0", "1_3")),
]


def build(name: str, **options) -> torch.nn.Module:
    """torchvision's model without memory for its weights."""
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    with torch.device("meta"):
        return torchvision.models.get_model(name, weights=None, **fill.OPTIONS.get(name, {}), **options)


def nchw(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def nhwc(images: torch.Tensor) -> np.ndarray:
    return images.detach().numpy().transpose(0, 2, 3, 1)


def filled(model: torch.nn.Module, arrays: dict[str, np.ndarray]) -> torch.nn.Module:
    state = model.state_dict()  # with the versions of its modules, which MNASNet asks for
    state.update({key: torch.from_numpy(value) for key, value in arrays.items()})
    model.load_state_dict(state, assign=True)
    return model.eval()


def keep(kept: dict, level: str, module: torch.nn.Module, args: tuple, output: torch.Tensor) -> None:
    kept[level] = output


def calibrate(scales: dict, name: str, module: torch.nn.Module, args: tuple) -> None:
    """Before a batch norm runs: its scale (see ``fill.calibrated``), and statistics that fit it."""
    scales[name] = float(args[0].square().mean())
    module.running_mean *= scales[name] ** 0.5
    module.running_var *= scales[name]


def measure(model: torch.nn.Module, norms: list[str], images: torch.Tensor | list[torch.Tensor]) -> dict[str, float]:
    """The scales of the batch norms that run on these images, each with the statistics that ``calibrate`` gave those
    before it."""
    measured: dict[str, float] = {}
    hooks = [
        model.get_submodule(norm).register_forward_pre_hook(functools.partial(calibrate, measured, norm))
        for norm in norms
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return measured


def classifier(name: str, *, size: int, training_size: int, **options) -> dict[str, np.ndarray]:
    """In float64: in float32 torch's own gradient is 6 % off where two values in a pool differ by rounding."""
    model = build(name, **options)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    images = nchw(fill.normalise(fill.images(2, size, size))).double()
    norms = fill.norms(shapes)
    filled(model, fill.calibrated(shapes, np.ones(len(norms), np.float32))).double()
    measured = measure(model, norms, images)
    scales = np.array([measured.get(norm, 1.0) for norm in norms], np.float32)
    filled(model, fill.calibrated(shapes, scales)).double()
    golden = {"size": size, "training_size": training_size, "scales": scales, **options}
    return golden | inference(model, images, FEATURES.get(name, {})) | training(model, training_size, norms, scales)


def inference(model: torch.nn.Module, images: torch.Tensor, places: dict[str, str]) -> dict[str, np.ndarray]:
    """Logits, a part of the gradient of their logsumexp with respect to the images, and corners of the features."""
    kept = {}
    hooks = [
        model.get_submodule(place).register_forward_hook(functools.partial(keep, kept, level))
        for level, place in places.items()
    ]
    logits = model(images.requires_grad_())
    torch.logsumexp(logits, 1).sum().backward()
    for hook in hooks:
        hook.remove()
    golden = {level: nhwc(output)[:1, :8, :8, :8] for level, output in kept.items()}
    golden |= {"logits": logits.detach().numpy(), "gradient": nhwc(images.grad)[:, 1::3, 1::3]}
    return {key: value.astype(np.float32) for key, value in golden.items()}


def training(model: torch.nn.Module, size: int, norms: list[str], scales: np.ndarray) -> dict[str, np.ndarray]:
    """The auxiliary logits of a pass in training without dropout, and the batch statistics that the running ones of
    four channels of each norm took in, in units of its scale."""
    running = ("running_mean", "running_var")
    before = {key: value.clone() for key, value in model.state_dict().items() if key.endswith(running)}
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    with torch.no_grad():
        outputs = model(nchw(fill.normalise(fill.images(2, size, size))).double())
    golden = {} if torch.is_tensor(outputs) else {f"aux{i}": aux.numpy() for i, aux in enumerate(outputs[:0:-1], 1)}
    after, statistics = model.state_dict(), []
    for norm, scale in zip(norms, scales):
        momentum = model.get_submodule(norm).momentum
        for leaf, unit in zip(running, (scale**0.5, scale)):
            key = f"{norm}.{leaf}"
            statistics.append((before[key] + (after[key] - before[key]) / momentum)[:4].numpy() / unit)
    if norms:
        golden |= {"statistics": np.stack(statistics), "momentum": momentum}
    return {key: np.asarray(value, np.float32) for key, value in golden.items()}


def detector(height: int, width: int) -> dict[str, np.ndarray]:
    """100 detections in the top left part of the image; torchvision pads it to multiples of 32 itself."""
    model = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=91, min_size=height, max_size=width
    )
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    filled(model, {key: fill.fill(key, shape, fill.DETECTOR_GAINS) for key, shape in shapes.items()})
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
    options = {"weights_backbone": None} if model in DETECTORS else {}
    return fill.digest({key: tuple(value.shape) for key, value in build(model, **options).state_dict().items()})


def write(name: str, path: Path, *, small: bool) -> None:
    """small: for the default tests. Deep nets need larger images in training, as the variance of a few cells amplifies
    rounding; and Inception's auxiliary head takes 299 pixels."""
    sizes = {"size": 64, "training_size": 64 if small else 128}
    if name == "inception_v3":
        sizes = {"size": 96, "training_size": 139, "aux_logits": False} if small else {"size": 96, "training_size": 299}
    np.savez_compressed(path, **classifier(name, **sizes))


def main() -> None:
    torch.set_num_threads(2)
    if len(sys.argv) > 1:  # a name and a file, for the live tests
        write(sys.argv[1], Path(sys.argv[2]), small=False)
        return
    OUT.mkdir(exist_ok=True)
    digests = {model: names(model) for model in CLASSIFIERS + DETECTORS}
    (OUT / "names.json").write_text(json.dumps(digests, indent=1) + "\n")
    for name in FEATURES:
        write(name, OUT / f"{name}.npz", small=True)
    np.savez_compressed(OUT / "maskrcnn_resnet50_fpn.npz", **detector(256, 320))
    np.savez_compressed(OUT / "maskrcnn_resnet50_fpn_padded.npz", **detector(240, 300))


if __name__ == "__main__":
    main()
