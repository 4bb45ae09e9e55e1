"""GridNet: Residual Conv-Deconv Grid Network for Semantic Segmentation (Fourure et al., arXiv:1707.07958), section 3.

Streams keep their resolution from left to right, and each has half the resolution of the one above; columns connect
them, first all that lead down, then all that lead up. Details from the authors' release (Lua): batch norm on the images
and on the logits, biases everywhere, transposed convolutions in every residual branch from the second up column on.
Its training script gives the fourth stream 126 maps, a slip for 128. Deviation: kernels start after He (fan-out),
not at Torch's uniform default. Parameter counts: computed from the release's layers.
"""

from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxvision.layers.convolution import Conv, ConvTranspose
from jaxvision.layers.norm import BatchNorm
from jaxvision.layers.segmenter import BehindStem, Segmenter, behind_stem
from jaxvision.registry import register
from jaxvision.typing import Array, Float, Segmented


class Connection(NamedTuple):
    """What leads into the node (stream, column), both counted from 1, the finest stream and the leftmost column:
    "identity" and "residual" (its learned branch) from the column before, "down" from the stream above in the same
    column, "up" from the stream below."""

    kind: Literal["identity", "residual", "down", "up"]
    stream: int
    column: int

    @property
    def node(self) -> tuple[int, int]:
        """The (stream, column) where it ends."""
        return self.stream, self.column

    @property
    def source(self) -> tuple[int, int]:
        """The (stream, column) where it starts."""
        above = {"down": 1, "up": -1}.get(self.kind, 0)
        return self.stream - above, self.column - (above == 0)


def full_grid(streams: int, down: int, up: int) -> tuple[Connection, ...]:
    """All connections of a grid, in the order of computation. Figure 1 of the paper."""
    grid = []
    for column in range(1, down + up + 1):
        leads_down = column <= down
        for stream in range(1, streams + 1) if leads_down else range(streams, 0, -1):
            if column > 1:
                grid += [Connection("identity", stream, column), Connection("residual", stream, column)]
            if stream > 1 and leads_down:
                grid.append(Connection("down", stream, column))
            if stream < streams and not leads_down:
                grid.append(Connection("up", stream, column))
    return tuple(grid)


class TotalDropout(nn.Module):
    """With ``train`` the whole batch becomes zero with probability ``rate`` (section 3.2); nothing is rescaled, neither
    then nor in inference. One draw from the stream "sample", the same on all devices."""

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w c"]:
        if not train or self.rate == 0:
            return x
        return jnp.where(jax.random.bernoulli(self.make_rng("sample"), 1 - self.rate), x, 0)


class Branch(nn.Module):
    """Twice batch norm, ReLU and a 3x3 convolution, or a transposed one; the first has the stride (section 3.1)."""

    width: int
    strides: int = 1
    transposed: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], *, train: bool = False) -> Float[Array, "b oh ow o"]:
        for index, strides in enumerate((self.strides, 1), start=1):
            x = nn.relu(BatchNorm(axis_name=self.axis_name, name=f"norm{index}")(x, train=train))
            x = _conv3x3(self.width, strides, self.transposed, f"conv{index}")(x)
        return x


