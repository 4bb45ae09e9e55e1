"""Every registered model against the table: counts by ``eval_shape``, behaviour on small inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from model_table import CLASSIFIERS, DETECTORS, ROWS, SEGMENTERS

import jaxvision as jv
from jaxvision.models.resnet import ResNet

# Compiling takes most of the time here, and half of that without the optimisations of its last stage.


def ids(rows, *, slow=()):
    """slow: names of those that have a relative among the others."""
    marked = [pytest.param(row, id=row.name, marks=pytest.mark.slow if row.name in slow else ()) for row in rows]
    return pytest.mark.parametrize("row", marked)


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def inputs(row, batch=2):
    return jax.random.normal(jax.random.key(1), (batch, row.size, row.size, 3))


def variables_of(model, images):
    """Random kernels of He's variance, and batch statistics away from (0, 1), so that a model that ignores them is
    seen. Drawn by NumPy, as compiling a model's own ``init`` takes longer than most of the tests here."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("mean", "var"):
            values = rng.uniform(0.5, 1, leaf.shape)
        elif "kernel" in name:
            values = rng.normal(0, (2 / np.prod(leaf.shape[:-1])) ** 0.5, leaf.shape)
        else:
            values = np.full(leaf.shape, float("scale" in name))
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0), images))


def targets(row, batch=2, objects=3):
    boxes = jnp.array([[8.0, 10, 40, 50], [60, 20, 100, 60], [30, 70, 70, 120]])
    rows, columns = jnp.arange(row.size)[:, None] + 0.5, jnp.arange(row.size)[None] + 0.5
    inside = jax.vmap(lambda b: (b[0] <= columns) & (columns < b[2]) & (b[1] <= rows) & (rows < b[3]))(boxes)

    def tile(x):
        return jnp.tile(x[None], (batch,) + (1,) * x.ndim)

    return jv.Targets(tile(boxes), tile(jnp.arange(objects) % 3), tile(jnp.ones(objects, bool)), tile(inside))


def test_every_registered_model_has_a_row():
    assert sorted(row.name for row in ROWS) == jv.list_models()
    assert sorted(row.name for row in DETECTORS) == jv.list_models(task="detection")
    assert sorted(row.name for row in SEGMENTERS) == jv.list_models(task="segmentation")


@ids([row for row in ROWS if row.parameters])
def test_parameter_count(row):
    model = jv.get_model(row.name)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, row.size, row.size, 3)))
    assert count(variables["params"]) == row.parameters, row.source


@ids(ROWS)
def test_module_is_its_own_configuration(row):
    model = jv.get_model(row.name, **row.options)
    assert hash(model) == hash(jv.get_model(row.name, **row.options))
    assert model == model.clone()


@ids([row for row in CLASSIFIERS if row.run], slow={"mnasnet0_5"})
def test_classifier(row):
    model, images = jv.get_model(row.name, num_classes=7), inputs(row)
    variables = variables_of(model, images)
    apply = jax.jit(functools.partial(model.apply, mutable=["batch_stats"]))
    (logits, features), unchanged = apply(variables, images)
    assert logits.shape == (2, 7) and bool(jnp.isfinite(logits).all())
    assert tuple(features) == model.feature_names
    for name, feature in features.items():
        stride = 2 ** int(name[1:])
        assert abs(feature.shape[1] - row.size / stride) <= 1, f"{name} is not at stride {stride}"

    def loss(params):
        rngs = {"dropout": jax.random.key(3)}
        (logits, _), updates = model.apply(
            {**variables, "params": params}, images, train=True, rngs=rngs, mutable=["batch_stats"]
        )
        return jnp.square(logits - jnp.arange(7.0)[None]).sum(), updates

    grads, updates = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    silent = [path for path, leaf in jax.tree.leaves_with_path(grads) if not jnp.any(leaf != 0)]
    assert not silent, f"no gradient reaches {[jax.tree_util.keystr(path) for path in silent]}"
    moved = jax.tree.map(
        lambda old, new: bool(jnp.any(old != new)),
        variables.get("batch_stats", {}),
        dict(updates).get("batch_stats", {}),
    )
    assert all(jax.tree.leaves(moved))
    for old, new in zip(jax.tree.leaves(variables.get("batch_stats", {})), jax.tree.leaves(unchanged)):
        np.testing.assert_array_equal(old, new)


