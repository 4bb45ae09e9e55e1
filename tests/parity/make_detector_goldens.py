"""Writes the goldens of the detectors: ``python tests/parity/make_detector_goldens.py [name ...]`` with torch 2.14.1,
torchvision 0.29.1. In float64, so that differences are our rounding; weights are ``fill.detector``'s."""

import functools
import sys
from pathlib import Path

import numpy as np
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).parent))
import fill
from make_goldens import OUT, filled, measure, nchw

NAMES = [
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "ssd300_vgg16",
]
OBJECTS = 3  # an image
PROPOSALS = 60  # in training
EVERY = {"anchors": 197, "proposals": 7}  # of these the raw outputs are kept
TERMS = {
    "loss_classifier": "loss_class",
    "loss_box_reg": "loss_box",
    "loss_objectness": "loss_objectness",
    "loss_rpn_box_reg": "loss_rpn_box",
    "classification": "loss_class",
    "bbox_regression": "loss_box",
}


def build(name: str, height: int, width: int) -> torch.nn.Module:
    """torchvision's model; in training it samples everything, so that nothing is drawn at random."""
    options = {}
    if "ssd" not in name:
        options |= {"min_size": height, "max_size": width}
    if "rcnn" in name:
        options |= {
            "rpn_batch_size_per_image": 100_000,
            "rpn_post_nms_top_n_train": PROPOSALS,
            "box_batch_size_per_image": PROPOSALS + OBJECTS,
            "box_positive_fraction": 1.0,
        }
    return torchvision.models.get_model(name, weights=None, weights_backbone=None, **options)


def prepared(name: str, height: int, width: int) -> tuple[torch.nn.Module, np.ndarray]:
    """The model with its weights, and the scales of its batch norms."""
    model = build(name, height, width)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    norms = fill.norms(shapes)
    filled(model, fill.detector(shapes, np.ones(len(norms), np.float32))).double()
    measured = measure(model, norms, list(nchw(fill.images(1, height, width)).double()))
    scales = np.array([measured[norm] for norm in norms], np.float32)
    return filled(model, fill.detector(shapes, scales)).double(), scales


def detections(model: torch.nn.Module, height: int, width: int) -> dict[str, np.ndarray]:
    """Of one image, and a part of the raw outputs."""
    kept = {}

    def keep(name, module, args, output):
        kept[name] = output

    two_stage = hasattr(model, "rpn")
    places = ("rpn.head", "rpn", "roi_heads.box_predictor") if two_stage else ("head",)
    hooks = [model.get_submodule(place).register_forward_hook(functools.partial(keep, place)) for place in places]
    with torch.no_grad():
        (found,) = model(list(nchw(fill.images(1, height, width)).double()))
    for hook in hooks:
        hook.remove()
    golden = {name: found[name].numpy() for name in ("boxes", "scores", "labels")}
    if not two_stage:
        raw = {"logits": kept["head"]["cls_logits"][0], "offsets": kept["head"]["bbox_regression"][0]}
        return golden | {name: values[:: EVERY["anchors"]].numpy() for name, values in raw.items()}
    (logits, offsets), (proposals, _) = kept["rpn.head"], kept["rpn"]
    rows = slice(None, None, EVERY["proposals"] * len(proposals[0]) // 100)
    class_logits, class_offsets = kept["roi_heads.box_predictor"]
    return golden | {
        "rpn_logits": flat(logits, 1)[:: EVERY["anchors"], 0].numpy(),
        "rpn_offsets": flat(offsets, 4)[:: EVERY["anchors"]].numpy(),
        "regions": proposals[0][rows].numpy(),
        "logits": class_logits[rows].numpy(),
        "offsets": class_offsets[rows].reshape(-1, 91, 4).numpy(),
    }


def flat(levels: list[torch.Tensor], width: int) -> torch.Tensor:
    """One image's outputs of all levels in the order (level, row, column, anchor)."""
    return torch.cat([level[0].permute(1, 2, 0).reshape(-1, width) for level in levels])


def training(model: torch.nn.Module, height: int, width: int, *, frozen: bool, empty: bool) -> dict[str, np.ndarray]:
    """The losses of two images, the second without objects if ``empty``, and a part of their gradient with respect to
    the first kernel; with the batch's own statistics unless ``frozen``."""
    model.train()
    for module in model.modules():
        if frozen and isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    boxes, labels = (torch.from_numpy(values) for values in fill.objects(height, width, 2 * OBJECTS))
    targets = [
        {"boxes": boxes[:OBJECTS].double(), "labels": labels[:OBJECTS]},
        {"boxes": boxes[OBJECTS:].double(), "labels": labels[OBJECTS:]},
    ]
    if empty:
        targets[1] = {name: values[:0] for name, values in targets[1].items()}
    losses = model(list(nchw(fill.images(2, height, width)).double()), targets)
    sum(losses.values()).backward()
    _, kernel = next(model.named_parameters())
    if kernel.ndim == 1:  # SSD's gain comes first
        kernel = model.backbone.features[0].weight
    terms = {TERMS[name]: loss.item() for name, loss in losses.items()}
    return terms | {"gradient": kernel.grad[:8].numpy()}


def main() -> None:
    torch.set_num_threads(2)
    for name in sys.argv[1:] or NAMES:
        size = (300, 300) if "ssd" in name else (192, 256)
        model, scales = prepared(name, *size)
        golden = {"scales": scales, **detections(model, *size)}
        one_stage = "rcnn" not in name
        golden |= training(model, *size, frozen=not name.endswith("v2"), empty=one_stage)
        golden = {key: np.asarray(value, np.int32 if key == "labels" else np.float32) for key, value in golden.items()}
        np.savez_compressed(OUT / f"{name}.npz", size=size, **golden)
        print(name, {key: value.shape or float(value) for key, value in golden.items()})
        print(golden["scores"][::30], np.unique(golden["labels"]).size, (OUT / f"{name}.npz").stat().st_size)


if __name__ == "__main__":
    main()
