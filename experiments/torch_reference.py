"""torchvision's side of the benchmark: a worker process, run by an interpreter that has torch.

It reads lines of JSON and answers each with one: ``{"prepare": case}`` → ``{"layout": ...}``, ``{"run": true}`` →
``{"seconds": ...}``. Where the memory layout is free, the faster of torch's two is the one that is timed.
"""

import json
import os
import sys
import time
from collections.abc import Callable

import benchmark_inputs as inputs
import torch
import torch.nn.functional as F
import torchvision
from allocator import keep_freed_memory
from torchvision.models.detection.roi_heads import paste_masks_in_image

LAYOUTS = {"channels last": torch.channels_last, "channels first": torch.contiguous_format}


def image(array, layout, grad=False):
    """[..., h, w, c] in numpy to [b, c, h, w] in torch."""
    tensor = torch.from_numpy(array.reshape(-1, *array.shape[-3:])).permute(0, 3, 1, 2)
    return tensor.contiguous(memory_format=layout).requires_grad_(grad)


def roi_align(layout, backward):
    maps = {str(i): image(f, layout, backward) for i, f in enumerate(inputs.pyramid())}
    boxes = torch.from_numpy(inputs.boxes(512))
    pool = torchvision.ops.MultiScaleRoIAlign(list(maps), output_size=7, sampling_ratio=2)
    upstream = image(inputs.normal(512, 7, 7, 256), torch.contiguous_format)
    return differentiated(lambda: pool(maps, [boxes], [inputs.IMAGE]), list(maps.values()), upstream, backward)


def max_pool(layout, backward):
    x = image(inputs.normal(8, 112, 112, 64), layout, backward)
    upstream = image(inputs.normal(8, 56, 56, 64), layout)
    return differentiated(lambda: F.max_pool2d(x, 3, 2, 1), [x], upstream, backward)


def differentiated(forward, leaves, upstream, backward):
    if backward:
        return lambda: torch.autograd.grad(forward(), leaves, upstream)
    return torch.no_grad()(forward)


def nms(count):
    boxes, scores = torch.from_numpy(inputs.boxes(count)), torch.from_numpy(inputs.uniform(count))
    return lambda: torchvision.ops.nms(boxes, scores, 0.5)


def paste():
    masks = torch.from_numpy(inputs.uniform(100, 1, 28, 28))
    boxes = torch.from_numpy(inputs.boxes(100))
    return lambda: paste_masks_in_image(masks, boxes, inputs.IMAGE)


def classifier(layout, name, batch, size, train):
    model = torchvision.models.get_model(name, weights=None).to(memory_format=layout).train(train)
    x = image(inputs.normal(batch, size, size, 3), layout)
    if not train:
        return torch.no_grad()(lambda: model(x))
    labels = torch.arange(batch) % 1000
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step():
        optimizer.zero_grad()
        outputs = model(x)
        heads = outputs if isinstance(outputs, tuple) else (outputs,)  # with auxiliary heads a named tuple
        sum(F.cross_entropy(head, labels) for head in heads).backward()
        optimizer.step()

    return step


def segmenter(layout, name, batch, size, train):
    options = dict(weights=None, weights_backbone=None, aux_loss=train)
    model = torchvision.models.get_model(name, **options).to(memory_format=layout).train(train)
    x = image(inputs.normal(batch, size, size, 3), layout)
    if not train:
        return torch.no_grad()(lambda: model(x))
    labels = (torch.arange(size**2).reshape(1, size, size) % 21).repeat(batch, 1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step():
        optimizer.zero_grad()
        outputs = model(x)
        (F.cross_entropy(outputs["out"], labels) + 0.5 * F.cross_entropy(outputs["aux"], labels)).backward()
        optimizer.step()

    return step


def detector(layout, name):
    """Random weights, but sure of class 0, so that there are detections to find (and masks to paste); no resizing
    inside but SSD's."""
    model = _detector(layout, name).eval()
    if "rcnn" in name:
        model.roi_heads.box_predictor.cls_score.bias.data[1] = 5.0
    elif "retinanet" in name:
        model.head.classification_head.cls_logits.bias.data.view(-1, 91)[:, 1] = 5.0
    else:
        for head in model.head.classification_head.module_list:
            head.bias.data.view(-1, 91)[:, 1] = 5.0
    picture = list(image(inputs.uniform(*inputs.IMAGE, 3), layout))
    return torch.no_grad()(lambda: model(picture))


def detector_step(layout, name):
    """Loss, gradients and an SGD step, with five objects in the image."""
    model = _detector(layout, name).train()
    picture = list(image(inputs.uniform(*inputs.IMAGE, 3), layout))
    height, width = inputs.IMAGE
    boxes = torch.from_numpy(inputs.boxes(5)).clamp(min=0).minimum(torch.tensor([width, height] * 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step():
        optimizer.zero_grad()
        sum(model(picture, [{"boxes": boxes, "labels": torch.arange(5) + 1}]).values()).backward()
        optimizer.step()

    return step


def _detector(layout, name):
    sizes = {} if "ssd" in name else {"min_size": inputs.IMAGE[0], "max_size": inputs.IMAGE[1]}
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, **sizes)
    return model.to(memory_format=layout)


def build(case: dict, layout) -> Callable[[], object]:
    kind, options = case["kind"], {k: v for k, v in case.items() if k != "kind"}
    makers = (roi_align, max_pool, classifier, segmenter, detector, detector_step)
    return {maker.__name__: maker for maker in makers}[kind](layout, **options)


def seconds(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def prepare(case: dict) -> tuple[Callable[[], object], str]:
    without_layout = {"nms": nms, "paste": paste}
    if case["kind"] in without_layout:
        run = without_layout[case["kind"]](**{k: v for k, v in case.items() if k != "kind"})
        run()
        return run, "none"
    runs = {name: build(case, layout) for name, layout in LAYOUTS.items()}
    for run in runs.values():
        run()
    name = min(runs, key=lambda name: min(seconds(runs[name]) for _ in range(3)))
    return runs[name], name


def main() -> None:
    keep_freed_memory()
    answers = os.fdopen(os.dup(1), "w")  # the pipe, kept free of what libraries print
    os.dup2(2, 1)
    torch.set_num_threads(int(sys.argv[1]))
    print(json.dumps({"torch": torch.__version__, "torchvision": torchvision.__version__}), file=answers, flush=True)
    run = None
    for line in sys.stdin:
        request = json.loads(line)
        if "prepare" in request:
            run = None  # free the last case first
            run, layout = prepare(request["prepare"])
            answer = {"layout": layout}
        else:
            answer = {"seconds": seconds(run)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
