"""AlexNet's two towers on two devices, as in 2012: ``python experiments/alexnet_two_towers.py``.

Each device holds half of every layer's kernels or neurons, and computes with them alone (Krizhevsky et al., section 3.2
and figure 2). The towers meet in the third convolution and the dense layers, which see the maps or neurons of both, and
over the two channels beside their border, which normalisation counts among the neighbours, since its sum runs over all
kernels of a layer (section 3.3). The script prints how far outputs and gradients are from the grouped convolutions of
``alexnet_2012`` on one device, from the same variables.
"""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script from anywhere

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax.traverse_util import flatten_dict
from jax import lax
from jax.sharding import Mesh, PartitionSpec

import jaxvision as jv
from experiments.command import script
from jaxvision import ops
from jaxvision.models.alexnet import RESPONSE_NORM, AlexNet2012, flatten
from jaxvision.ops.convolution import conv

TOWER = "tower"
SAME, LAST = PartitionSpec(), PartitionSpec(TOWER)
# Every layer's outputs are split, but for the last's, whose inputs are.
SPLIT = {
    **{
        name: {"kernel": PartitionSpec(None, None, None, TOWER), "bias": LAST}
        for name in ("conv1", "conv2", "conv3", "conv4", "conv5")
    },
    **{name: {"kernel": PartitionSpec(None, TOWER), "bias": LAST} for name in ("fc6", "fc7")},
    "fc8": {"kernel": PartitionSpec(TOWER, None), "bias": SAME},
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare AlexNet on two devices with AlexNet on one."""

    image_size: int = 224
    """Side of the images; the paper's is 224."""
    batch_size: int = 2
    """Images."""
    hidden: int = 4096
    """Neurons of a hidden dense layer, of both towers."""


def two_towers(params, images: jax.Array, devices) -> jax.Array:
    """Logits of ``alexnet_2012`` (without dropout), tower by tower on two devices. Differentiable."""
    mesh = Mesh(np.array(devices), (TOWER,))
    return jax.shard_map(tower, mesh=mesh, in_specs=(SPLIT, SAME), out_specs=SAME)(params, images)


def tower(params, x: jax.Array) -> jax.Array:
    """What one device computes, from its half of the parameters and all of the images."""

    def convolve(x, name, **options):
        layer = params[name]
        return nn.relu(conv(x, layer["kernel"], **options) + layer["bias"][None, None, None, :])

    def dense(x, name):
        return nn.relu(x @ params[name]["kernel"] + params[name]["bias"][None, :])

    def of_both(x):
        return lax.all_gather(x, TOWER, axis=x.ndim - 1, tiled=True)

    x = convolve(x, "conv1", strides=4, padding=2)
    x = ops.max_pool(normalise(x), window=3, strides=2)
    x = convolve(x, "conv2", padding=2)
    x = ops.max_pool(normalise(x), window=3, strides=2)
    x = convolve(of_both(x), "conv3", padding=1)
    x = convolve(x, "conv4", padding=1)
    x = convolve(x, "conv5", padding=1)
    x = ops.max_pool(x, window=3, strides=2)
    x = flatten(ops.adaptive_avg_pool(x, size=(6, 6)))
    x = dense(of_both(x), "fc6")
    x = dense(of_both(x), "fc7")
    return lax.psum(x @ params["fc8"]["kernel"], TOWER) + params["fc8"]["bias"][None, :]


def normalise(x: jax.Array) -> jax.Array:
    """Local response normalisation of one tower's channels, the other's two nearest among their neighbours."""
    reach = RESPONSE_NORM["size"] // 2
    below = lax.ppermute(x[..., -reach:], TOWER, [(0, 1)])  # zeros for the first tower, as beyond the layer's ends
    above = lax.ppermute(x[..., :reach], TOWER, [(1, 0)])
    x = jnp.concatenate([below, x, above], axis=-1)
    return ops.local_response_norm(x, **RESPONSE_NORM)[..., reach:-reach]


def differences(model: AlexNet2012, params, images: jax.Array, devices) -> dict[str, float]:
    """The largest difference between two devices and one, relative to the largest value: of the logits, and of the
    gradient of their logsumexp with respect to the images and every parameter."""

    def outputs(forward):
        def score(params, images):
            logits = forward(params, images)
            return jax.nn.logsumexp(logits, axis=1).sum(), logits

        grads, logits = jax.jit(jax.grad(score, argnums=(0, 1), has_aux=True))(params, images)
        grads = {"/".join(path): leaf for path, leaf in flatten_dict(grads[0]).items()} | {"images": grads[1]}
        return jax.device_get({"logits": logits} | {f"gradient of {name}": leaf for name, leaf in grads.items()})

    one = outputs(lambda params, images: model.apply({"params": params}, images)[0])
    two = outputs(lambda params, images: two_towers(params, images, devices))
    return {name: float(np.abs(one[name] - two[name]).max() / np.abs(one[name]).max()) for name in one}


@script
def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if jax.config.jax_num_cpu_devices < 2:  # where there is no accelerator, two virtual devices
        jax.config.update("jax_num_cpu_devices", 2)
    if len(jax.devices()) < 2:
        sys.exit("two towers want two devices; with one accelerator, run with JAX_PLATFORMS=cpu")
    model = jv.get_model("alexnet_2012", hidden=options.hidden)
    key, images_key = jax.random.split(jax.random.key(0))
    images = jax.random.normal(images_key, (options.batch_size, options.image_size, options.image_size, 3))
    params = jax.jit(model.init)(key, images)["params"]
    for name, difference in differences(model, params, images, jax.devices()[:2]).items():
        print(f"{difference:.1e}  {name}")


if __name__ == "__main__":
    main()