@ids([row for row in SEGMENTERS if row.run])
def test_segmenter(row):
    """Logits at the size of images of any size, gradients and statistics everywhere; folded norms change nothing."""
    model, images = jv.get_model(row.name, num_classes=5), inputs(row)[:, :50, :63]
    variables = variables_of(model, images)
    apply = jax.jit(functools.partial(model.apply, mutable=["batch_stats"]))
    (logits, features), unchanged = apply(variables, images)
    assert logits.shape == (2, 50, 63, 5) and bool(jnp.isfinite(logits).all())
    assert features and all(feature.ndim == 4 for feature in features.values())

    def loss(params):
        (logits, _), updates = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            rngs={"sample": jax.random.key(3)},
            mutable=["batch_stats"],
        )
        return jnp.square(logits - jnp.arange(5.0)[None, None, None]).sum(), updates

    grads, updates = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    silent = [path for path, leaf in jax.tree.leaves_with_path(grads) if not jnp.any(leaf != 0)]
    assert not silent, f"no gradient reaches {[jax.tree_util.keystr(path) for path in silent]}"
    before = variables.get("batch_stats", {})
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, dict(updates).get("batch_stats", {}))
    assert all(jax.tree.leaves(moved))
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(unchanged)):
        np.testing.assert_array_equal(old, new)
    (got, _), _ = apply(jv.fold_batch_norm(model, variables), images)
    np.testing.assert_allclose(got, logits, rtol=1e-3, atol=1e-3 * np.abs(logits).max())


def test_jit_is_eager():
    """One model, as eager execution compiles each layer apart and so takes long."""
    row = next(row for row in CLASSIFIERS if row.name == "squeezenet1_1")
    model, images = jv.get_model(row.name, num_classes=7), inputs(row)
    variables = variables_of(model, images)
    compiled = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(model.apply(variables, images)[0], compiled[0], rtol=1e-4, atol=1e-5)


@ids(
    [row for row in CLASSIFIERS + DETECTORS if row.run],
    slow={"resnext50_32x4d", "mnasnet0_5", "ssd_small", "yolo_small", "multibox_small"},
)
def test_folded_batch_norm(row):
    model, images = jv.get_model(row.name, **row.options), inputs(row)
    variables = variables_of(model, images)
    folded = jv.fold_batch_norm(model, variables)
    norms = {path[:-1] for path in flatten_dict(variables.get("batch_stats", {}))}
    # In these models every batch norm follows a convolution.
    scales = {path[1:-1] for path in flatten_dict(folded) if path[-1] == "scale"}
    assert "batch_stats" not in folded and not norms & scales
    method = "features" if row in DETECTORS else None  # a detector's choices may flip by rounding
    apply = jax.jit(lambda variables: model.apply(variables, images, method=method))
    wanted, got = apply(variables), apply(folded)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(a).max()), wanted, got)
    if "batch_stats" in variables:
        with pytest.raises(ValueError, match="folded into a convolution"):
            model.apply(folded, images, train=True, rngs={"dropout": jax.random.key(0)})


# One a family, the smallest; the others take minutes to trace.
FAMILIES = {
    *("alexnet", "vgg11", "squeezenet1_1", "resnet18", "resnext50_32x4d", "densenet121", "googlenet", "inception_v3"),
    *("shufflenet_v2_x0_5", "mobilenet_v2", "mnasnet0_5"),
}


