"""torchvision's side of ``benchmark.py data``: a ``DataLoader`` with v2 transforms, run by a Python that has torch.

It reads lines of JSON and answers each with one: ``{"prepare": case}`` → ``{"images": n}``, ``{"run": true}`` →
``{"seconds": …}`` for all images once. The transforms are those of torchvision's reference training scripts; with
``"normalize": false`` they end with bytes, as ours do.
"""

import io
import json
import sys
import time

import torch
import torchvision
from torch.utils.data import ConcatDataset, DataLoader
from torchvision import datasets, tv_tensors
from torchvision.transforms import v2

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def classification(case):
    steps = [v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    if case["normalize"]:
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD), v2.ToPureTensor()]
    return datasets.ImageFolder(case["images"], transform=v2.Compose(steps)), None


def detection(case):
    steps = [v2.ToImage(), v2.RandomShortestSize(min_size=800, max_size=1333), v2.RandomHorizontalFlip()]
    if case["normalize"]:
        steps += [v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)]
    steps += [v2.SanitizeBoundingBoxes(), v2.ToPureTensor()]
    found = datasets.CocoDetection(case["images"], case["annotations"], transforms=v2.Compose(steps))
    wanted = ("boxes", "labels", "masks")
    return datasets.wrap_dataset_for_transforms_v2(found, target_keys=wanted), lambda batch: tuple(zip(*batch))


def loader(case):
    dataset, collate = {"classification": classification, "detection": detection}[case["task"]](case)
    dataset = ConcatDataset([dataset] * case["passes"])
    return DataLoader(
        dataset,
        batch_size=case["batch_size"],
        shuffle=True,
        num_workers=case["workers"],
        persistent_workers=True,
        collate_fn=collate,
    )


def main():
    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, io.StringIO()  # pycocotools speaks on standard output
    print(json.dumps({"torch": torch.__version__, "torchvision": torchvision.__version__}), file=answers, flush=True)
    batches = None
    for line in sys.stdin:
        request = json.loads(line)
        if "prepare" in request:
            batches = loader(request["prepare"])
            answer = {"images": len(batches.dataset)}
        else:
            start = time.perf_counter()
            for _ in batches:
                pass
            answer = {"seconds": time.perf_counter() - start}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
