"""Mask losses from masks on their boxes and from planes of the whole image are the same loss."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxvision import data, get_model
from tests.train.test_detector import CLASSES, SIZE, Blocks


def test_masks_on_boxes_give_the_loss_of_planes():
    """At the default side to a thousandth, cropped images included."""
    model = get_model("maskrcnn_small", num_classes=CLASSES, regions=16)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *SIZE, 3)))
    # Masks that a trained network might give: the untrained one says 1/2 everywhere, which no target changes.
    head = variables["params"]["mask_head"]["mask_fcn_logits"]
    variables["params"]["mask_head"]["mask_fcn_logits"] = jax.tree.map(lambda leaf: 20 * leaf + 0.1, head)

    @jax.jit
    def loss(batch):
        images = batch["images"] / 128 - 1
        inputs = (variables, images, batch["targets"], batch["image_sizes"])
        return model.apply(*inputs, method="loss", rngs={"sample": jax.random.key(1)})[1]["loss_mask"]

    def of_side(side):
        rows = data.DetectionRows(max_objects=4, mask_side=side)
        crop = (lambda key, example: data.random_crop(key, example, size=(48, 50)),)
        stream = data.batches(Blocks(8), rows, batch_size=8, shapes=(SIZE,), transforms=crop, seed=2)
        return float(loss(next(stream)))

    planes = of_side(None)
    assert planes > 0.7  # unlike log 2
    np.testing.assert_allclose(of_side(112), planes, rtol=1e-3)