@pytest.mark.parametrize(
    "row",
    [pytest.param(r, id=r.name, marks=() if r.name in FAMILIES else pytest.mark.slow) for r in CLASSIFIERS],
)
def test_transformations(row):
    """jit, gradients, an ensemble by vmap over variables, bfloat16 with float32 parameters, and an export round trip:
    of shapes and types, which is where they fail. ``test_export_keeps_the_values`` runs one."""
    model = jv.get_model(row.name)
    images = jax.ShapeDtypeStruct((2, row.size, row.size, 3), jnp.float32)
    low = jax.ShapeDtypeStruct(images.shape, jnp.bfloat16)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    members = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((3, *leaf.shape), leaf.dtype), variables)

    def classify(variables, images):
        return model.apply(variables, images)[0]

    assert jax.eval_shape(jax.vmap(classify, (0, None)), members, images).shape == (3, 2, 1000)
    assert jax.eval_shape(classify, variables, low).dtype == jnp.bfloat16
    gradients = jax.eval_shape(jax.grad(lambda v, x: classify(v, x).astype(jnp.float32).sum()), variables, low)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), gradients) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), variables
    )
    exported = jax.export.export(jax.jit(classify))(variables, images)
    again = jax.export.deserialize(exported.serialize())
    assert again.in_tree == exported.in_tree and again.out_avals[0].shape == (2, 1000)


def test_export_keeps_the_values():
    row = next(row for row in CLASSIFIERS if row.name == "shufflenet_v2_x0_5")
    model, images = jv.get_model(row.name, num_classes=7), inputs(row)
    variables = variables_of(model, images)
    classify = jax.jit(lambda variables, images: model.apply(variables, images)[0])
    again = jax.export.deserialize(jax.export.export(classify)(variables, images).serialize())
    np.testing.assert_allclose(again.call(variables, images), classify(variables, images), rtol=1e-5, atol=1e-5)
    low = classify(variables, images.astype(jnp.bfloat16)).astype(jnp.float32)
    wanted = classify(variables, images)
    assert jnp.abs(low - wanted).max() < 0.1 * jnp.abs(wanted).max()


