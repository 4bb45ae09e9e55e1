"""Which part of the image a unit of a feature map sees: all that it can depend on, and what it does depend on.

``receptive_field`` is exact and computes nothing: it follows, through the jaxpr of a function, which rows and
columns of the image each array element can depend on. ``effective_receptive_field`` measures by gradient.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvision.typing import Array, Float

__all__ = ["ReceptiveField", "effective_receptive_field", "receptive_field"]


class ReceptiveField(NamedTuple):
    """Of one feature map, each (vertical, horizontal) in pixels of the image: a unit far from the border sees ``size``
    pixels, its neighbour sees the same ``stride`` pixels further, and ``centre`` is where the field of unit 0 would
    have its centre if nothing cut it off (pixel ``i`` has its centre at ``i + 0.5``)."""

    size: tuple[int, int]
    stride: tuple[float, float]
    centre: tuple[float, float]


def receptive_field(
    function: Callable[[jax.Array], Mapping[str, jax.Array]], image_shape: tuple[int, int, int, int]
) -> dict[str, ReceptiveField]:
    """The receptive field of each feature map that ``function`` makes of images of shape [b, h, w, c].

    function: from images to named maps [b, h, w, c], of any structure; it is traced, not run. A model without weights
    is ``lambda images: model.init_with_output(jax.random.key(0), images)[0][1]``.
    A unit's field is the smallest rectangle with every pixel that some path leads from, whatever the weights; the
    channels of a map count together. Where the fields of neighbours differ (after enlarging), the largest counts.
    A map whose units all see the same (a mean over the image) has stride 0.
    Raises: ValueError if the image is so small that the units of some map all see past its borders (4608 pixels do for
    every classifier here), NotImplementedError for an operation on images that it has no rule for.
    """
    images = jax.ShapeDtypeStruct(image_shape, jnp.float32)
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(images)
    for name, shape in shapes.items():
        if len(shape.shape) != 4:
            raise ValueError(f"{name!r} has shape {shape.shape}; receptive fields are of maps [b, h, w, c]")
    both = []
    for axis in (1, 2):
        seen = _pixels(image_shape, axis)
        maps = _run(traced.jaxpr, traced.consts, [seen])
        names = sorted(shapes)  # as pytrees order a dict
        both.append({name: _summary(name, seen, axis, image_shape[axis]) for name, seen in zip(names, maps)})
    return {name: ReceptiveField(*zip(both[0][name], both[1][name])) for name in shapes}


def effective_receptive_field(
    function: Callable[[jax.Array], jax.Array], images: Float[Array, "b h w c"]
) -> Float[Array, "h w"]:
    """How much each pixel moves the middle unit of a feature map (Luo et al., arXiv:1701.04128, section 3).

    function: from images to one map [b, h, w, c]. The result is the absolute gradient of the unit at
    ``(h // 2, w // 2)``, summed over its channels, with respect to the pixels: the mean over images and colours. Zero
    outside the receptive field; inside, the paper finds a Gaussian far smaller than it.
    Gradients: to images, almost everywhere (those of the absolute value of a gradient).
    """

    def middle(images):
        units = function(images)
        return units[:, units.shape[1] // 2, units.shape[2] // 2].sum()

    return jnp.abs(jax.grad(middle)(jnp.asarray(images))).mean((0, 3))


# What an array's elements see along one direction of the image is an integer array with one axis more in front: the
# first pixel, minus the last pixel, and 0 if padding is seen too, else 1. So the union of two fields is their minimum.
# Its other axes are the array's own, with length 1 where elements do not differ. None: no element sees the image.
_FAR = 2**30
_NOTHING = (_FAR, _FAR, 1)
_PADDING = (_FAR, _FAR, 0)


class _Known(NamedTuple):
    """An array of numbers that does not depend on the image: where it is zero, a product does not pass anything on."""

    values: Any


def _pixels(shape, axis):
    own = np.arange(shape[axis], dtype=np.int32)
    seen = np.stack([own, -own, np.ones_like(own)])
    return seen.reshape(3, *(shape[axis] if a == axis else 1 for a in range(len(shape))))


def _summary(name, seen, axis, side):
    """(size, stride, centre of unit 0) along one direction."""
    if seen is None:
        raise ValueError(f"{name!r} does not depend on the image")
    others = tuple(a for a in range(1, seen.ndim) if a != axis + 1)
    first, last, free = seen.min(others) * np.array([[1], [-1], [1]])
    if len(first) == 1:
        return int(last[0] - first[0] + 1), 0.0, (first[0] + last[0] + 1) / 2
    inside = np.flatnonzero(free)
    inside = inside[len(inside) // 4 : max(len(inside) - len(inside) // 4, 2)]
    for period in range(1, len(inside) // 2 + 1):  # more than 1 where a map was enlarged
        steps = [bound[inside[period:]] - bound[inside[:-period]] for bound in (first, last)]
        if np.ptp(steps) == 0:
            stride = float(steps[0][0] / period)
            units = inside[:period]
            centres = (first + last + 1)[units] / 2 - stride * units
            return int((last - first + 1)[units].max()), stride, float(centres.mean())
    raise ValueError(
        f"no two neighbouring units of {name!r} see an image of {side} pixels free of its borders: pass a larger one"
    )


def _run(jaxpr, consts, inputs):
    """What each output of a jaxpr sees, given what its inputs see."""
    seen = dict(zip(jaxpr.constvars, map(_Known, consts))) | dict(zip(jaxpr.invars, inputs))
    for equation in jaxpr.eqns:
        values = [seen.get(v) if isinstance(v, jax.extend.core.Var) else None for v in equation.invars]
        if any(isinstance(value, np.ndarray) for value in values):
            outputs = _apply(equation, values)
        else:
            outputs = [None] * len(equation.outvars)
        seen |= dict(zip(equation.outvars, outputs, strict=True))
    return [seen.get(v) if isinstance(v, jax.extend.core.Var) else None for v in jaxpr.outvars]


def _apply(equation, values):
    name, params = equation.primitive.name, equation.params
    if name == "cond" and not isinstance(values[0], np.ndarray):
        branches, platforms = params["branches"], params.get("branches_platforms") or ()
        if None in platforms:  # formulations of the same for several platforms: the general one
            branches = [branches[platforms.index(None)]]
        results = [_run(branch.jaxpr, branch.consts, values[1:]) for branch in branches]
        return [_union(alternatives) for alternatives in zip(*results)]
    if name in _CALLS:
        inner = params.get("jaxpr") or params["call_jaxpr"]
        if isinstance(inner, jax.extend.core.ClosedJaxpr):
            return _run(inner.jaxpr, inner.consts, values)
        return _run(inner, (), values)
    if name == "dot_general":
        return [_dot_general(equation, *values)]
    values = [value if isinstance(value, np.ndarray) else None for value in values]
    if name in _ELEMENTWISE:
        return [_union(values)]
    if name in _REDUCTIONS:
        return [_union(values).min(tuple(axis + 1 for axis in params["axes"]))]
    if name not in _RULES:
        raise NotImplementedError(f"receptive_field has no rule for {name!r}: {equation}")
    outputs = _RULES[name](equation, *values)
    return outputs if isinstance(outputs, list) else [outputs]


def _union(values):
    """Of arrays of one shape, or scalars."""
    values = [value for value in values if isinstance(value, np.ndarray)]
    rank = max((value.ndim for value in values), default=0)
    values = [value.reshape(3, *(1,) * (rank - 1)) if value.ndim == 1 else value for value in values]
    return functools.reduce(np.minimum, values) if values else None


def _shape(equation, which=0):
    return equation.invars[which].aval.shape


def _broadcast_in_dim(equation, x, *_):
    lengths = [1] * len(equation.params["shape"])
    for axis, length in zip(equation.params["broadcast_dimensions"], x.shape[1:]):
        lengths[axis] = length
    return x.reshape(3, *lengths)


def _reshape(equation, x):
    """Axes are split and joined in groups of equal product; a group without differences stays without."""
    old, new = _shape(equation), equation.params["new_sizes"]
    old_ends, new_ends = (np.cumprod(sizes, dtype=int).tolist() for sizes in (old, new))
    before, after = [1] * len(old), [1] * len(new)
    start = 0
    for end in sorted({1, *old_ends} & {1, *new_ends}):
        group = [axis for axis, at in enumerate(old_ends) if start < at <= end]
        if any(x.shape[axis + 1] > 1 for axis in group):
            for sizes, ends, full in ((before, old_ends, old), (after, new_ends, new)):
                sizes[:] = [full[axis] if start < at <= end else sizes[axis] for axis, at in enumerate(ends)]
        start = end
    x = np.broadcast_to(x, (3, *before)).reshape(3, *after)
    for axis in range(1, x.ndim):  # the inverse of a join is found again
        same = x[(slice(None),) * axis + (slice(0, 1),)]
        x = same if (x == same).all() else x
    return x


def _transpose(equation, x):
    return x.transpose(0, *(axis + 1 for axis in equation.params["permutation"]))


def _squeeze(equation, x):
    return x.squeeze(tuple(axis + 1 for axis in equation.params["dimensions"]))


def _rev(equation, x):
    return np.flip(x, [axis + 1 for axis in equation.params["dimensions"]])


def _slice(equation, x):
    params = equation.params
    strides = params["strides"] or (1,) * (x.ndim - 1)
    cuts = zip(params["start_indices"], params["limit_indices"], strides, x.shape[1:])
    return x[(slice(None), *(slice(*cut) if length > 1 else slice(None) for *cut, length in cuts))]


def _split(equation, x):
    sizes, axis = equation.params["sizes"], equation.params["axis"] + 1
    return np.split(x, np.cumsum(sizes)[:-1], axis) if x.shape[axis] > 1 else [x] * len(sizes)


def _concatenate(equation, *parts):
    axis = equation.params["dimension"]
    if all(part is None or part.shape[axis + 1] == 1 for part in parts):  # channels, which count together
        return _union(parts)
    rank = len(_shape(equation))
    parts = [_filled(_PADDING, rank) if part is None else part for part in parts]
    lengths = list(np.broadcast_shapes(*(part.take([0], axis + 1).shape for part in parts)))
    whole = []
    for which, part in enumerate(parts):
        lengths[axis + 1] = _shape(equation, which)[axis]
        whole.append(np.broadcast_to(part, lengths))
    return np.concatenate(whole, axis + 1)


def _stack(equation, *parts):
    return np.expand_dims(_union(parts), equation.params["axis"] + 1)


def _pad(equation, x, value):
    x = _filled(_PADDING, len(_shape(equation))) if x is None else x
    for axis, (low, high, gap) in enumerate(equation.params["padding_config"]):
        x = _widen(x, axis, low, high, gap)
    return x if value is None else np.minimum(x, value.reshape(3, *(1,) * (x.ndim - 1)))


def _filled(what, rank):
    return np.array(what, np.int32).reshape(3, *(1,) * rank)


def _widen(x, axis, low, high, gap):
    """Pad one axis, or crop it where ``low`` and ``high`` are negative, with ``gap`` cells between neighbours."""
    x = np.moveaxis(x, axis + 1, 1)
    length = x.shape[1]
    if length > 1:
        wide = np.empty((3, max(low, 0) + length + (length - 1) * gap + max(high, 0), *x.shape[2:]), np.int32)
        wide[:] = _filled(_PADDING, x.ndim - 1)
        inner = wide[:, max(low, 0) : wide.shape[1] - max(high, 0)]
        inner[:] = _filled(_NOTHING, x.ndim - 1)
        inner[:, :: gap + 1] = x
        x = wide[:, max(-low, 0) : wide.shape[1] - max(-high, 0)]
    return np.moveaxis(x, 1, axis + 1)


def _windows(x, axis, *, window, stride, dilation, padding, gap):
    """What windows along one axis see together."""
    if x.shape[axis + 1] == 1:
        return x
    x = np.moveaxis(_widen(x, axis, *padding, gap), axis + 1, 1)
    count = (x.shape[1] - dilation * (window - 1) - 1) // stride + 1
    starts = (dilation * tap for tap in range(window))
    taps = [x[:, start : start + (count - 1) * stride + 1 : stride] for start in starts]
    return np.moveaxis(functools.reduce(np.minimum, taps), 1, axis + 1)


def _conv_general_dilated(equation, x, kernel):
    params = equation.params
    if x is None or kernel is not None or params["batch_group_count"] != 1:
        raise NotImplementedError("receptive_field has no rule for convolutions with a kernel made of the image")
    lhs, rhs, out = params["dimension_numbers"]
    if x.shape[lhs[1] + 1] > 1:
        raise NotImplementedError("receptive_field has no rule for a convolution with an image axis as its channels")
    for i, axis in enumerate(lhs[2:]):
        x = _windows(
            x,
            axis,
            window=_shape(equation, 1)[rhs[2 + i]],
            stride=params["window_strides"][i],
            dilation=params["rhs_dilation"][i],
            padding=params["padding"][i],
            gap=params["lhs_dilation"][i] - 1,
        )
    return np.moveaxis(x, [axis + 1 for axis in lhs], [axis + 1 for axis in out])


def _reduce_window(equation, x, *_):
    params = equation.params
    for axis in range(x.ndim - 1):
        x = _windows(
            x,
            axis,
            window=params["window_dimensions"][axis],
            stride=params["window_strides"][axis],
            dilation=params["window_dilation"][axis],
            padding=params["padding"][axis],
            gap=params["base_dilation"][axis] - 1,
        )
    return x


def _dot_general(equation, *operands):
    contracted, batch = equation.params["dimension_numbers"]
    ranks = [len(_shape(equation, which)) for which in range(2)]
    free = [[a for a in range(rank) if a not in (*c, *b)] for rank, c, b in zip(ranks, contracted, batch)]
    parts = []
    for which, (x, other) in enumerate(zip(operands, operands[::-1])):
        if not isinstance(x, np.ndarray):
            continue
        if isinstance(other, _Known) and ranks[1 - which] == 2 and len(contracted[which]) == 1:
            passes = np.moveaxis(np.asarray(other.values) != 0, contracted[1 - which][0], 1)
            x = _times_matrix(np.moveaxis(x, contracted[which][0] + 1, 1), passes)
            return np.moveaxis(x, 1, -1) if which == 0 else x
        x = x.min(tuple(axis + 1 for axis in contracted[which]), keepdims=True)
        x = x.transpose(0, *(axis + 1 for axis in (*batch[which], *free[which], *contracted[which])))
        shared, own = np.split(x.shape[1 : x.ndim - len(contracted[which])], [len(batch[which])])
        others = [1] * len(free[1 - which])
        parts.append(x.reshape(3, *shared, *((*own, *others) if which == 0 else (*others, *own))))
    return _union(parts)


def _times_matrix(x, passes):
    """Along axis 1: output i sees what the inputs j with ``passes[i, j]`` see. So with the weights of a resize."""
    if x.shape[1] == 1:
        return x
    nothing = _filled(_NOTHING, x.ndim - 2)
    return np.stack([x[:, row].min(1) if row.any() else nothing + 0 * x[:, 0] for row in passes], 1)


def _along(name):
    """Elements see whatever any of them saw along an axis."""

    def rule(equation, *values):
        x = _union(values).min(equation.params[name] + 1, keepdims=True)
        return [x] * len(equation.outvars)

    return rule


_CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "custom_jvp_call", "custom_vjp_call"}
# fmt: off
_ELEMENTWISE = {
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil",
    "clamp", "convert_element_type", "copy", "copy_p", "cos", "cosh", "div", "eq", "erf", "erf_inv", "erfc", "exp",
    "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "lgamma", "log", "log1p", "logistic",
    "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not", "or", "pow", "reduce_precision", "rem", "round",
    "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt", "square", "sub", "tan", "tanh", "xor",
}
# fmt: on
_REDUCTIONS = {"argmax", "argmin", *(f"reduce_{name}" for name in ("and", "max", "min", "or", "prod", "sum"))}
_RULES: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "conv_general_dilated": _conv_general_dilated,
    "cummax": _along("axis"),
    "cumsum": _along("axis"),
    "pad": _pad,
    "reduce_window_max": _reduce_window,
    "reduce_window_min": _reduce_window,
    "reduce_window_sum": _reduce_window,
    "reshape": _reshape,
    "rev": _rev,
    "slice": _slice,
    "sort": _along("dimension"),
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "transpose": _transpose,
}
