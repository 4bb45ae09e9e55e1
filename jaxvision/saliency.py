"""Why a detector found what it found: the gradient of one detection's score, through the real pipeline, to the pixels.

The boxes' own gradients need no function: they are ``jax.grad`` of ``model.apply(..., method="detect").boxes``.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxvision import ops
from jaxvision.typing import Array, Detections, Float, Key, Regions, Variables

__all__ = ["explain", "score_of"]


def explain(
    model: nn.Module,
    variables: Variables,
    image: Float[Array, "h w c"],
    detection: Detections,
    *,
    method: str = "gradient",
    regions: Regions | None = None,
    key: Key[Array, ""] | None = None,
    samples: int = 16,
    noise: float = 0.1,
) -> Float[Array, "h w"]:
    """How much each pixel matters for the score of a detection; at least 0, and 1 at most.

    image: normalised, as the model takes it. detection: one row of what the model found in it, such as
    ``jax.tree.map(lambda leaf: leaf[0, i], found)``. regions: of this image (boxes [n, 4]), for a detector that is
    given them.
    gradient: the length of the score's gradient at each pixel (arXiv:1312.6034). smoothgrad: that of the mean gradient
    over ``samples`` images with Gaussian noise, of ``noise`` times the image's range (arXiv:1706.03825); takes ``key``.
    gradcam: the model's feature maps, each channel weighted by its mean gradient, positive parts, enlarged to the image
    and averaged over the maps that the score depends on (arXiv:1610.02391).
    Raises: ValueError for an unknown method, or smoothgrad without a key.
    """
    if method == "gradient":
        importance = jnp.linalg.norm(jax.grad(score_of, 2)(model, variables, image, detection, regions), axis=-1)
    elif method == "smoothgrad":
        if key is None:
            raise ValueError("smoothgrad adds noise: give it a key, such as jax.random.key(0)")
        noisy = noise * (image.max() - image.min()) * jax.random.normal(key, (samples, *image.shape), image.dtype)
        gradient = jax.grad(lambda image: score_of(model, variables, image, detection, regions))
        gradients = lax.map(lambda eps: gradient(image + eps), noisy)
        importance = jnp.linalg.norm(gradients.mean(0), axis=-1)
    elif method == "gradcam":
        importance = _grad_cam(model, variables, image, detection, regions)
    else:
        raise ValueError(f"method={method!r}; there are 'gradient', 'smoothgrad' and 'gradcam'")
    return importance / jnp.maximum(importance.max(), jnp.finfo(importance.dtype).tiny)


def score_of(
    model: nn.Module,
    variables: Variables,
    image: Float[Array, "h w c"],
    detection: Detections,
    regions: Regions | None = None,
) -> Float[Array, ""]:
    """The score that the model gives this detection in a changed image: that of the one of its class which overlaps it
    most, or 0 if none does. Differentiable with respect to image and variables."""
    return _score(model.apply(variables, image[None], **_batched(regions), method="detect"), detection)


def _batched(regions: Regions | None) -> dict[str, Regions]:
    return {} if regions is None else {"regions": jax.tree.map(lambda leaf: leaf[None], regions)}


def _score(found: Detections, detection: Detections) -> Float[Array, ""]:
    overlap = jax.vmap(ops.boxes.iou, (0, None))(found.boxes[0], detection.boxes)
    overlap = jnp.where(found.valid[0] & (found.labels[0] == detection.labels), lax.stop_gradient(overlap), 0)
    best = jnp.argmax(overlap)
    return jnp.where(overlap[best] > 0, found.scores[0, best], 0)


def _grad_cam(model, variables, image, detection, regions):
    def maps_plus(offsets):
        """An interceptor of the model's ``features`` that adds to the maps, so that there is something to derive by."""

        def add(call, args, kwargs, context):
            features = call(*args, **kwargs)
            if context.method_name != "features" or context.module.path != ():
                return features
            return {name: x + offsets[name] if name in offsets else x for name, x in features.items()}

        return nn.intercept_methods(add)

    def score(offsets):
        with maps_plus(offsets):
            found, features = model.apply(variables, image[None], **_batched(regions))
        return _score(found, detection), features

    shapes = jax.eval_shape(lambda: model.apply(variables, image[None], **_batched(regions))[1])
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
