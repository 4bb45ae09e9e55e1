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
# # Dense prediction: from patches to grids
#
# A segmenter says of every pixel what it belongs to. It must see far around the pixel to know *what* it is, and be
# exact to the pixel about *where*. Between 2012 and 2017 the families in jaxvision found different ways to both:
# classify a window around each pixel; enlarge a coarse map (FCN); do not shrink it, but spread the kernels (dilated
# convolutions); remember where the maxima were (DeconvNet); bring the fine maps back (U-Net); keep all scales side by
# side (grid networks). Here we measure what they see, what they keep and which way their gradients go, and look for the
# smallest change that makes one of them overlook a digit.
#
# Install: `pip install "jaxvision-flax[notebooks]"`. Runs offline on a CPU in about two minutes.

# %%
import functools
from concurrent.futures import ThreadPoolExecutor

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from matplotlib.patches import FancyArrowPatch, Rectangle

import jaxvision as jv
from jaxvision import losses, ops
from jaxvision.data import digit_scenes
from jaxvision.models.gridnet import full_grid

plt.rcParams.update({"figure.dpi": 56, "font.size": 8.5, "axes.spines.top": False, "axes.spines.right": False})
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})  # compiles sooner


def show(ax, image, title="", **style):
    height, width = image.shape[:2]
    ax.imshow(image, extent=(0, width, height, 0), **style)  # the pixel in column i covers [i, i + 1]
    ax.set_title(title)
    ax.axis("off")


def draw_square(ax, side, **style):
    """Around the centre of the middle pixel."""
    corner = SIDE / 2 + 0.5 - side / 2
    ax.add_patch(Rectangle((corner, corner), side, side, fill=False, lw=1.5, **style))


# %% [markdown]
# The scenes are those of the data set `digit_scenes`: 128 × 128 pixels, handwritten digits on photographs, painted on
# the spot. The task is binary, digit or background. To tell the ten digits apart takes thousands of steps
# (`experiments/` has the configurations), figure and ground less than a hundred. Networks learn on quarters of the
# scenes, 64 × 64 pixels, and are tested on whole ones: they are made of convolutions and pools, which take any size.

# %%
SIDE = 128


def scenes(split, count):
    """Images in 0 ... 1, and for each pixel the number of its digit in the scene, or 0."""
    rng, photos = np.random.default_rng(len(split)), digit_scenes.photographs()
    painted = [digit_scenes.paint(rng, photos, *digit_scenes.handwriting(split)) for _ in range(count)]
    return np.stack([s.image for s in painted]) / np.float32(255), np.stack([s.instances for s in painted])


def quarters(x):
    """[n, 128, 128, ...] to [4 n, 64, 64, ...]."""
    count, _, _, *channels = x.shape
    half = SIDE // 2
    return x.reshape(count, 2, half, 2, half, *channels).swapaxes(2, 3).reshape(4 * count, half, half, *channels)


images, digits = (quarters(x) for x in scenes("train", 256))
test_images, test_digits = scenes("test", 24)

# %% [markdown]
# ## 1. What a pixel sees
#
# A unit's *receptive field* are the pixels that it can depend on. Layer after layer it grows by
#
# $$ r \leftarrow r + (k - 1)\, d\, j, \qquad j \leftarrow s\, j $$
#
# for windows of $k$ cells that lie $d$ apart, where neighbouring cells are $j$ pixels apart and the stride is $s$. So
# large windows, strides before a layer, and dilation all widen it. For the dilated network this is done by hand below;
# `ops.receptive_field` does it for functions of images, by following their jaxpr.

# %%
FAMILIES = {
    "patchwise": "patchwise_small",
    "FCN": "fcn_small",
    "dilated": "dilated_small",
    "DeconvNet": "deconvnet_small",
    "U-Net": "unet_small",
    "grid": "gridnet_small",
}
models = {name: jv.get_model(registered, num_classes=2) for name, registered in FAMILIES.items()}

dilated = models["dilated"]
first = [(1, 2), (1, 2)] + [(dilation, 1) for dilation in dilated.dilations]
field, jump, fields = 1, 1, []
for dilation, stride in first + [(dilation, 1) for dilation in dilated.context.dilations]:
    field, jump = field + (3 - 1) * dilation * jump, stride * jump
    fields.append(field)
