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
# # Compose a detector
#
# A detector is a backbone, a neck and a head, and in jaxvision it is built by calling constructors. Here the same
# backbone carries a one-stage and a two-stage head; both learn from scratch in this notebook. Everything is one pure
# function from pixels to boxes, so three things are then a few lines each: to watch how anchors and proposals find
# their objects, to ask which pixels a detection stands on, and to look for a patch that it takes for one.
#
# Install: `pip install "jaxvision-flax[notebooks]"`. Runs offline on a CPU in one to two minutes.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

import jaxvision as jv
from jaxvision import train
from jaxvision.data import digit_scenes
from jaxvision.layers.fpn import FPN
from jaxvision.layers.roi_heads import BoxHead
from jaxvision.layers.rpn import RPN
from jaxvision.models.generalized_rcnn import GeneralizedRCNN
from jaxvision.models.resnet import ResNet
from jaxvision.models.retinanet import RetinaNet
from jaxvision.ops import boxes, matching

plt.rcParams.update({"figure.dpi": 60, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})  # compiles sooner
COLOURS = ("deepskyblue", "gold")


def show(ax, image, title="", **style):
    ax.imshow(image, extent=(0, SIDE, SIDE, 0), **style)  # the pixel in column i covers [i, i + 1]
    ax.set_title(title)
    ax.axis("off")


def draw_box(ax, box, text="", color="white", **style):
    left, top, right, bottom = np.asarray(box)
    ax.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color=color, **{"lw": 2, **style}))
    if text:
        label = {"fontsize": 8, "va": "bottom", "bbox": {"color": color, "pad": 1}}
        ax.text(left, max(top, 5), text, **label)


def draw_found(ax, found, least=0.5):
    for box, score, label, valid in zip(*(np.asarray(leaf) for leaf in found[:4])):
        if valid and score >= least:
            draw_box(ax, box, f"{label}: {score:.2f}", COLOURS[label])


def row(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


# %% [markdown]
# ## 1. The task, and two detectors for it
#
# Scenes of 64 × 64 pixels: two handwritten digits, zeros and ones, in bright colours on darkened photographs. They
# are painted on the spot, by the functions behind the data set `digit_scenes`; test scenes have handwriting that
# training never saw.

# %%
SIDE, CLASSES = 64, 2
photos = [photo[::4, ::4] for photo in digit_scenes.photographs()]


def paint(rng, digits, classes):
    """An image in 0 ... 1, and its targets."""
    image = digit_scenes.background(rng, photos, size=SIDE) / np.float32(510)
    taken, found = np.zeros((SIDE, SIDE), bool), []
    while len(found) < 2:
        chosen = rng.choice(np.flatnonzero(classes < CLASSES))
        strength = digit_scenes.enlarge(digits[chosen], int(rng.integers(22, 35)))
        top, left = rng.integers(SIDE - len(strength) + 1, size=2)
        window, mask = np.s_[top : top + len(strength), left : left + len(strength)], strength > 0.25
        if not (taken[window] & mask).any():
            colour = rng.dirichlet((1, 1, 1)).astype(np.float32)
            image[window] += np.minimum(2 * strength, 1)[..., None] * (colour / colour.max() - image[window])
            taken[window] |= mask
            found.append((np.add(digit_scenes.tight_box(mask), (left, top, left, top)), classes[chosen]))
    where, what = zip(*found)
    return image, jv.Targets(np.float32(where), np.int32(what), np.ones(2, bool))


def scenes(split, count):
    rng, digits = np.random.default_rng(len(split)), digit_scenes.handwriting(split)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(paint(rng, *digits) for _ in range(count)))


images, targets = scenes("train", 1024)
test_images, test_targets = scenes("test", 32)

# %% [markdown]
# The backbone is a ResNet with one block a stage, the neck a feature pyramid. On them stand RetinaNet, which classifies
# and moves every anchor at once, and Faster R-CNN, whose region proposal network first chooses 32 regions, which are
# then pooled by RoIAlign and classified. A module is frozen and hashable: it is its own configuration.

