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
# # Kernels one can differentiate
#
# RoIAlign, non-maximum suppression and unpooling are usually glue between the parts of a detector that learn. In
# jaxvision they are plain functions of arrays, so `grad`, `jvp` and second derivatives pass through them, also to
# the **box coordinates**. Three experiments on a photograph show what that is good for.
#
# Install: `pip install "jaxvision-flax[notebooks]"`. Runs on a CPU in under a minute.

# %%
import warnings

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import skimage.data
from matplotlib.patches import Rectangle

from jaxvision import ops

warnings.filterwarnings("ignore", message="IProgress not found")  # from the progress bar of scikit-image's data
plt.rcParams.update({"figure.dpi": 70, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def draw_box(ax, box, **style):
    left, top, right, bottom = np.asarray(box)
    ax.add_patch(Rectangle((left, top), right - left, bottom - top, **{"fill": False, "lw": 2, **style}))


def show(ax, image, title, **style):
    height, width = image.shape[:2]
    ax.imshow(image, extent=(0, width, height, 0), **style)  # the pixel in column i covers [i, i + 1]
    ax.set_title(title)
    ax.axis("off")


photo = jnp.asarray(skimage.data.astronaut(), jnp.float32) / 255

# %% [markdown]
# ## 1. A box that finds its object
#
# Let the object be the orange suit. The evidence for it is red minus blue, averaged over cells of 16 × 16 pixels:
# a feature map as a network would make it. `roi_align` samples it on a grid inside the box; evidence above a level
# counts for the box, evidence below counts against it. The score is the sum of both:
#
# $$ S(\text{box}) = \text{area}(\text{box}) \cdot \operatorname{mean}\,
# (\text{roi\_align}(\text{evidence} - \text{level}, \text{box})). $$
#
# $S$ is differentiable in the four sides of the box, so the box can climb it. torchvision's `roi_align` gives no
# gradient to boxes.

# %%
stride, level = 16, 0.15
evidence = ops.avg_pool((photo[..., 0] - photo[..., 2])[None, :, :, None], window=stride)[0] - level


@jax.jit
def score(box):
    """Evidence inside the box, summed over its area, in units of the photograph's area."""
    samples = ops.roi_align(
        evidence, box[None], size=(14, 14), spatial_scale=1 / stride, sampling_ratio=2, aligned=True
    )
    return ops.boxes.area(box) * jnp.mean(samples) / (photo.shape[0] * photo.shape[1])


def climb(box, steps=150, pixels_a_step=4.0):
    optimiser = optax.adam(optax.cosine_decay_schedule(pixels_a_step, steps))

    def step(carry, _):
        box, state = carry
        value, gradient = jax.value_and_grad(score)(box)
        updates, state = optimiser.update(-gradient, state)
        return (ops.boxes.clip(box + updates, photo.shape[:2]), state), (box, value)

    return jax.lax.scan(step, (box, optimiser.init(box)), length=steps)[1]


starts = jnp.array([[200.0, 120.0, 420.0, 360.0], [30.0, 330.0, 130.0, 400.0], [20.0, 60.0, 250.0, 260.0]])
paths, values = jax.jit(jax.vmap(climb))(starts)  # all three at once: kernels go through vmap as well

# %%
fig, axes = plt.subplots(1, 3, figsize=(12, 3.9), width_ratios=(1, 1, 1.1))
show(axes[0], photo, "from the start (dashed) to the end")
show(axes[1], evidence[..., 0], "evidence: + for, − against", cmap="PuOr_r", vmin=-0.4, vmax=0.4)
for path, value, colour, name in zip(
    paths, values, ("deepskyblue", "lime", "gold"), ("too high", "too small", "on the face")
):
    for ax, scale in ((axes[0], 1), (axes[1], 1 / stride)):
        for box in path[6:60:9]:
            draw_box(ax, box * scale, color=colour, lw=0.7, alpha=0.6)
        draw_box(ax, path[0] * scale, color=colour, ls="--")
        draw_box(ax, path[-1] * scale, color=colour, lw=2.5)
    axes[2].plot(value, color=colour, lw=2, label=name)
axes[2].set(xlabel="gradient step", ylabel="score S(box)", title="the score rises")
axes[2].axhline(0, color="0.7", lw=0.8)
axes[2].legend(frameon=False)
fig.tight_layout()

# %% [markdown]
# Three very different boxes end on the same object, and nothing was trained. (A box that holds no evidence *for* it at
# all has nothing to climb to: it shrinks away to score zero.)
#
# The derivative rules are `custom_jvp`s or none at all, so forward mode and second derivatives work too. One `jvp`
# answers "what if the whole box moved one pixel to the right?"; a `jvp` of `grad` is a product with the Hessian,
# and four of them are the Hessian itself.

# %%
box, right = starts[0], jnp.array([1.0, 0.0, 1.0, 0.0])
_, forward = jax.jvp(score, (box,), (right,))
difference = (score(box + 0.1 * right) - score(box - 0.1 * right)) / 0.2
print(f"per pixel to the right: jvp {forward:+.2e}, finite difference {difference:+.2e}")

gradient, along = jax.jvp(jax.grad(score), (box,), (right,))
print("Hessian times that direction:", np.array2string(np.asarray(along), precision=2))
print("equals the Hessian's product:", np.allclose(along, jax.hessian(score)(box) @ right, atol=1e-8))

# %% [markdown]
# ## 2. Suppression with a temperature
#
# Non-maximum suppression keeps the best box, drops those that overlap it, and goes on. Each box is in or out, so
# there is nothing to differentiate. `relaxed_nms` replaces the two questions, *is that box better?* and *does it
# overlap too much?*, by steps of width $T$: every box gets a weight between 0 and 1, which tends to the hard choice
# as $T \to 0$. Here are five guesses at a face.

# %%
names = "ABCDE"
faces = jnp.array(
    [
        [172.0, 62.0, 276.0, 192.0],
        [186.0, 72.0, 290.0, 200.0],
        [206.0, 50.0, 310.0, 180.0],
        [136.0, 84.0, 240.0, 214.0],
        [352.0, 60.0, 440.0, 290.0],
    ]
)
scores = jnp.array([0.92, 0.85, 0.70, 0.62, 0.55])
threshold = 0.4
kept, valid = ops.nms(faces, scores, iou_threshold=threshold, max_output=5)
print("IoU with A:  ", *(f"{n} {v:.2f}" for n, v in zip(names, ops.boxes.pairwise(ops.boxes.iou, faces, faces)[0])))
print("hard NMS keeps:", *(names[i] for i in kept[valid]))


@jax.jit
def keep(faces, temperature):
    return ops.relaxed_nms(faces, scores, iou_threshold=threshold, temperature=temperature)


temperatures = jnp.logspace(0, -3, 60)
weights = jax.vmap(keep, (None, 0))(faces, temperatures)

shifts = jnp.linspace(-40, 90, 261)
direction = jnp.zeros((5, 4)).at[1].set(jnp.array([1.0, 0.0, 1.0, 0.0]))


def weight_of_b(shift, temperature):
    return keep(faces + shift * direction, temperature)[1]


# %%
colours = plt.get_cmap("tab10").colors
fig, axes = plt.subplots(1, 4, figsize=(15, 3.7), width_ratios=(1, 1.1, 1.1, 1.1))
show(axes[0], photo[20:310, 110:460], "five guesses")
for colour, box in zip(colours, faces):
    draw_box(axes[0], box - jnp.array([110, 20, 110, 20]), color=colour)
corners = {"A": (0, 1), "B": (2, 3), "C": (2, 1), "D": (0, 3), "E": (0, 1)}
for name, colour, box, value in zip(names, colours, faces, scores):
    x, y = (float(box[i]) for i in corners[name])
    label = {"color": "white", "fontsize": 8, "ha": "center", "va": "center"}
    axes[0].text(x - 110, y - 20, f"{name} {value:.2f}", bbox={"color": colour, "pad": 1.5}, **label)
for i, (name, colour) in enumerate(zip(names, colours)):
    axes[1].semilogx(temperatures, weights[:, i], color=colour, lw=5 - i, label=name)
    axes[1].plot(temperatures[-1], float(i in np.asarray(kept)), "o", color=colour, clip_on=False)
axes[1].invert_xaxis()
axes[1].set(xlabel="temperature T (falling)", ylabel="keep weight", title="weights tend to the hard choice (dots)")
axes[1].legend(frameon=False, loc="center left")
for temperature, shade in zip((0.3, 0.1, 0.03, 0.003), (0.75, 0.55, 0.35, 0.0)):
    line = {"color": str(shade), "lw": 2, "label": f"T = {temperature}"}
    axes[2].plot(shifts, jax.vmap(weight_of_b, (0, None))(shifts, temperature), **line)
    axes[3].plot(shifts, jax.vmap(jax.grad(weight_of_b), (0, None))(shifts, temperature), **line)
axes[2].set(xlabel="B moved right by (pixels)", ylabel="keep weight of B", title="B slides off A")
axes[2].legend(frameon=False)
axes[3].set(
    xlabel="B moved right by (pixels)", ylabel="weight per pixel", title="derivative by B's place", ylim=(-0.02, 0.1)
)
fig.tight_layout()

# %% [markdown]
# Hot, hardly anything is suppressed; cold, the weights are the hard mask. D overlaps A almost too much (0.37), so it is
# half doubted on the way and comes back. In between, the derivative says which way to move a box so that it survives,
# and a loss behind the suppression can teach the network in front of it. Note the trade: a low temperature is faithful,
# but its derivative is a spike that few boxes ever meet.

# %% [markdown]
# ## 3. Switches: max pooling that remembers
#
# `max_pool_with_indices` returns the maxima and *where they were found*, the switches. `max_unpool` puts values back
# to those places. Without switches each value would go to a fixed corner of its window and edges would be lost.

# %%
eye = jnp.asarray(skimage.data.chelsea()[78:142, 134:198], jnp.float32).mean(-1, keepdims=True)[None] / 255
maxima, switches = ops.max_pool_with_indices(eye, window=2, strides=2, padding=0)
rows, columns = jnp.mgrid[0:64:2, 0:64:2]
corners = (rows * 64 + columns)[None, :, :, None]
with_switches, to_corners = (ops.max_unpool(maxima, i, output_size=(64, 64)) for i in (switches, corners))

gradient = jax.grad(lambda x: ops.max_pool_with_indices(x, window=2, strides=2, padding=0)[0].sum())(eye)
again, _ = ops.max_pool_with_indices(with_switches, window=2, strides=2, padding=0)
print("pooling undoes unpooling:", bool(jnp.all(again == maxima)))
print(
    "the gradient of the summed maxima is one at each switch, zero elsewhere:",
    bool(jnp.all(gradient == (with_switches > 0))),
)


def fill(sparse):
    """Each pixel from the known ones among its 3 × 3 neighbours."""
    mean = lambda x: ops.avg_pool(x, window=3, strides=1, padding=1)  # noqa: E731
    return jnp.where(sparse > 0, sparse, mean(sparse) / jnp.maximum(mean((sparse > 0).astype(jnp.float32)), 1e-6))


# %%
fig, axes = plt.subplots(1, 6, figsize=(15, 2.9))
for ax, picture, title in zip(
    axes,
    (eye, maxima, with_switches, fill(with_switches), fill(to_corners), gradient),
    ("a cat's eye", "maxima", "unpooled", "filled in", "no switches", "gradient of Σ maxima"),
):
    show(ax, picture[0], title, cmap="gray", vmin=0, vmax=0.8)
for ax, picture in zip(axes[3:5], (with_switches, to_corners)):
    ax.set_title(f"{ax.get_title()}: error {jnp.sqrt(jnp.mean((fill(picture) - eye) ** 2)):.3f}")
fig.tight_layout()

# %% [markdown]
# The gradient of pooling *is* unpooling with the switches: whatever arrives at a maximum goes back to the pixel
# that it came from. Deconvolutional networks (DeconvNet, SegNet) use the same operation forwards, to draw a sharp
# mask from a coarse map.