print(f"dilated, by hand: {field} pixels; {field + jump} after enlarging, which mixes two neighbouring cells")
print(f"without its context module: {fields[len(first) - 1] + jump}")


def analytic(model):
    """The side of the field of one pixel's logits."""
    untrained = lambda x: {"logits": model.init_with_output(jax.random.key(0), x)[0][0]}  # noqa: E731
    return ops.receptive_field(untrained, (1, 512, 512, 3))["logits"].size[0]


seeing = [name for name in models if name != "DeconvNet"]  # the scatter of its unpooling is not followed
sides = {name: analytic(models[name]) for name in seeing}
print("ops.receptive_field:", sides)

# %% [markdown]
# Can depend is not does depend. The *effective* field is the gradient of the middle pixel's logits with respect to
# the image, here its mean absolute value over two random initialisations and eight scenes. To measure it, take the
# centred square that holds half of the gradient.


# %%
@functools.partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def init(model, key):
    return model.init(key, jnp.zeros((1, SIDE, SIDE, 3)))


@functools.partial(jit, static_argnums=0)
def effective(model, variables):
    return ops.effective_receptive_field(lambda x: model.apply(variables, x)[0], test_images[:8])


def side_of(effect, share=0.5):
    """Of the smallest square around the middle pixel with that share of the sum."""
    away = np.abs(np.arange(SIDE) - SIDE // 2)
    rings = np.bincount(np.maximum(away[:, None], away).ravel(), np.asarray(effect).ravel())
    return 2 * int(np.searchsorted(rings.cumsum() / rings.sum(), share)) + 1


def initialised(model):
    return [init(model, jax.random.key(seed, impl="rbg")) for seed in (3, 4)]


def in_parallel(function, *arguments):
    """XLA compiles on one core, mostly; so two networks at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(function, *arguments))


initial = dict(zip(models, in_parallel(initialised, models.values())))
before = dict(zip(seeing, in_parallel(lambda n: sum(effective(models[n], v) for v in initial[n]) / 2, seeing)))


def draw_fields(axes, effects):
    for ax, (name, effect) in zip(axes, effects.items()):
        side = side_of(effect)
        show(ax, np.sqrt(effect / effect.max()), f"{name}: {side} of {sides[name]}", cmap="magma")
        draw_square(ax, sides[name], color="white", ls="--")
        draw_square(ax, side, color="cyan")
        ax.set(xlim=(0, SIDE), ylim=(SIDE, 0))


fig, axes = plt.subplots(1, len(seeing), figsize=(11, 2.5))
draw_fields(axes, before)
fig.tight_layout()

# %% [markdown]
# (Square roots, or the dark parts would be black. Cyan: half of the gradient. Dashed: the analytic field, where the
# image holds it. Titles: the sides of both.) Evenly spread, half of the gradient would fill a square with 0.7 of the
# field's side. The window classifier, a shallow network, comes nearest. In the deep ones the paths from the middle far
# outnumber those from the rim, and most of what they could see hardly counts. The grid mesh is that of strides and
# enlarging. The dilated network has a reason of its own: its context module starts as the identity, as its paper wants,
# so that nothing is seen but by the layers before it.

# %% [markdown]
# ## 2. What the switches keep
#
# Max pooling gives up places: of 2 × 2 cells one value is left. DeconvNet keeps, beside it, which of the four it was,
# the *switch*: two bits. On the way up `max_unpool` puts the value back there, and convolutions fill the gaps. Here
# nothing is learnt and a mean over the known neighbours fills them. Two pools shrink a photograph and a feature map,
# its local contrast, by four; they come back by their switches, then without them (each value to the corner of its
# window), and by bilinear resizing. Numbers are root mean square errors.

# %%
WINDOW = np.s_[32:96, 32:96]  # shown of the maps


def fill(sparse):
    """Each empty cell from the known ones among its 3 × 3 neighbours."""
    mean = functools.partial(ops.avg_pool, window=3, strides=1, padding=1)
    return jnp.where(sparse > 0, sparse, mean(sparse) / jnp.maximum(mean((sparse > 0).astype(jnp.float32)), 1e-6))


def corners(switches):
    """As if each maximum had been the first of its window."""
    rows, columns = jnp.indices(switches.shape[:2])
    return jnp.broadcast_to((2 * rows * 2 * switches.shape[1] + 2 * columns)[..., None], switches.shape)


@jit
def there_and_back(x):
    pools = []
    for _ in range(2):
        pools.append(ops.max_pool_with_indices(pools[-1][0] if pools else x, window=2))
    switched = cornered = sparse = pooled = pools[-1][0]
    for _, switches in reversed(pools):
        size = (2 * switches.shape[0], 2 * switches.shape[1])
        sparse = ops.max_unpool(sparse, switches, output_size=size)
        switched = fill(ops.max_unpool(switched, switches, output_size=size))
        cornered = fill(ops.max_unpool(cornered, corners(switches), output_size=size))
    resized = ops.resize(pooled, size=x.shape[:2])
    return {"unpooled": sparse, "filled in": switched, "no switches": cornered, "bilinear": resized}, pooled


photo = jnp.asarray(test_images[4])
contrast = jnp.abs(photo - ops.avg_pool(photo, window=7, strides=1, padding=3)).sum(-1, keepdims=True)
maps = jnp.concatenate([photo, contrast], axis=-1)
back, pooled = there_and_back(maps)

# %%
fig, axes = plt.subplots(2, 6, figsize=(11, 4.1))
for across, channels, name in ((axes[0], slice(0, 3), "photograph"), (axes[1], slice(3, 4), "contrast")):
    style = {"cmap": "magma", "vmin": 0, "vmax": 1.5}  # of the contrast; colours ignore it
    show(across[0], maps[WINDOW][..., channels], name, **style)
    show(across[1], pooled[8:24, 8:24, channels], "pooled twice", **style)
    show(across[2], back["unpooled"][WINDOW][..., channels], "unpooled", **style)
    for ax, how in zip(across[3:], ("filled in", "no switches", "bilinear")):
        error = jnp.sqrt(jnp.mean((back[how] - maps)[..., channels] ** 2))
        show(ax, back[how][WINDOW][..., channels], f"{how}: {error:.3f}", **style)
fig.tight_layout()

# %% [markdown]
# Two bits a maximum buy a smaller error than bilinear resizing, and edges at their place. Without them the same
# maxima are worse than no unpooling at all, as everything moves up and left. But unpooling makes no values: between the
# maxima the map is empty, and the network behind it has to paint. That shows in the next section.

# %% [markdown]
# ## 3. One image, all families
#
# Each network now learns from scratch for 90 steps of eight quarter scenes. The loss is the cross-entropy, in which
# digits, being rare, weigh four times as much, and the Dice loss of each image. All parameters are one long vector
# here: AdamW for one array compiles in a fraction of the time that it takes for a hundred. The window classifier has no
# batch norm and is slow to start, so it is left out.

# %%
STEPS, BATCH = 90, 8
rate = optax.warmup_cosine_decay_schedule(0, 4e-3, 10, STEPS)
optimiser = optax.chain(optax.clip_by_global_norm(10.0), optax.adamw(rate, weight_decay=0.02))


def loss_of(logits, digit):
    values, weights = losses.pixel_cross_entropy(logits, digit, class_weights=jnp.array([1.0, 4.0]))
    return losses.weighted_mean(values, weights) + losses.dice(logits, digit).mean()


def learn(model, variables):
    """The variables after training."""
    vector, unravel = ravel_pytree(variables["params"])
    moments = optimiser.init(vector)

    @jit
    def step(vector, statistics, moments, key, images, digit):
        def loss(vector):
            options = {"train": True, "mutable": "batch_stats", "rngs": {"sample": key}}
            (logits, _), moved = model.apply({"params": unravel(vector), **statistics}, images, **options)
            return loss_of(logits, digit), moved

        gradient, statistics = jax.grad(loss, has_aux=True)(vector)
        updates, moments = optimiser.update(gradient, moments, vector)
        return vector + updates, statistics, moments

    statistics, rng = {"batch_stats": variables["batch_stats"]}, np.random.default_rng(0)
    for key in jax.random.split(jax.random.key(0), STEPS):
        chosen = rng.choice(len(images), BATCH, replace=False)
        batch = images[chosen], (digits[chosen] > 0).astype(np.int32)
        vector, statistics, moments = step(vector, statistics, moments, key, *batch)
    return {"params": unravel(vector), **statistics}


@functools.partial(jit, static_argnums=0)
def probability(model, variables, images):
    """Of each pixel to be a digit's."""
    return jax.nn.softmax(model.apply(variables, images)[0])[..., 1]


def share(found, truth):
    """Intersection over union."""
    return float((found & truth).sum() / (found | truth).sum())


trained = list(models)[1:]
learnt = dict(zip(trained, in_parallel(lambda name: learn(models[name], initial[name][0]), trained)))
found = {name: np.asarray(probability(models[name], learnt[name], test_images)) for name in trained}
for name in trained:
    size = sum(leaf.size for leaf in jax.tree.leaves(learnt[name]["params"]))
    iou = share(found[name] > 0.5, test_digits > 0)
    print(f"{name:9}  {size:7,} parameters  IoU {iou:.2f} over {len(test_images)} scenes")

# %%
shown = (3, 5)
fig, axes = plt.subplots(len(shown), 2 + len(trained), figsize=(13, 2.1 * len(shown)))
for across, i in zip(axes, shown):
    show(across[0], test_images[i], "scene")
    show(across[1], test_digits[i] > 0, "truth", cmap="gray")
    for ax, name in zip(across[2:], trained):
        iou = share(found[name][i] > 0.5, test_digits[i] > 0)
        show(ax, found[name][i], f"{name}: IoU {iou:.2f}", cmap="magma", vmin=0, vmax=1)
fig.tight_layout()

# %% [markdown]
# All have found the digits, and how they blur them is their structure. FCN and the dilated network decide on coarse
# maps and enlarge: round blobs. The U-Net's logits are as coarse as the dilated network's, but its skips tell it where
# the edges were. DeconvNet's speckles are the switches: what was no maximum is still empty. The grid's last layer is
# batch norm, so it stays unsure for longest. This is the start of training and one seed; it ranks nothing.
#
# The effective fields of the trained networks, as above:

# %%
after = {name: effective(models[name], learnt[name]) for name in seeing if name in trained}
fig, axes = plt.subplots(1, len(after), figsize=(8.8, 2.5))
draw_fields(axes, after)
fig.tight_layout()

# %% [markdown]
# All have become *smaller*. Training can widen fields where far context decides; here saturated colour and the
# nearest edge give a digit away, and what lies further off is mostly noise.
#
# ## 4. The paths of a grid
#
# A grid network has streams of constant resolution, the finest on top, and columns that connect them. A node is the
# *sum* of what leads to it, so the gradient at a node is the sum of what its outgoing connections pass back:
# an identity all of its target's, a learned branch the product with its Jacobian. `used_connections` lists the
# connections. To learn what a branch passes back, add zeros to its input (flax's `intercept_methods` reaches in) and
# differentiate with respect to them.
#
# `connections` takes some away. Three other families are left over: without the upper horizontal ones a conv-deconv
# network; with identities for the upper horizontal ones a U-Net whose skips are sums; the first stream alone is
# a residual network that never shrinks its maps. All have the full grid's weights.

# %%
grid = full_grid(streams=3, down=2, up=2)
kept = {
    "grid": grid,
    "conv-deconv": [c for c in grid if c.kind in ("down", "up") or c.stream == 3],
    "U-Net": [
        c
        for c in grid
        if c.kind == "identity"
        or (c.kind, c.stream) == ("residual", 3)
        or (c.kind, c.column) in (("down", 1), ("up", 4))
    ],
    "residual": [c for c in grid if c.stream == 1 and c.kind in ("identity", "residual")],
}
grids = {
    name: jv.get_model("gridnet_small", num_classes=2, drop_rate=0.0, connections=tuple(connections))
    for name, connections in kept.items()
}


@functools.partial(jit, static_argnums=0)
def flows(model, variables, images, digit):
    """The norm of the loss gradient that each connection passes back to its source."""
    used = model.network.used_connections()
    maps = jax.eval_shape(model.apply, variables, images)[1]
    name_of = lambda c: f"{c.kind}_{c.stream}_{c.column}"  # noqa: E731
    source = lambda stream, column: jnp.zeros(maps[f"n{stream}_{column}"].shape)  # noqa: E731
    zeros = {name_of(c): source(*c.source) for c in used if c.kind != "identity"} | {"last_conv1": source(1, 4)}

    def loss(zeros):
        def add_zeros(call, args, kwargs, context):
            if context.module.name in zeros:
                args = (args[0] + zeros[context.module.name], *args[1:])
            return call(*args, **kwargs)

        with nn.intercept_methods(add_zeros):
            (logits, _), _ = model.apply(variables, images, train=True, mutable="batch_stats")
        return loss_of(logits, digit)

    back = jax.grad(loss)(zeros)
    arriving, passed = {(1, 4): back["last_conv1"]}, {}
    for c in reversed(used):  # all that leads out of a node comes before what leads into it
        passed[c] = arriving[c.node] if c.kind == "identity" else back[name_of(c)]
        arriving[c.source] = arriving.get(c.source, 0) + passed[c]
    norm = lambda x: jnp.linalg.norm(x.ravel())  # noqa: E731
    return [norm(passed[c]) for c in used], norm(arriving[1, 1]) / norm(arriving[1, 4])


batch = images[:16], (digits[:16] > 0).astype(np.int32)


cases = {name: (model, initial["grid"][0]) for name, model in grids.items()}
cases["grid, trained"] = grids["grid"], learnt["grid"]
flow = dict(zip(cases, in_parallel(lambda case: flows(*case, *batch), cases.values())))

# %%
KINDS = {"identity": "0.6", "residual": "tab:blue", "down": "tab:red", "up": "tab:green"}


def draw_grid(ax, model, strengths):
    used = model.network.used_connections()
    for c, strength in zip(used, strengths):
        ends = [(column, -stream) for stream, column in (c.source, c.node)]
        bend = f"arc3,rad={-0.45 if c.kind == 'residual' else 0}"
        line = {"lw": 8 * strength, "color": KINDS[c.kind], "arrowstyle": "-", "connectionstyle": bend}
        ax.add_patch(FancyArrowPatch(*ends, shrinkA=7, shrinkB=7, **line))
    streams, columns = np.array(sorted({(1, 1)} | {c.node for c in used})).T
    ax.scatter(columns, -streams, s=90, color="white", edgecolor="black", zorder=3)
    ax.set(xlim=(0.5, 4.5), ylim=(-3.5, -0.4))
    ax.axis("off")


fig, axes = plt.subplots(1, len(cases), figsize=(14, 3.2))
for ax, (name, (model, _)) in zip(axes, cases.items()):
    passed, gain = np.array(flow[name][0]), float(flow[name][1])
    draw_grid(ax, model, passed / passed.max())
    finest = [c.stream == 1 and c.source[0] == 1 for c in model.network.used_connections()]
    ax.set_title(f"{name}\ngradient × {gain:.1f}\n{passed[finest].sum() / passed.sum():.0%} in the finest stream")
for kind, colour in KINDS.items():
    axes[0].plot([], [], color=colour, lw=3, label=kind)
fig.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncol=4, frameon=False)
fig.tight_layout(rect=(0, 0.08, 1, 1))