# %%
backbone = ResNet((1, 1, 1), "basic", num_classes=0, width=24)
neck = FPN(("c3", "c4"), channels=32)
retinanet = RetinaNet(
    backbone,
    neck,
    CLASSES,
    sizes=((16, 20, 25), (32, 40, 50), (64, 80, 101)),  # of the anchors on p3, p4 and p5
    num_convs=1,
    groups=4,
    box_loss="giou",
    candidates=32,
    max_detections=8,
)
faster_rcnn = GeneralizedRCNN(
    backbone,
    neck,
    RPN(sizes=((20,), (32,), (50,)), pre_nms=(64, 64), post_nms=(32, 32), samples=32),
    BoxHead(CLASSES, hidden=64),
    roi_levels=("p3", "p4"),
    canonical_size=64.0,
    samples=32,
    positive_fraction=0.5,
    candidates=64,
    max_detections=8,
)
detectors = {"RetinaNet": retinanet, "Faster R-CNN": faster_rcnn}

# %% [markdown]
# Training is a pure step, made of a loss and an optimiser; it knows nothing of detectors. On the way we `look` at the
# test scenes: what is detected, and what the heads work on, with the object that each is matched to. RetinaNet matches
# *anchors*, by their overlap with the objects, and learns to move them; Faster R-CNN's box head matches *proposals*,
# which its own network makes. In both a box matches an object from an IoU of 0.5 on (and the best anchor of an object
# always does).

# %%
STEPS, BATCH = 240, 16
MOMENTS = (0, 10, 20, 40, 80, 120, 160, 200, 240)


def anchors_of(model, images):
    """All anchors as the head moves them, the best class score of each, and their object (-1 none, -2 ignored)."""
    logits, offsets, anchors = model.raw(images)

    def match(truth, valid):
        overlap = boxes.pairwise(boxes.iou, truth, anchors)
        thresholds = {"high": model.foreground_iou, "low": model.background_iou}
        return matching.threshold_match(overlap, valid, **thresholds, allow_low_quality=True)

    moved = jax.vmap(boxes.decode, (0, None))(offsets, anchors)
    return moved, jax.nn.sigmoid(logits[..., 1:]).max(-1), jax.vmap(match)(test_targets.boxes, test_targets.valid)


def proposals_of(model, images):
    """The proposals, which of them are there, and their object."""
    features = model.features(images)
    levels = [features[name] for name in ("p3", "p4", "p5")]
    anchors = model.proposals.anchors(levels, (SIDE, SIDE))
    sizes = jnp.full((len(images), 2), float(SIDE))
    proposals, there = model.proposals.propose(*model.proposals(levels), anchors, sizes)

    def match(truth, valid, proposals):
        overlap, threshold = boxes.pairwise(boxes.iou, truth, proposals), model.foreground_iou
        return matching.threshold_match(overlap, valid, high=threshold, low=threshold, allow_low_quality=False)

    matched = jax.vmap(match)(test_targets.boxes, test_targets.valid, proposals)
    return proposals, there, jnp.where(there, matched, -1)


@functools.partial(jit, static_argnums=0)
def look(model, variables, images):
    inside = anchors_of if model is retinanet else proposals_of
    return model.apply(variables, images, method=lambda model, images: (model.detect(images), inside(model, images)))


def learn(model):
    """The variables after training, and what was seen at the moments."""

    def loss_fn(params, model_state, batch, key):
        options = {"train": True, "mutable": "batch_stats", "rngs": {"sample": key}, "method": "loss"}
        (loss, metrics), model_state = model.apply({"params": params, **model_state}, *batch, **options)
        return loss, (metrics, model_state)

    rate = train.schedule("cosine", learning_rate=4e-3, total_steps=STEPS, warmup_steps=20)
    optimiser = train.optimizer("adamw", learning_rate=rate, weight_decay=0.02, clip_norm=10.0)
    variables = jit(model.init)(jax.random.key(0, impl="rbg"), images[:1])
    state = train.create_state(jax.random.key(1), variables, optimiser)
    step = jit(train.make_train_step(train.value_and_grads(loss_fn), optimiser))
    rng, seen = np.random.default_rng(0), {}
    for number in range(STEPS + 1):
        if number in MOMENTS:
            seen[number] = jax.device_get(look(model, train.state_variables(state), test_images))
        if number < STEPS:
            state, _ = step(state, row((images, targets), rng.choice(len(images), BATCH, replace=False)))
    return train.state_variables(state), seen


