"""Reading side by side: ImageNet-like and COCO-like files through our pipeline and through torchvision's DataLoader;
what an image sends to the devices; and how soon and in how much memory a set of COCO's size starts."""

import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from experiments import coco_sized
from experiments.config import Augmentation, Coco, Config, Folders
from experiments.reading import train_batches
from experiments.tasks import task_of
from jaxvision import data
from jaxvision.data.digit_scenes import photographs

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Reading:
    """One comparison: our config, and what torch_data_reference.py is told."""

    name: str
    config: Config
    files: int
    passes: int  # how often the files are read in one measurement
    torch: dict[str, Any]


def readings(folder: Path, workers: int, worker_processes: int) -> tuple[Reading, Reading]:
    """The two cases on files that are made in ``folder``."""
    options = dict(workers=workers, worker_processes=worker_processes)
    pictures, scenes = folder / "imagenet", folder / "coco"
    photographs_in(pictures, 96, size=(375, 500), folders=("a", "b"))
    classification = Config(
        data=Folders(pictures, pictures),
        model="resnet50",
        image_size=((224, 224),),
        augmentation=Augmentation(flip=0.5, crop_area=(0.08, 1.0)),
        batch_size=32,
        **options,
    )
    photographs_in(scenes, 48, size=(480, 640))
    annotations = folder / "instances.json"
    annotations.write_text(json.dumps(annotated(48, per_image=7)))
    detection = Config(
        data=Coco(scenes, annotations),
        model="maskrcnn_resnet50_fpn",
        image_size=((800, 1344), (1344, 800)),
        resize=(800, 1333),
        augmentation=Augmentation(flip=0.5),
        batch_size=4,
        **options,
    )
    torch = {"workers": max(workers, worker_processes)}
    return (
        Reading(
            "ImageNet-like: 500×375, random window to 224",
            classification,
            96,
            6,
            {"task": "classification", "images": str(pictures), **torch},
        ),
        Reading(
            "COCO-like: 640×480 with 7 masks, shorter side 800",
            detection,
            48,
            2,
            {"task": "detection", "images": str(scenes), "annotations": str(annotations), **torch},
        ),
    )


def photographs_in(folder: Path, count: int, *, size: tuple[int, int], folders: tuple[str, ...] = (".",)) -> None:
    """Crops of real photographs as JPEG of quality 92."""
    rng, photos = np.random.default_rng(0), photographs()
    height, width = size
    for index in range(count):
        photo = photos[rng.integers(len(photos))]
        scale = rng.uniform(0.5, 1) * min(photo.shape[0] / height, photo.shape[1] / width)
        h, w = int(height * scale), int(width * scale)
        top, left = rng.integers(photo.shape[0] - h + 1), rng.integers(photo.shape[1] - w + 1)
        picture = Image.fromarray(photo[top : top + h, left : left + w]).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        path = folder / folders[index % len(folders)] / f"{index:012d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=92)


def annotated(count: int, *, per_image: int, size: tuple[int, int] = (480, 640)) -> dict[str, Any]:
    """Polygons of 24 points around random places, in COCO's format."""
    rng, (height, width) = np.random.default_rng(1), size
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    annotations = []
    for image in range(count):
        for _ in range(per_image):
            radius = np.exp(rng.uniform(np.log(10), np.log(150))) * rng.uniform(0.7, 1, angle.size)
            centre = rng.uniform((0, 0), (width, height))
            points = centre[:, None] + radius * np.stack([np.cos(angle), np.sin(angle)])
            points = points.clip(1, np.array([[width - 1], [height - 1]]))
            low, high = points.min(1), points.max(1)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image + 1,
                    "category_id": int(rng.integers(1, 81)),
                    "bbox": [*low.tolist(), *(high - low).tolist()],
                    "area": float((high - low).prod() * 0.7),
                    "iscrowd": 0,
                    "segmentation": [points.T.ravel().round(2).tolist()],
                }
            )
    images = [{"id": i + 1, "file_name": f"{i:012d}.jpg", "height": height, "width": width} for i in range(count)]
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, 81)]
    return {"images": images, "annotations": annotations, "categories": categories}