# %% [markdown]
# Width: the norm of the gradient that goes back through a connection, from right to left, as a share of the panel's
# largest. Title: by how much it has grown from the last node to the first, and the share of the horizontal connections
# in the finest stream. It grows, since every node adds up what comes from several sides; the first column gets most.
# With the upper horizontal ones gone, everything must pass the bottom. The U-Net's identities hand on, unchanged, what
# they get. After training most of the gradient takes the short way through the finest stream, and little is left for
# the coarse ones: for figure and ground they are hardly needed. The paper drops whole residual branches in training
# (`TotalDropout`), so that the network cannot rely on any single one.
#
# ## 5. The smallest change that erases a digit
#
# A counterfactual: what would have to be different in the image, and as little as possible, for the U-Net to call one
# digit background, and the rest what it called it before? Descend on the *image*. Each pixel whose logits do not yet
# say what is wanted by a margin of 1 costs the difference; the change costs its size. Two sizes: the sum of squares, or
# the total variation, which counts how much neighbouring pixels differ and so prefers even patches. For comparison, a
# person's answer: paint it over with the mean colour around.

# %%
SCENE = 5
before_edit = jnp.asarray(found["U-Net"][SCENE] > 0.5)
number = np.bincount(test_digits[SCENE][before_edit & (test_digits[SCENE] > 0)]).argmax()  # the digit seen best
digit = jnp.asarray(test_digits[SCENE] == number)
around = ops.max_pool(digit[None, ..., None].astype(jnp.float32), window=9, strides=1, padding=4)[0, ..., 0] > 0
wanted = jnp.where(around, -1.0, jnp.where(before_edit, 1.0, -1.0))