def share_found(found):
    """Of the objects: detected with the right class, a score and an IoU of at least 0.5."""
    overlap = jax.vmap(functools.partial(boxes.pairwise, boxes.iou))(test_targets.boxes, found.boxes)
    right = test_targets.labels[..., None] == found.labels[:, None]
    return float(((overlap >= 0.5) & right & (found.scores >= 0.5)[:, None]).any(-1).mean())


learnt, seen = {}, {}
for name, model in detectors.items():
    learnt[name], seen[name] = learn(model)
    number = sum(leaf.size for leaf in jax.tree.leaves(learnt[name]["params"]))
    share = share_found(seen[name][STEPS][0])
    print(f"{name}: {number:,} parameters; finds {share:.0%} of the objects in {len(test_images)} test scenes")

# %%
fig, axes = plt.subplots(2, 6, figsize=(12, 4.3))
for across, name in zip(axes, detectors):
    for i, ax in enumerate(across):
        show(ax, test_images[i], name if i == 0 else "")
        draw_found(ax, row(seen[name][STEPS][0], i))
fig.tight_layout()

# %% [markdown]
# ## 2. The dynamics of matching
#
# The boxes that are matched to an object, in its colour, as the heads learn; unmatched ones in white (of RetinaNet's,
# those with a score of 0.3 or more). RetinaNet's matches never change, because its anchors never do: from the first
# step on each object teaches the same anchors, and they close in on it. The two-stage detector makes its own training
# set. At first hardly a proposal falls on an object and the box head sees background only; the better the proposals,
# the more positives.

# %%
SCENE, shown = 0, (0, 20, 80, STEPS)
fig, axes = plt.subplots(2, len(shown), figsize=(9, 4.9))
for across, name in zip(axes, detectors):
    for ax, moment in zip(across, shown):
        candidates, weight, match = row(seen[name][moment][1], SCENE)
        show(ax, test_images[SCENE], f"{name}, step {moment}")
        for box in candidates[(match < 0) & (weight >= 0.3)]:
            draw_box(ax, box, lw=0.5)
        for i, colour in enumerate(COLOURS):
            for box in candidates[match == i]:
                draw_box(ax, box, color=colour, lw=1)
fig.tight_layout()

# %% [markdown]
# The same over all test scenes. Right: the share of objects found – what the matches are good for.


# %%
def matched(candidates, _, match):
    """Of a scene: how many boxes are matched."""
    return (match >= 0).sum(-1).mean()


def fit(candidates, _, match):
    """Mean IoU of the matched boxes with their objects."""
    overlap = jax.vmap(functools.partial(boxes.pairwise, boxes.iou))(test_targets.boxes, candidates)
    own = jnp.take_along_axis(overlap, jnp.maximum(match, 0)[:, None], 1)[:, 0]
    return own[match >= 0].mean()


fig, axes = plt.subplots(1, 3, figsize=(11, 2.8))
for name in detectors:
    axes[0].plot(MOMENTS, [matched(*seen[name][moment][1]) for moment in MOMENTS], "o-", label=name)
    axes[1].plot(MOMENTS, [fit(*seen[name][moment][1]) for moment in MOMENTS], "o-")
    axes[2].plot(MOMENTS, [share_found(seen[name][moment][0]) for moment in MOMENTS], "o-")
for ax, title in zip(axes, ("matched boxes a scene", "their mean IoU with the object", "objects found")):
    ax.set_title(title)
    ax.set_xlabel("step")
axes[0].legend()
fig.tight_layout()