def ours(reading: Reading) -> Callable[[], float]:
    """Reads all images once more; the seconds it took."""
    task = task_of(reading.config.model)
    source, _ = task.sources(reading.config)
    batches = train_batches(reading.config, task.rows(reading.config), source)
    count = reading.files * reading.passes // reading.config.batch_size

    def run() -> float:
        start = time.perf_counter()
        for _ in range(count):
            next(batches)
        return time.perf_counter() - start

    return run


def table(torch: Any, *, only: str, repeats: int, cores: int, workers: int, worker_processes: int) -> Iterator[str]:
    """Images a second and core, ours beside torchvision's with bytes and with normalised floats at the end."""
    yield "| reading | jaxvision, images/s/core | torchvision | ratio | torchvision, normalised | ratio |"
    yield "|---|---:|---:|---:|---:|---:|"
    with tempfile.TemporaryDirectory() as folder:
        for reading in readings(Path(folder), workers, worker_processes):
            if only not in reading.name:
                continue
            run, images = ours(reading), reading.files * reading.passes
            run()  # what waits in buffers, and what is imported late
            cells = []
            for normalize in (False, True):
                if torch is not None:
                    same = {"batch_size": reading.config.batch_size, "passes": reading.passes}
                    torch.ask({"prepare": {**reading.torch, **same, "normalize": normalize}})
                    torch.ask({"run": True})  # its processes start
                turns = [(run(), torch.ask({"run": True})["seconds"] if torch else None) for _ in range(repeats)]
                own, other = zip(*turns)
                if not cells:
                    cells.append(f"{images / statistics.median(own) / cores:.1f}")
                if torch is None:
                    cells += ["", ""]
                    continue
                ratio = statistics.median(theirs / mine for mine, theirs in turns)
                cells += [f"{images / statistics.median(other) / cores:.1f}", f"{ratio:.2f}"]
            yield f"| {reading.name} | {' | '.join(cells)} |"


def bytes_of_an_image() -> Iterator[str]:
    """What one COCO image of 800×1344 with 100 objects sends to the devices, in masks on boxes and in planes."""
    boxes = np.tile(np.array([[10, 10, 500, 400]], np.float32), (100, 1))
    example: data.Example = {
        "image": np.zeros((800, 1344, 3), np.uint8),
        "image_id": 1,
        "boxes": boxes,
        "labels": np.zeros(100, np.int32),
        "iscrowd": np.zeros(100, bool),
        "masks": np.ones((100, 800, 1344), bool),
    }
    for side in (Config.mask_side, None):
        rows = data.DetectionRows(max_objects=100, mask_side=side)
        row = rows.row(rows.prepare(example), (800, 1344), None)
        size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(row))
        kind = "planes" if side is None else f"masks of {side}×{side} on their boxes"
        yield f"one image of 800×1344 with 100 objects, {kind}: {size / 1e6:.1f} MB"


def start_of_coco() -> str:
    """How a made-up set of COCO's size starts, in a process of its own; its annotation file is made first."""
    with tempfile.TemporaryDirectory() as folder:
        coco_sized.write(Path(folder))
        code = "import sys; from experiments.benchmark_data import first_batch; first_batch(sys.argv[1])"
        command = [sys.executable, "-c", code, folder]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout.strip()


def first_batch(folder: str) -> None:
    """Reads the first batch of 16 of a set in COCO's layout, and prints the seconds and the largest resident memory."""
    start = time.perf_counter()
    coco = Coco(Path(folder) / "images", Path(folder) / "instances.json")
    config = Config(data=coco, model="maskrcnn_resnet50_fpn", resize=(800, 1333), batch_size=16)
    task = task_of(config.model)
    source, _ = task.sources(config)
    opened = time.perf_counter() - start
    next(train_batches(config, task.rows(config), source))
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"a set of COCO's size, {len(source):,} images with {coco.train_annotations.stat().st_size / 1e6:.0f} MB of "
        f"annotations: opened in {opened:.1f} s, first batch of 16 after {seconds:.1f} s, at most {peak:.2f} GiB"
    )