def squares(change):
    return jnp.sum(change**2)


def variation(change):
    down, right = jnp.diff(change, axis=0)[:, :-1], jnp.diff(change, axis=1)[:-1]
    return jnp.sum(jnp.sqrt((down**2 + right**2).sum(-1) + 1e-6))


def cost(change, variables, size, strength):
    logits = models["U-Net"].apply(variables, (test_images[SCENE] + change)[None])[0][0]
    short = jax.nn.relu(1 - wanted * (logits[..., 1] - logits[..., 0]))
    return jnp.sum(short * digit) / digit.sum() + jnp.mean(short) + strength * size(change)


@functools.partial(jit, static_argnums=(3, 4))
def descend(change, moments, variables, size, strength):
    gradient = jax.grad(cost)(change, variables, size, strength)
    updates, moments = optax.adam(0.01).update(gradient, moments)
    return jnp.clip(change + updates, -test_images[SCENE], 1 - test_images[SCENE]), moments


def edit(size, strength, steps=120):
    change = jnp.zeros_like(test_images[SCENE])
    moments = optax.adam(0.01).init(change)
    for _ in range(steps):
        change, moments = descend(change, moments, learnt["U-Net"], size, strength)
    return change


ring = around & ~digit
paint_over = jnp.where(digit[..., None], test_images[SCENE][ring].mean(0) - test_images[SCENE], 0)
edits = {"squares": edit(squares, 3e-3), "variation": edit(variation, 3e-4), "painted over": paint_over}


