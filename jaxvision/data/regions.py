"""Regions that may hold an object, for the detectors that are given them: selective search (Uijlings et al., IJCV 2013)
as OpenCV has it, and a source with the regions of all its images, searched once and kept on disk."""

import concurrent.futures
import json
import os
import pathlib
import zipfile
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

import numpy as np
from tqdm import tqdm

from jaxvision.data.source import DetectionSource, Example, size_of
from jaxvision.data.transforms import scale_boxes

__all__ = ["WithRegions", "selective_search", "with_selective_search"]

SCALES = dict(base_k=50, inc_k=50, sigma=0.8)  # thresholds of 50, 100 and 150; R-CNN's were 50 and 100


def selective_search(
    image: np.ndarray, *, mode: str = "fast", max_regions: int = 2000, min_side: int = 0
) -> np.ndarray:
    """Boxes float32 [n, 4], xyxy in pixels, of the image's segments and of what they merge into; each box once.

    image: uint8 [h, w, 3], RGB. mode: "fast" searches in two colour spaces, as R-CNN does, "quality" in more. Of more
    than ``max_regions`` the largest and smallest thin out alike: every k-th by area is kept. Boxes with a side below
    ``min_side`` are left out. The same image gives the same boxes, largest first.
    Raises: ImportError naming the extra, ValueError for another mode or image.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"selective search takes uint8 [h, w, 3], not {image.dtype} {list(image.shape)}")
    if mode not in ("fast", "quality"):
        raise ValueError(f"mode={mode!r}; there are 'fast' and 'quality'")
    search = _opencv().ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image[:, :, ::-1]))
    if mode == "fast":
        search.switchToSelectiveSearchFast(**SCALES)
    else:
        search.switchToSelectiveSearchQuality(**SCALES)
    found = np.asarray(search.process(), np.float32).reshape(-1, 4)
    found = found[(found[:, 2:] >= max(min_side, 1)).all(1)]
    boxes = np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], axis=1)
    boxes = np.unique(boxes, axis=0)  # sorted, as OpenCV's own order is random
    boxes = boxes[np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(1), kind="stable")]
    return thinned(boxes, max_regions)


def thinned(boxes: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` of the boxes, evenly from first to last."""
    if len(boxes) <= count:
        return boxes
    return boxes[np.linspace(0, len(boxes) - 1, count).round().astype(int)]


class WithRegions:
    """The examples of a detection source, each with its ``regions``.

    regions: float32 [n, 4] of each example, xyxy in the pixels of the image as the data set has it (``size``).
    """

    def __init__(self, source: DetectionSource, regions: Sequence[np.ndarray]):
        if len(source) != len(regions):
            raise ValueError(f"{len(source)} examples, but regions for {len(regions)}")
        self.source, self.regions = source, regions
        self.categories, self.category_ids = source.categories, source.category_ids

    def __len__(self) -> int:
        return len(self.source)

    def size(self, index: SupportsIndex) -> tuple[int, int]:
        return self.source.size(index)

    def __getitem__(self, index: SupportsIndex) -> Example | None:
        example = self.source[index]
        if example is None:
            return None
        return {**example, "regions": scale_boxes(self.regions[index], decoded_at(example))}

    @property
    def problems(self) -> list[str]:
        return list(getattr(self.source, "problems", []))

    def ground_truth(self, indices: Iterable[SupportsIndex] | None = None) -> dict[str, Any]:
        return self.source.ground_truth(indices)


def with_selective_search(
    source: DetectionSource,
    cache: str | os.PathLike,
    *,
    mode: str = "fast",
    max_regions: int = 2000,
    min_side: int = 0,
) -> WithRegions:
    """The source with ``selective_search`` of every image: read from the file ``cache`` (.npz), or searched in as many
    threads as there are processors, and written there.

    The file is written under another name and renamed, so it is whole or not there.
    Where the source passes over a bad file, nothing is written, so that the mended file is searched next time.
    Raises: ValueError if the file is damaged, of other settings or of a source of another length.
    """
    path = pathlib.Path(cache)
    settings = {"mode": mode, "max_regions": max_regions, "min_side": min_side, "images": len(source)}
    if path.exists():
        try:
            with path.open("rb") as stream, np.load(stream) as file:
                saved = json.loads(str(file["settings"]))
                boxes, counts = file["boxes"], file["counts"]
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is no file of regions ({error}): remove it to search anew") from error
        if saved != settings:
            raise ValueError(f"{path} holds the regions of {saved}, not of {settings}: remove it to search anew")
        return WithRegions(source, np.split(boxes, np.cumsum(counts)[:-1]))

    def search(index: int) -> np.ndarray | None:
        example = source[index]
        if example is None:  # a bad file that the source passes over
            return None
        regions = selective_search(example["image"], mode=mode, max_regions=max_regions, min_side=min_side)
        return scale_boxes(regions, 1 / decoded_at(example))

    _opencv().setNumThreads(1)  # the images are what is spread over the processors
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        searches = pool.map(search, range(len(source)))
        found = list(tqdm(searches, "selective search", len(source), leave=False, disable=None))
    nothing = np.zeros((0, 4), np.float32)
    regions = [nothing if boxes is None else boxes for boxes in found]
    if not any(boxes is None for boxes in found):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{os.getpid()}.{path.name}")
        try:
            np.savez_compressed(
                unfinished,
                settings=json.dumps(settings),
                boxes=np.concatenate([*regions, nothing]),
                counts=np.array([len(boxes) for boxes in regions]),
            )
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    return WithRegions(source, regions)


def decoded_at(example: Example) -> np.ndarray:
    """How much smaller the image is than in the data set, float32 [2]: 1 for x and y unless its decoding was scaled."""
    return np.array(example["image"].shape[1::-1], np.float32) / np.array(size_of(example)[::-1], np.float32)


def _opencv() -> Any:
    try:
        import cv2

        cv2.ximgproc.segmentation  # noqa: B018 - OpenCV without contrib has none
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"selective search is in OpenCV's contrib modules ({error}); install them with: "
            "pip install 'jaxvision-flax[classic]'"
        ) from error
    return cv2
