"""Writes the goldens of the segmenters: ``python tests/parity/make_segmentation_goldens.py`` with torch 2.14.1,
torchvision 0.29.1; or with a name and a file, the golden of that one. In float64, so that differences are our
rounding; weights are ``fill.calibrated``'s."""

import functools
import sys
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).parent))
import fill
from make_goldens import OUT, filled, measure, nchw, nhwc

NAMES = ("fcn_resnet50", "deeplabv3_resnet50")
SIZE = (65, 97)
CLASSES = 21
IGNORED = 255
EVERY = {"logits": 8, "aux": 16, "gradient": 5}  # of the pixels, one in so many rows and columns is kept


def prepared(name: str, images: torch.Tensor) -> tuple[torch.nn.Module, np.ndarray]:
    """The model with its weights and an auxiliary head, and the scales of its batch norms."""
    with torch.device("meta"):
        model = torchvision.models.get_model(
            name, weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True
        )
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    norms = fill.norms(shapes)
    filled(model, fill.calibrated(shapes, np.ones(len(norms), np.float32))).double()
    measured = measure(model, norms, images)
    scales = np.array([measured[norm] for norm in norms], np.float32)
    return filled(model, fill.calibrated(shapes, scales)).double(), scales


def labels(batch: int, height: int, width: int) -> np.ndarray:
    """Classes in patches of 8 pixels, about one in eight of them ignored."""
    drawn = np.random.default_rng(0).integers(0, CLASSES + 3, (batch, -(-height // 8), -(-width // 8)))
    patches = np.where(drawn < CLASSES, drawn, IGNORED).astype(np.uint8)
    return patches.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]


def inference(model: torch.nn.Module, images: torch.Tensor) -> dict[str, np.ndarray]:
    """Logits of both heads, and the gradient of the sum of their logsumexps with respect to the images."""
    images = images.clone().requires_grad_()
    found = model(images)
    sum(torch.logsumexp(logits, 1).sum() for logits in found.values()).backward()
    return {"logits": nhwc(found["out"]), "aux": nhwc(found["aux"]), "gradient": nhwc(images.grad)}


def training(model: torch.nn.Module, images: torch.Tensor, truth: np.ndarray) -> float:
    """The loss of both heads with the batch's own statistics and without dropout."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    with torch.no_grad():
        found = model(images)
    loss = functools.partial(cross_entropy, target=torch.from_numpy(truth).long(), ignore_index=IGNORED)
    return float(loss(found["out"]) + 0.5 * loss(found["aux"]))


def write(name: str, path: Path) -> None:
    pixels = fill.images(2, *SIZE)
    images, truth = nchw(fill.normalise(pixels)).double(), labels(2, *SIZE)
    model, scales = prepared(name, images[:1])
    found = {key: value[:, :: EVERY[key], :: EVERY[key]] for key, value in inference(model, images[:1]).items()}
    loss = training(model, images, truth)
    np.savez_compressed(path, scales=scales, labels=truth, loss=loss, **found)


def main() -> None:
    torch.set_num_threads(2)
    if len(sys.argv) > 1:
        write(sys.argv[1], Path(sys.argv[2]))
        return
    for name in NAMES:
        write(name, OUT / f"segmenter_{name}.npz")


if __name__ == "__main__":
    main()