# %%
fig, axes = plt.subplots(3, 1 + len(edits), figsize=(7.6, 6.1))
show(axes[0, 0], test_images[SCENE], "before")
show(axes[1, 0], digit, "the digit", cmap="gray")
show(axes[2, 0], found["U-Net"][SCENE], "U-Net", cmap="magma", vmin=0, vmax=1)
for across, (name, change) in zip(axes[:, 1:].T, edits.items()):
    edited, largest = test_images[SCENE] + change, float(jnp.abs(change).max())
    maps = {n: np.asarray(probability(models[n], learnt[n], edited[None])[0]) for n in trained}
    show(across[0], edited, name)
    show(across[1], 0.5 + change / (2 * largest), f"change, up to {largest:.2f}")
    show(across[2], maps["U-Net"], "U-Net", cmap="magma", vmin=0, vmax=1)
    left = ", ".join(f"{n} {(maps[n] > 0.5)[digit].mean():.0%}" for n in trained)
    print(f"{name}: norm {jnp.linalg.norm(change.ravel()):.1f}; of the digit still found by {left}")
fig.tight_layout()

# %% [markdown]
# Both edits are smaller than painting over, and leave the digit legible. The smallest, by squares, is a faint mesh
# with the period of the network's strides: it erases the digit for this U-Net, and most other families, whose meshes
# differ, still find it. It is an attack rather than an explanation. Total variation leaves a calmer change, mostly
# the opposite of the digit's colour, and that others understand better. Some even find the painted-over digit: its
# colour has gone, its outline has not.
