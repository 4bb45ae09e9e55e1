"""YOLO v1: You Only Look Once (Redmon et al., arXiv:1506.02640): figure 3, sections 2.1 to 2.3, equation 3.

Convolutions with leaky ReLUs of slope 0.1, then two fully connected layers, whose outputs are for each cell of a grid
the class scores, and for each of the cell's boxes a confidence and the box. All outputs are linear, in darknet's order:
the class scores of all cells, then all confidences, then all boxes; cells row by row.

Variant: darknet's code where the paper is silent: an object whose centre lies in a cell that another one has is left
out, and where no box of a cell overlaps its object the one nearest to it in (x, y, w, h) is responsible. Deviations:
darknet leaves out objects of less than 0.01 of the image's side, here all that have an area count; the loss is a mean
over images, and its gradient twice darknet's. Parameter count: the sum of figure 3's layers; darknet's later
``yolov1.cfg``, with batch norm and a locally connected layer in place of the first dense one, is another network.
"""

from functools import partial
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers

from jaxvision import losses, ops
from jaxvision.layers.convolution import Conv, Dense
from jaxvision.layers.dropout import Dropout
from jaxvision.layers.norm import BatchNorm
from jaxvision.layers.one_stage import OneStage
from jaxvision.ops import boxes
from jaxvision.registry import register
from jaxvision.typing import Array, Bool, Detections, Features, Float, Int, Targets

Stages = tuple[tuple[tuple[int, int, int], ...], ...]  # channels, window, stride of each convolution

# Figure 3; a 2x2 max pool stands between two stages.
STAGES: Stages = (
    ((64, 7, 2),),
    ((192, 3, 1),),
    ((128, 1, 1), (256, 3, 1), (256, 1, 1), (512, 3, 1)),
    (*((256, 1, 1), (512, 3, 1)) * 4, (512, 1, 1), (1024, 3, 1)),
    (*((512, 1, 1), (1024, 3, 1)) * 2, (1024, 3, 1), (1024, 3, 2), (1024, 3, 1), (1024, 3, 1)),
)


class Cells(NamedTuple):
    """The outputs of the cells of a grid, [rows, columns, …], of a batch or of one image."""

    classes: Float[Array, "*b s s k"]  # probability of each class, if there is an object
    confidences: Float[Array, "*b s s n"]  # that there is one, times the IoU of the box with it
    boxes: Float[
        Array, "*b s s n 4"
    ]  # centre from the cell's corner in cells; roots of the shares of the image's sides


