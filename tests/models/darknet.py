"""What darknet does, in numpy and slowly: layers, boxes, detections. Boxes are (x, y, width, height)."""

import numpy as np


def iou(a, b):
    overlap = [
        max(0, min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2) - max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2))
        for i in (0, 1)
    ]
    shared = overlap[0] * overlap[1]
    return shared / (a[2] * a[3] + b[2] * b[3] - shared) if shared else 0.0


def leaky(x):
    return np.where(x > 0, x, 0.1 * x)


def convolutional(x, layer, *, stride, activate=leaky):
    """x [in, h, w]; kernel [out, in, k, k], padded by k // 2."""
    kernel = layer["weights"]
    size = kernel.shape[-1]
    padded = np.pad(x, [(0, 0), (size // 2, size // 2), (size // 2, size // 2)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    x = np.einsum("ihwkl,oikl->ohw", windows, kernel, optimize=True)
    if "scales" in layer:
        x = (x - layer["mean"][:, None, None]) / np.sqrt(layer["variance"][:, None, None] + 1e-5)
        x = x * layer["scales"][:, None, None]
    return activate(x + layer["biases"][:, None, None])


def maxpool(x):
    channels, height, width = x.shape
    return x.reshape(channels, height // 2, 2, width // 2, 2).max((2, 4))


def connected(x, layer, activate):
    return activate(layer["weights"] @ x.reshape(-1) + layer["biases"])


def detections(vector, model):
    """The detections in the output of one image: rows of (left, top, right, bottom, score, label), best first."""
    cells, classes, per_cell, size = model.grid**2, model.num_classes, model.per_cell, model.image_size
    found = []
    for cell in range(cells):
        row, column = divmod(cell, model.grid)
        for n in range(per_cell):
            confidence = vector[cells * classes + cell * per_cell + n]
            at = cells * (classes + per_cell) + (cell * per_cell + n) * 4
            x, y = (vector[at] + column) / model.grid * size, (vector[at + 1] + row) / model.grid * size
            width, height = vector[at + 2] ** 2 * size, vector[at + 3] ** 2 * size
            box = np.clip([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 0, size)
            for label in range(classes):
                score = confidence * vector[cell * classes + label]
                if score > model.score_threshold and min(box[2:] - box[:2]) >= model.min_size:
                    found.append((*box, score, label))
    kept = []
    for one in sorted(found, key=lambda row: -row[4]):
        rivals = [centred(other) for other in kept if other[5] == one[5]]
        if all(iou(centred(one), rival) <= model.nms_threshold for rival in rivals):
            kept.append(one)
    return np.array(kept[: model.max_detections])


def centred(row):
    left, top, right, bottom = row[:4]
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def assert_same_detections(found, wanted):
    """Ours of one image, and the rows of ``detections``."""
    count = int(found.valid.sum())
    assert count == len(wanted)
    rows = np.concatenate([found.boxes, found.scores[:, None], found.labels[:, None]], axis=1)[:count]
    np.testing.assert_allclose(rows, wanted, rtol=1e-3, atol=1e-3)
