"""A made-up data set of COCO's size: ``python experiments/coco_sized.py FOLDER`` writes ``instances.json`` (118,000
images, 860,000 objects with polygons, 0.5 GB) and ``images``, all of them links to one photograph."""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

IMAGES, OBJECTS, CATEGORIES = 118_000, 860_000, 80
HEIGHT, WIDTH = 480, 640


def write(folder: Path, *, images: int = IMAGES, objects: int = OBJECTS) -> None:
    """Objects of 6 to 44 corners around random places, with two digits behind the point, as COCO has them."""
    rng = np.random.default_rng(0)
    pictures = folder / "images"
    pictures.mkdir(parents=True)
    noise = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8))
    buffer = io.BytesIO()
    noise.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(buffer, "jpeg", quality=90)
    (folder / "photograph.jpg").write_bytes(buffer.getvalue())
    names = [f"{index:012d}.jpg" for index in range(images)]
    for name in names:
        os.symlink(os.path.join("..", "photograph.jpg"), pictures / name)
    records = [{"id": i, "file_name": name, "height": HEIGHT, "width": WIDTH} for i, name in enumerate(names)]
    categories = [{"id": i + 1, "name": f"class {i}"} for i in range(CATEGORIES)]
    of_image = np.sort(rng.integers(0, images, objects))
    corners = rng.integers(6, 45, objects)
    with (folder / "instances.json").open("w") as file:
        head = json.dumps({"images": records, "categories": categories})
        file.write(head[:-1] + ', "annotations": [')
        for number in range(objects):
            annotation = an_object(rng, int(corners[number]))
            annotation |= {"id": number + 1, "image_id": int(of_image[number]), "category_id": number % CATEGORIES + 1}
            file.write((", " if number else "") + json.dumps(annotation))
        file.write("]}")


def an_object(rng: np.random.Generator, corners: int) -> dict:
    """A star-shaped polygon, its box and area."""
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radius = np.exp(rng.uniform(2, 5)) * rng.uniform(0.6, 1, corners)
    x = (rng.uniform(1, WIDTH - 1) + radius * np.cos(angle)).clip(0, WIDTH).round(2)
    y = (rng.uniform(1, HEIGHT - 1) + radius * np.sin(angle)).clip(0, HEIGHT).round(2)
    left, top, width, height = x.min(), y.min(), np.ptp(x) + 0.01, np.ptp(y) + 0.01
    return {
        "segmentation": [np.stack([x, y], axis=1).ravel().tolist()],
        "bbox": [float(left), float(top), round(float(width), 2), round(float(height), 2)],
        "area": round(float(width * height * 0.7), 2),
        "iscrowd": 0,
    }


def main(folder: Path, /) -> None:
    """folder: a new one."""
    write(folder)
    print(f"{folder / 'instances.json'}: {(folder / 'instances.json').stat().st_size / 1e6:.0f} MB", file=sys.stderr)


if __name__ == "__main__":
    tyro.cli(main)