def test_init_compiles():
    """One model; the others are initialised by their own tests, and ``eval_shape`` sees all shapes."""
    model, images = jv.get_model("shufflenet_v2_x0_5", num_classes=7), jnp.zeros((1, 64, 64, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(variables))


def test_bottlenecks_train():
    model, images = ResNet((1, 1, 1, 1), "bottleneck", num_classes=2, width=8), jnp.ones((2, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    grads = jax.jit(
        jax.grad(lambda params: (model.apply({**variables, "params": params}, images)[0] * jnp.arange(2.0)[None]).sum())
    )(variables["params"])
    assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(grads["layer4_0"]))


@ids([row for row in CLASSIFIERS if row.run])
def test_backbone_without_head(row):
    model, images = jv.get_model(row.name, num_classes=0), inputs(row)
    (pooled, features), variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert pooled.shape == (2, features[model.feature_names[-1]].shape[-1])
    assert not {"fc", "classifier_1"} & set(variables["params"])


def test_dilation_keeps_the_map():
    model = jv.get_model("resnet18", dilate=(False, True, True), num_classes=0)
    (_, features), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert [features[name].shape[1] for name in model.feature_names] == [32, 16, 8, 8, 8]


@ids([row for row in DETECTORS if row.run])
def test_detector(row):
    model, images = jv.get_model(row.name, **row.options), inputs(row)
    if hasattr(model, "proposals"):  # every anchor, so that every level learns
        model = model.clone(proposals=model.proposals.clone(samples=10_000))
    variables = variables_of(model, images)
    sizes = jnp.array([[row.size, row.size], [row.size / 2, row.size]])
    found = jax.jit(lambda v, x, s: model.apply(v, x, s, method="detect"))(variables, images, sizes)
    assert found.boxes.shape == (2, model.max_detections, 4)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(found))
    limits = jnp.concatenate([sizes[:, None, ::-1], sizes[:, None, ::-1]], axis=-1)
    assert bool((found.boxes <= limits).all()) and bool((found.boxes >= 0).all())
    padding = ~found.valid
    assert bool(jnp.where(padding, found.labels == -1, found.labels >= 0).all())
    assert bool(jnp.where(padding, found.scores == 0, found.scores > 0).all())
    assert bool((jnp.diff(found.scores, axis=1) <= 0).all())
    truth = targets(row)

    def loss(params, truth):
        (loss, metrics), _ = model.apply(
            {**variables, "params": params}, images, truth, sizes, train=True, method="loss",
            rngs={"sample": jax.random.key(2)}, mutable=["batch_stats"],
        )  # fmt: skip
        return loss, metrics

    grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (total, metrics), grads = grad(variables["params"], truth)
    assert np.isclose(total, sum(value for name, value in metrics.items() if name != "loss"))
    silent = [path for path, leaf in jax.tree.leaves_with_path(grads) if not jnp.any(leaf != 0)]
    assert not silent, f"no gradient reaches {[jax.tree_util.keystr(path) for path in silent]}"
    empty = truth._replace(valid=jnp.zeros_like(truth.valid))  # images without objects
    (total, metrics), grads = grad(variables["params"], empty)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((total, grads)))
    assert all(value == 0 for name, value in metrics.items() if name in ("loss_box", "loss_mask", "loss_rpn_box"))
    one_pixel, outside, across = [40, 40, 41, 41], [row.size + 5, 8, row.size + 25, 30], [-20, -20, 10, 12]
    odd = truth._replace(boxes=jnp.tile(jnp.array([one_pixel, outside, across], jnp.float32)[None], (2, 1, 1)))
    (total, _), grads = grad(variables["params"], odd)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((total, grads)))


@ids([row for row in DETECTORS if row.run], slow={"retinanet_small", "multibox_small"})
def test_detection_reaches_back_to_the_pixels(row):
    model, images = jv.get_model(row.name, score_threshold=0.0, **row.options), inputs(row, batch=1)
    variables = jax.jit(model.init)(jax.random.key(0), images)  # drawn ones saturate scores and boxes

    def parts(images):
        found = model.apply(variables, images, method="detect")
        masks = [] if found.masks is None else [found.masks[0, 0].sum()]
        return jnp.stack([found.scores[0, 0], found.boxes[0].sum(), *masks])

    for gradient in jax.jit(jax.jacrev(parts))(images):
        assert bool(jnp.isfinite(gradient).all()) and bool(jnp.any(gradient != 0))


def test_any_classifier_can_be_the_backbone():
    model = jv.get_model("maskrcnn_fpn", backbone="squeezenet1_1", num_classes=3)
    found, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 96, 96, 3)))
    assert found[0].masks.shape == (1, 100, 28, 28)


def test_the_axis_reaches_every_part():
    model = jv.get_model("maskrcnn_fpn", backbone="resnet18", num_classes=3, axis_name="data")
    assert model.axis_name == model.backbone.axis_name == model.proposals.axis_name == "data"


def test_targets_without_a_single_row():
    model, images = jv.get_model("maskrcnn_small", num_classes=3), jnp.zeros((1, 64, 64, 3))
    none = jv.Targets(
        jnp.zeros((1, 0, 4)), jnp.zeros((1, 0), int), jnp.zeros((1, 0), bool), jnp.zeros((1, 0, 64, 64), bool)
    )
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    loss, _ = jax.eval_shape(
        lambda v: model.apply(v, images, none, method="loss", rngs={"sample": jax.random.key(0)}), variables
    )
    assert loss.shape == ()


def test_unknown_name_suggests():
    with pytest.raises(ValueError, match="did you mean 'resnet50'"):
        jv.get_model("resnet_50")
