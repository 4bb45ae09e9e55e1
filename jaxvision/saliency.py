"""Why a detector found what it found, or a segmenter took pixels for a class: the gradient of one score, through the
real pipeline, to the pixels of the image.

The boxes' own gradients need no function: they are ``jax.grad`` of ``model.apply(..., method="detect").boxes``.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxvision import ops
from jaxvision.typing import Array, Detections, Float, Key, Regions, Segment, Variables

__all__ = ["explain", "score_of"]


def explain(
    model: nn.Module,
    variables: Variables,
    image: Float[Array, "h w c"],
    what: Detections | Segment,
    *,
    method: str = "gradient",
    regions: Regions | None = None,
    key: Key[Array, ""] | None = None,
    samples: int = 16,
    noise: float = 0.1,
) -> Float[Array, "h w"]:
    """How much each pixel matters for the score of a detection, or of a class in a part of the image; at least 0, and 1
    at most.

    image: normalised, as the model takes it. what: one row of what a detector found in it, such as
    ``jax.tree.map(lambda leaf: leaf[0, i], found)``; or, for a segmenter, a ``Segment``, such as
    ``Segment(label, found.labels[0] == label)``, whose score is the mean of its class's logits over its pixels.
    regions: of this image (boxes [n, 4]), for a detector that is given them.
    gradient: the length of the score's gradient at each pixel (arXiv:1312.6034). smoothgrad: that of the mean gradient
    over ``samples`` images with Gaussian noise, of ``noise`` times the image's range (arXiv:1706.03825); takes ``key``.
    gradcam: the model's feature maps, each channel weighted by its mean gradient, positive parts, enlarged to the image
    and averaged over the maps that the score depends on (arXiv:1610.02391); of segmenters, those of the backbone.
    Raises: ValueError for an unknown method, smoothgrad without a key, or gradcam of a segmenter without a backbone.
    """
    if method == "gradient":
        importance = jnp.linalg.norm(jax.grad(score_of, 2)(model, variables, image, what, regions), axis=-1)
    elif method == "smoothgrad":
        if key is None:
            raise ValueError("smoothgrad adds noise: give it a key, such as jax.random.key(0)")
        noisy = noise * (image.max() - image.min()) * jax.random.normal(key, (samples, *image.shape), image.dtype)
        gradient = jax.grad(lambda image: score_of(model, variables, image, what, regions))
        gradients = lax.map(lambda eps: gradient(image + eps), noisy)
        importance = jnp.linalg.norm(gradients.mean(0), axis=-1)
    elif method == "gradcam":
        importance = _grad_cam(model, variables, image, what, regions)
    else:
        raise ValueError(f"method={method!r}; there are 'gradient', 'smoothgrad' and 'gradcam'")
    return importance / jnp.maximum(importance.max(), jnp.finfo(importance.dtype).tiny)


def score_of(
    model: nn.Module,
    variables: Variables,
    image: Float[Array, "h w c"],
    what: Detections | Segment,
    regions: Regions | None = None,
) -> Float[Array, ""]:
    """The score that the model gives this detection in a changed image: that of the one of its class which overlaps it
    most, or 0 if none does; or the mean logit of the segment's class over its pixels. Differentiable with respect to
    image and variables."""
    if isinstance(what, Segment):
        return _mean_logit(model.apply(variables, image[None])[0], what)
    return _score(model.apply(variables, image[None], **_batched(regions), method="detect"), what)


def _mean_logit(logits: Float[Array, "1 h w k"], segment: Segment) -> Float[Array, ""]:
    weights = segment.mask.astype(logits.dtype)
    return jnp.sum(logits[0, :, :, segment.label] * weights) / jnp.maximum(jnp.sum(weights), 1)


def _batched(regions: Regions | None) -> dict[str, Regions]:
    return {} if regions is None else {"regions": jax.tree.map(lambda leaf: leaf[None], regions)}


def _score(found: Detections, detection: Detections) -> Float[Array, ""]:
    overlap = jax.vmap(ops.boxes.iou, (0, None))(found.boxes[0], detection.boxes)
    overlap = jnp.where(found.valid[0] & (found.labels[0] == detection.labels), lax.stop_gradient(overlap), 0)
    best = jnp.argmax(overlap)
    return jnp.where(overlap[best] > 0, found.scores[0, best], 0)


def _grad_cam(model, variables, image, what, regions):
    segments = isinstance(what, Segment)
    if segments and not hasattr(model, "backbone"):
        raise ValueError(
            f"gradcam weights the maps of a backbone, and {type(model).__name__} has none; take 'gradient'"
        )
    place, name_of_method = (("backbone",), "__call__") if segments else ((), "features")

    def maps_plus(offsets):
        """An interceptor of what makes the maps that adds to them, so that there is something to derive by."""

        def add(call, args, kwargs, context):
            made = call(*args, **kwargs)
            if context.method_name != name_of_method or context.module.path != place:
                return made
            *outputs, features = made if segments else (made,)
            features = {name: x + offsets[name] if name in offsets else x for name, x in features.items()}
            return (*outputs, features) if segments else features

        return nn.intercept_methods(add)

    def score(offsets):
        with maps_plus(offsets):
            found, features = model.apply(variables, image[None], **_batched(regions))
        return _mean_logit(found, what) if segments else _score(found, what), features

    shapes = jax.eval_shape(lambda: model.apply(variables, image[None], **_batched(regions))[1])
    if segments:
        shapes = {name: shapes[name] for name in model.backbone.feature_names}
    zeros = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
    gradients, features = jax.grad(score, has_aux=True)(zeros)
    cams = [_cam(features[name][0], gradients[name][0], image.shape[:2]) for name in zeros]
    weights = jnp.stack([cam.max() > 0 for cam in cams])
    return jnp.sum(jnp.stack(cams), axis=0) / jnp.maximum(jnp.sum(weights), 1)


def _cam(feature: Float[Array, "h w c"], gradient: Float[Array, "h w c"], size: tuple[int, int]):
    """One map's part, at most 1."""
    cam = nn.relu(jnp.einsum("hwc,c->hw", feature, gradient.mean((0, 1))))
    cam = ops.resize(cam[:, :, None], size=size)[:, :, 0]
    return cam / jnp.maximum(cam.max(), jnp.finfo(cam.dtype).tiny)