class YOLO(OneStage):
    """A detector of ``num_classes`` classes for square images of ``image_size`` pixels.

    stages: (channels, window, stride) of the convolutions. hidden: width of the first fully connected layer; 0 puts a
    1x1 convolution in place of both, as the paper's successors have it, and the last map must then be the grid.
    grid: cells along a side. per_cell: boxes of a cell. Features ``c1`` … are the last maps of each stride.
    lambda_coord, lambda_noobj: equation 3, which is the loss, a sum over cells and a mean over images.
    A score is a confidence times a class score, and as both are linear outputs it may leave [0, 1].
    axis_name: a ``pmap`` axis, for batch norm, dropout and losses.
    """

    stages: Stages = STAGES
    hidden: int = 4096
    grid: int = 7
    per_cell: int = 2
    image_size: int = 448
    num_classes: int = 20
    in_channels: int = 3
    batch_norm: bool = False
    dropout: float = 0.5
    lambda_coord: float = 5.0
    lambda_noobj: float = 0.5
    score_threshold: float = 1e-3
    nms_threshold: float = 0.5
    max_detections: int = 100
    min_size: float = 1e-2
    axis_name: str | None = None

    slope: ClassVar[float] = 0.1

    @property
    def init_size(self) -> int:
        return self.image_size

    @property
    def darknet_layers(self) -> tuple[tuple[str, str | None], ...]:
        """The layers in the order of a ``.weights`` file: (name, name of its batch norm)."""
        count = sum(map(len, self.stages))
        convs = ((f"conv{i}", f"bn{i}" if self.batch_norm else None) for i in range(1, count + 1))
        head = (("fc1", None), ("fc2", None)) if self.hidden else ((f"conv{count + 1}", None),)
        return (*convs, *head)

    def _losses(self, cells: Cells, targets: Targets) -> dict[str, Float[Array, ""]]:
        """The terms of equation 3."""
        terms = jax.vmap(partial(squared_errors, image_size=self.image_size))(cells, targets)
        scales = {"loss_box": self.lambda_coord, "loss_no_object": self.lambda_noobj}
        every = jnp.ones(len(cells.boxes))
        return {
            name: scales.get(name, 1) * losses.weighted_mean(term, every, axis_name=self.axis_name)
            for name, term in terms.items()
        }

    def _detections(self, cells: Cells, image_sizes: Float[Array, "b 2"]) -> Detections:
        return jax.vmap(self._choose)(cells, image_sizes)

    def features(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Features:
        """The last map of each stride by name."""
        return self._network(images, train=train)[1]

    def raw(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Cells:
        """What the network says of each cell, in float32 at least.

        Raises: ValueError for images of another size than ``image_size``, as all methods do.
        """
        return self._network(images, train=train)[0]

    @nn.compact
    def _network(self, images: Float[Array, "b h w c"], *, train: bool) -> tuple[Cells, Features]:
        if images.shape[1:3] != (self.image_size, self.image_size):
            raise ValueError(
                f"the fully connected layers take images of {self.image_size} x {self.image_size} pixels only, not "
                f"{images.shape[1]} x {images.shape[2]}: resize and pad them, or build the model with image_size=..."
            )
        x, features, number = images, {}, 0
        for index, stage in enumerate(self.stages):
            x = ops.max_pool(x, window=2, strides=2) if index else x
            for channels, window, strides in stage:
                number += 1
                init = dict(use_bias=not self.batch_norm, kernel_init=initializers.he_normal())
                x = Conv(channels, window, strides, padding=window // 2, **init, name=f"conv{number}")(x)
                if self.batch_norm:
                    x = BatchNorm(axis_name=self.axis_name, name=f"bn{number}")(x, train=train)
                x = nn.leaky_relu(x, self.slope)
                features[f"c{(self.image_size // x.shape[1]).bit_length() - 1}"] = x
        outputs = self.num_classes + 5 * self.per_cell
        if not self.hidden:
            if x.shape[1] != self.grid:
                raise ValueError(f"the last map has {x.shape[1]} x {x.shape[1]} cells: give grid={x.shape[1]}")
            x = Conv(outputs, 1, kernel_init=initializers.normal(0.01), name=f"conv{number + 1}")(x)
            return self._cells(x), features
        x = jnp.transpose(x, (0, 3, 1, 2)).reshape(len(x), -1)
        x = nn.leaky_relu(Dense(self.hidden, kernel_init=initializers.he_normal(), name="fc1")(x), self.slope)
        x = Dropout(self.dropout, self.axis_name)(x, train=train)
        x = Dense(self.grid**2 * outputs, kernel_init=initializers.normal(0.01), name="fc2")(x)
        return self._cells(x), features

    def _cells(self, outputs: Float[Array, "b o"] | Float[Array, "b s s o"]) -> Cells:
        """The outputs of the last layer sorted: the three parts one after the other, or so at each place of a map."""
        outputs = outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))
        grid = (len(outputs), self.grid, self.grid)
        cells = self.grid**2 if outputs.ndim == 2 else 1
        first, second = cells * self.num_classes, cells * (self.num_classes + self.per_cell)
        classes, confidences, found = jnp.split(outputs, (first, second), axis=-1)
        return Cells(classes.reshape(*grid, -1), confidences.reshape(*grid, -1), found.reshape(*grid, self.per_cell, 4))

    def _choose(self, cells: Cells, image_size: Float[Array, "2"]) -> Detections:
        """One image's detections: confidence times class score, NMS within each class."""
        found = self.image_size * boxes.cxcywh_to_xyxy(shares(cells.boxes)).reshape(-1, 4)
        scores = (cells.confidences[..., None] * cells.classes[..., None, :]).reshape(-1, self.num_classes)
        score, box, label = ops.best_scores(scores, threshold=self.score_threshold, count=scores.size)
        return ops.select(
            boxes.clip(found[box], image_size),
            score,
            label,
            iou_threshold=self.nms_threshold,
            max_detections=self.max_detections,
            min_size=self.min_size,
        )


def shares(cell_boxes: Float[Array, "s s n 4"]) -> Float[Array, "s s n 4"]:
    """Boxes of the cells as (centre x, centre y, width, height) in shares of the image's sides."""
    grid = cell_boxes.shape[0]
    row, column = jnp.meshgrid(jnp.arange(grid), jnp.arange(grid), indexing="ij")
    corner = jnp.stack([column, row], axis=-1).astype(cell_boxes.dtype)[:, :, None]
    return jnp.concatenate([(cell_boxes[..., :2] + corner) / grid, cell_boxes[..., 2:] ** 2], axis=-1)


def assign(
    cell_boxes: Float[Array, "s s n 4"], truth: Float[Array, "g 4"], valid: Bool[Array, " g"]
) -> tuple[Int[Array, "s s"], Bool[Array, "s s n"], Float[Array, "s s n"]]:
    """Which object each cell has, -1 for none; whether a box is responsible for it; and the box's IoU with it.

    truth: boxes in shares of the image's sides, (centre x, centre y, width, height). The cell that an object's centre
    lies in has it, the first one if there are several. Of a cell's boxes that with the highest IoU is responsible, or
    where none overlaps the object that with the smallest sum of squared differences. Nothing has a gradient.
    """
    grid = cell_boxes.shape[0]
    predicted, truth = jax.lax.stop_gradient((shares(cell_boxes), truth))
    column, row = (jnp.clip((truth[:, i] * grid).astype(jnp.int32), 0, grid - 1) for i in (0, 1))
    here = (row * grid + column)[:, None] == jnp.arange(grid**2)[None]
    here &= (jnp.asarray(valid) & jnp.all(truth[:, 2:] > 0, axis=1))[:, None]
    owner = jnp.where(jnp.any(here, axis=0), jnp.argmax(here, axis=0), -1).reshape(grid, grid)
    own = truth[owner][:, :, None]
    overlap = boxes.iou(boxes.cxcywh_to_xyxy(predicted), boxes.cxcywh_to_xyxy(jnp.broadcast_to(own, predicted.shape)))
    distance = jnp.sum((predicted - own) ** 2, axis=-1)
    best = jnp.where(jnp.any(overlap > 0, axis=-1), jnp.argmax(overlap, axis=-1), jnp.argmin(distance, axis=-1))
    responsible = jax.nn.one_hot(best, overlap.shape[-1], dtype=bool) & (owner >= 0)[..., None]
    return owner.astype(jnp.int32), responsible, overlap


def squared_errors(cells: Cells, targets: Targets, *, image_size: int) -> dict[str, Float[Array, ""]]:
    """The sums of equation 3 over one image's cells, without their factors lambda; at least one row of targets.

    ``loss_box``: of the responsible boxes; ``loss_object``: of their confidences, which should be the IoU;
    ``loss_no_object``: of all other confidences; ``loss_class``: of the cells with an object. Gradients: with respect
    to the cells, to boxes only from ``loss_box``; the IoU is a number to be learnt.
    """
    grid = cells.boxes.shape[0]
    truth = boxes.xyxy_to_cxcywh(targets.boxes) / image_size
    owner, responsible, overlap = assign(cells.boxes, truth, targets.valid)
    own = truth[owner]
    row, column = jnp.meshgrid(jnp.arange(grid), jnp.arange(grid), indexing="ij")
    centre = own[..., :2] * grid - jnp.stack([column, row], axis=-1)
    roots = jnp.sqrt(jnp.where(own[..., 2:] > 0, own[..., 2:], 1))  # without an object there may be no root
    wanted = jnp.concatenate([centre, roots], axis=-1)[:, :, None]
    label = jax.nn.one_hot(jnp.asarray(targets.labels)[owner], cells.classes.shape[-1], dtype=cells.classes.dtype)
    error = jnp.sum((cells.boxes - wanted) ** 2, axis=-1)
    return {
        "loss_box": jnp.sum(jnp.where(responsible, error, 0)),
        "loss_object": jnp.sum(jnp.where(responsible, (cells.confidences - overlap) ** 2, 0)),
        "loss_no_object": jnp.sum(jnp.where(responsible, 0, cells.confidences**2)),
        "loss_class": jnp.sum(jnp.where((owner >= 0)[..., None], (cells.classes - label) ** 2, 0)),
    }


@register(task="detection")
def yolo_v1(**options) -> YOLO:
    """The paper's network: 24 convolutions, 7 x 7 cells of 2 boxes, 271,703,550 parameters at VOC's 20 classes."""
    return YOLO(**options)


@register(task="detection")
def yolo_small(*, num_classes: int = 10, **options) -> YOLO:
    """A YOLO v1 that trains from scratch on two CPU cores in minutes, on 128-pixel images: 16 x 16 cells, batch
    norm."""
    stages: Stages = (
        ((32, 3, 2),),
        ((64, 3, 1), (64, 3, 1)),
        ((128, 3, 1), (64, 1, 1), (128, 3, 1), (64, 1, 1), (128, 3, 1)),
    )
    defaults = dict(stages=stages, hidden=0, grid=16, image_size=128, batch_norm=True, max_detections=20)
    return YOLO(num_classes=num_classes, **(defaults | options))
