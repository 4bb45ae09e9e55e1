"""Writes the golden of Faster R-CNN C4 out of the arrays that Detectron2 0.6 gave, which are too many for a repository:
``python tests/parity/make_detectron2_goldens.py folder`` with the folder of ``faster_rcnn_R_50_C4_3x.npz`` and of the
``fill.py`` that made its weights. Those ran in float32 on a CPU, their maps lie in torch's axis order.

Of large arrays a part is kept, under ``name``, at the flat positions ``name_at``."""

import json
import runpy
import sys
from pathlib import Path

import detectron2_fill
import numpy as np

OUT = Path(__file__).parent / "goldens" / "fasterrcnn_resnet50_c4.npz"
# Our name, theirs, and of how many of the values one is kept.
PARTS = (
    ("c2", "trunk.res2#spread64", 1),
    ("c3", "trunk.res3#spread8192", 8),
    ("c4", "trunk.res4#spread8192", 8),
    ("anchors", "anchors.res4", 11),
    ("rpn_logits", "rpn.logits.res4", 3),
    ("rpn_offsets", "rpn.deltas.res4", 7),
    ("pooled", "fix.box_pooled#spread64", 1),
    ("logits", "fix.cls_logits", 1),
    ("offsets", "fix.box_deltas", 3),
)
WHOLE = {
    "proposals": "props.proposal_boxes",
    "boxes": "raw.pred_boxes",
    "scores": "raw.scores",
    "labels": "raw.pred_classes",
    "fixed_boxes": "fix.det.pred_boxes",
    "fixed_scores": "fix.det.scores",
    "fixed_labels": "fix.det.pred_classes",
}


def check(folder: Path, golden: dict[str, np.ndarray]) -> None:
    """Our rules give the same weights, image and boxes as those behind the golden."""
    original = runpy.run_path(str(folder / "fill.py"))
    for key, shape in json.loads(str(golden["manifest"])).items():
        np.testing.assert_array_equal(detectron2_fill.fill(key, tuple(shape)), original["fill"](key, tuple(shape)), key)
    np.testing.assert_array_equal(detectron2_fill.image().transpose(0, 3, 1, 2), original["make_image"]())
    np.testing.assert_array_equal(detectron2_fill.BOXES, golden["boxes"])


def part(golden: dict[str, np.ndarray], key: str, every: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and their flat positions in the whole array."""
    name, _, spread = key.partition("#spread")
    size = int(np.prod(golden[f"{name}#shape"]))
    positions = np.linspace(0, size - 1, int(spread)).astype(np.int64) if spread else np.arange(size)
    return golden[key].reshape(-1)[::every], positions[::every].astype(np.int32)


def main(folder: Path) -> None:
    golden = dict(np.load(folder / "faster_rcnn_R_50_C4_3x.npz"))
    check(folder, golden)
    kept = {name: golden[key] for name, key in WHOLE.items()}
    for name, key, every in PARTS:
        kept[name], kept[f"{name}_at"] = part(golden, key, every)
    keys = sorted(json.loads(str(golden["manifest"])).items())
    np.savez_compressed(OUT, keys=json.dumps(keys), **kept)
    print({name: values.shape for name, values in kept.items()}, OUT.stat().st_size)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