# %% [markdown]
# ## 3. A detection, explained down to its pixels
#
# `explain` is the gradient of one detection's score, through NMS, decoding, RoIAlign and the backbone, with respect to
# the image. SmoothGrad averages it over noisy copies. Grad-CAM asks the feature maps instead, so it is coarse; where it
# lights up both digits, both are on the maps with the same sign.

# %%
explain = jit(jv.explain, static_argnums=0, static_argnames="method")
fig, axes = plt.subplots(2, 6, figsize=(12, 4.3))
for across, (name, model) in zip(axes, detectors.items()):
    found = row(seen[name][STEPS][0], SCENE)
    for i, (plain, *explained) in enumerate((across[:3], across[3:])):
        show(plain, test_images[SCENE], name)
        draw_found(plain, row(found, np.array([i])))
        for ax, method in zip(explained, ("smoothgrad", "gradcam")):
            importance = explain(
                model, learnt[name], test_images[SCENE], row(found, i), method=method, key=jax.random.key(0)
            )
            show(ax, importance, method, cmap="magma")
fig.tight_layout()

# %% [markdown]
# ## 4. A patch that is taken for a digit
#
# The detector is one differentiable function, so one can also climb to its weakness: a patch of 12 × 12 pixels, pasted
# somewhere into photographs without any digit, changed by the gradient of −log(1 − score), summed over all detections.
# It is made for Faster R-CNN, and tried on other photographs and on both detectors. The noise from which it
# starts, at the same places, is the control.

# %%
PATCH = 12
rng = np.random.default_rng(0)
empty = jnp.stack([digit_scenes.background(rng, photos, size=SIDE) / np.float32(510) for _ in range(256)])
corners = rng.integers(SIDE - PATCH + 1, size=(len(empty), 2))
held_out = slice(-len(test_images), None)


def paste(patch, images, corners):
    """One patch on every image, its top left at (row, column)."""
    return jax.vmap(lambda image, corner: jax.lax.dynamic_update_slice(image, patch, (*corner, 0)))(images, corners)


def alarm(patch, variables, images, corners):
    found = faster_rcnn.apply(variables, paste(patch, images, corners), method="detect")
    return -jnp.where(found.valid, jnp.log1p(-jnp.minimum(found.scores, 0.9999)), 0).sum(-1).mean()


@jit
def climb(patch, variables, images, corners):
    value, gradient = jax.value_and_grad(alarm)(patch, variables, images, corners)
    return jnp.clip(patch + 0.02 * jnp.sign(gradient), 0, 1), value


noise = patch = jnp.asarray(rng.uniform(0.35, 0.65, size=(PATCH, PATCH, 3)), jnp.float32)
alarms = []
for _ in range(60):
    chosen = rng.choice(len(empty) - len(test_images), 16, replace=False)
    patch, value = climb(patch, learnt["Faster R-CNN"], empty[chosen], corners[chosen])
    alarms.append(float(value))

pasted = {"nothing": empty[held_out]} | {
    what: paste(square, empty[held_out], corners[held_out]) for what, square in (("noise", noise), ("patch", patch))
}
found = {
    (name, what): look(model, learnt[name], scenes)[0]
    for name, model in detectors.items()
    for what, scenes in pasted.items()
}
for name in detectors:
    shares = {what: float((found[name, what].scores >= 0.5).any(-1).mean()) for what in pasted}
    print(f"{name} finds a digit in", ", ".join(f"{share:.0%} with {what}" for what, share in shares.items()))

# %%
fig, axes = plt.subplot_mosaic([["alarm", "patch", *range(4)], ["alarm", "patch", *range(4, 8)]], figsize=(13, 4))
axes["alarm"].plot(alarms)
axes["alarm"].set_title("−log(1 − score), a scene")
axes["alarm"].set_xlabel("step")
axes["patch"].imshow(patch)
axes["patch"].set_title("the patch")
axes["patch"].axis("off")
for i in range(8):
    what = ("noise", "patch")[i // 4]
    show(axes[i], pasted[what][i % 4], what)
    draw_found(axes[i], row(found["Faster R-CNN", what], i % 4))
fig.tight_layout()