class GridNet(Segmenter):
    """``widths``: channels of the streams, finest first. ``down`` columns lead down, at least one, and ``up`` columns
    up.

    drop_rate: of each residual branch, see ``TotalDropout``.
    connections: which of ``full_grid`` there are, all if None. With few of them the grid is another network: without
    the horizontal ones above the last stream a conv-deconv network, with them a U-Net whose skips are sums, with one
    stream a residual network at full resolution. A node is the sum of what leads to it. What lies on no path from the
    images to the logits is left out, and has no parameters.
    Images of any size: where the coarsest stream would have a fraction of a cell, they are mirrored at the right and
    the bottom, and the logits cropped. Features ``n1_1``, …: the nodes by stream and column, of the mirrored image.

    Raises: ValueError if a connection is not one of the full grid, or no path leads from the images to the logits.
    """

    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    down: int = 3
    up: int = 3
    drop_rate: float = 0.1
    connections: tuple[Connection, ...] | None = None

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Segmented:
        height, width = images.shape[1:3]
        cell = 2 ** (len(self.widths) - 1)
        x = jnp.pad(images, ((0, 0), (0, -height % cell), (0, -width % cell), (0, 0)), mode="reflect")
        x = self._norm("norm", train)(x)
        for index in (1, 2):
            x = _conv3x3(self.widths[0], 1, False, f"first_conv{index}", parent=self)(x)
            x = nn.relu(self._norm(f"first_norm{index}", train)(x))
        nodes = {(1, 1): x}
        for connection in self.used_connections():
            value = nodes[connection.source]
            if connection.kind != "identity":
                value = self._branch(connection)(value, train=train)
            if connection.kind == "residual":
                value = TotalDropout(self.drop_rate)(value, train=train)
            # A sum even of one: folding takes a norm that reads a convolution's own output for its only reader.
            nodes[connection.node] = nodes.get(connection.node, 0) + value
        x = nodes[1, self.down + self.up]
        x = nn.relu(self._norm("last_norm1", train)(_conv3x3(self.num_classes, 1, True, "last_conv1", parent=self)(x)))
        x = self._norm("last_norm2", train)(_conv3x3(self.num_classes, 1, True, "last_conv2", parent=self)(x))
        features = {f"n{stream}_{column}": node for (stream, column), node in nodes.items()}
        return x[:, :height, :width], features

    @nn.nowrap
    def used_connections(self) -> tuple[Connection, ...]:
        """Those on a path from the images to the logits, in the order of computation."""
        grid = full_grid(len(self.widths), self.down, self.up)
        wanted = set(grid if self.connections is None else self.connections)
        if wanted - set(grid):
            raise ValueError(f"the full grid has no {sorted(wanted - set(grid))}")
        reached, ahead = {(1, 1)}, []
        for connection in grid:
            if connection in wanted and connection.source in reached:
                reached.add(connection.node)
                ahead.append(connection)
        needed, used = {(1, self.down + self.up)}, []
        for connection in reversed(ahead):
            if connection.node in needed:
                needed.add(connection.source)
                used.append(connection)
        if (1, 1) not in needed:
            raise ValueError(f"no path leads from the images to the logits by {self.connections}")
        return tuple(used[::-1])

    @nn.nowrap
    def _branch(self, connection: Connection) -> Branch:
        kind, stream, column = connection
        return Branch(
            self.widths[stream - 1],
            strides=1 if kind == "residual" else 2,
            transposed=kind == "up" or (kind == "residual" and column > self.down + 1),
            axis_name=self.axis_name,
            name=f"{kind}_{stream}_{column}",
            parent=self,
        )

    @nn.nowrap
    def _norm(self, name, train):
        norm = BatchNorm(axis_name=self.axis_name, name=name, parent=self)
        return lambda x: norm(x, train=train)


def _conv3x3(width, strides, transposed, name, **parent):
    """Padded so that it keeps the size, or halves or doubles it."""
    if transposed:
        return ConvTranspose(width, 3, strides, padding=1, output_padding=strides - 1, name=name, **parent)
    return Conv(width, 3, strides, padding=1, name=name, **parent)


@register(task="segmentation")
def gridnet(*, num_classes: int = 19, **options) -> GridNet:
    """The paper's grid of five streams and three plus three columns, for Cityscapes: 13,181,097 parameters at 19
    classes, 13,189,749 at 33."""
    return GridNet(num_classes=num_classes, **options)


@register(task="segmentation")
def gridnet_small(*, num_classes: int = 21, **options) -> BehindStem:
    """A grid of three streams for images of 128 pixels on CPUs, at a quarter of their size."""
    defaults = {"widths": (32, 48, 64), "down": 2, "up": 2}
    return behind_stem(GridNet(num_classes=num_classes, **(defaults | options)), (16, 32))
