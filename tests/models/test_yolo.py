"""YOLO v1: the layers of figure 3, decoding and loss against loops written from darknet's rules, a batch by heart."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from learning import random_variables

import jaxvision as jv
from jaxvision.models.yolo import YOLO, Cells, assign, squared_errors
from tests.models import darknet

TINY = YOLO((((4, 3, 2),), ((6, 3, 1), (8, 1, 1))), hidden=24, grid=3, image_size=48, num_classes=2)
IMAGES = jax.random.normal(jax.random.key(1), (2, 48, 48, 3))


def random_cells(seed, grid=3, per_cell=2, classes=4):
    rng = np.random.default_rng(seed)
    boxes = np.concatenate([rng.random((grid, grid, per_cell, 2)), rng.normal(0, 0.6, (grid, grid, per_cell, 2))], -1)
    return Cells(rng.normal(0.3, 0.5, (grid, grid, classes)), rng.normal(0.3, 0.5, (grid, grid, per_cell)), boxes)


def random_targets(seed, count=6, size=48, classes=4):
    rng = np.random.default_rng(seed)
    corners = rng.random((count, 2)) * 0.8 * size
    boxes = np.concatenate([corners, corners + 1 + rng.random((count, 2)) * 0.5 * size], axis=1)
    return jv.Targets(boxes, rng.integers(0, classes, count), rng.random(count) < 0.8)


def reference_loss(cells, targets, size):
    """Equation 3 cell by cell, as darknet's detection layer goes through them; no lambdas."""
    grid, per_cell = cells.confidences.shape[1:]
    truth = {}
    for (left, top, right, bottom), label, valid in zip(*targets[:3]):
        box = np.array([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]) / size
        place = (int(box[1] * grid), int(box[0] * grid))
        if valid and box[2] > 0 and box[3] > 0:
            truth.setdefault(tuple(min(max(i, 0), grid - 1) for i in place), (box, label))  # the first one stays
    sums = dict.fromkeys(("loss_box", "loss_object", "loss_no_object", "loss_class"), 0.0)
    for row in range(grid):
        for column in range(grid):
            confidences, raw = cells.confidences[row, column], cells.boxes[row, column]
            best = None
            if (row, column) in truth:
                box, label = truth[row, column]
                predicted = [[(x + column) / grid, (y + row) / grid, w * w, h * h] for x, y, w, h in raw]
                overlaps = [darknet.iou(one, box) for one in predicted]
                distances = [np.sqrt(((np.array(one) - box) ** 2).sum()) for one in predicted]
                best = int(np.argmax(overlaps) if max(overlaps) > 0 else np.argmin(distances))
                wanted = [box[0] * grid - column, box[1] * grid - row, np.sqrt(box[2]), np.sqrt(box[3])]
                sums["loss_box"] += ((raw[best] - wanted) ** 2).sum()
                sums["loss_object"] += (confidences[best] - overlaps[best]) ** 2
                one_hot = np.arange(cells.classes.shape[-1]) == label
                sums["loss_class"] += ((cells.classes[row, column] - one_hot) ** 2).sum()
            sums["loss_no_object"] += sum(confidences[i] ** 2 for i in range(per_cell) if i != best)
    return sums


def in_float32(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32) if leaf.dtype == np.float64 else leaf, tree)


@pytest.mark.parametrize("seed", range(12))
def test_loss(seed):
    cells, targets = in_float32((random_cells(seed), random_targets(seed)))
    terms = jax.jit(lambda cells: squared_errors(cells, targets, image_size=48))(cells)
    wanted = reference_loss(cells, targets, 48)
    assert terms.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-4, err_msg=name)


def test_factors_and_mean_over_images():
    variables = random_variables(TINY, IMAGES)
    targets = jax.tree.map(
        lambda *leaves: np.stack(leaves), *in_float32([random_targets(i, classes=2) for i in (0, 1)])
    )
    apply = jax.jit(lambda variables: TINY.apply(variables, IMAGES, targets, method="loss"))
    loss, metrics = apply(variables)
    cells = jax.jit(lambda variables: TINY.apply(variables, IMAGES, method="raw"))(variables)
    both = [reference_loss(*jax.tree.map(lambda x, i=i: np.asarray(x[i]), (cells, targets)), 48) for i in (0, 1)]
    for name, factor in {"loss_box": 5, "loss_object": 1, "loss_no_object": 0.5, "loss_class": 1}.items():
        np.testing.assert_allclose(metrics[name], factor * np.mean([one[name] for one in both]), rtol=1e-4)
    np.testing.assert_allclose(loss, sum(value for name, value in metrics.items() if name != "loss"), rtol=1e-6)
    assert metrics["loss"] == loss


def test_first_object_of_a_cell_and_edges_of_the_image():
    """Centres in (x, y): one cell twice, beyond the right edge, on the lower edge; an object without area."""
    truth = np.array(
        [[0.1, 0.1, 0.3, 0.2], [0.2, 0.2, 0.2, 0.2], [1.2, 0.5, 0.9, 0.1], [0.5, 1, 0.1, 0.1], [0.9, 0.9, 0, 0.1]]
    )
    owner, responsible, _ = assign(random_cells(0).boxes.astype(np.float32), truth.astype(np.float32), np.ones(5, bool))
    np.testing.assert_array_equal(owner, [[0, -1, -1], [-1, -1, 2], [-1, 3, -1]])
    np.testing.assert_array_equal(responsible.sum(-1), np.asarray(owner) >= 0)
    owner, responsible, _ = assign(
        random_cells(0).boxes.astype(np.float32), truth.astype(np.float32), np.array([False, True, False, False, True])
    )
    np.testing.assert_array_equal(owner, [[1, -1, -1], [-1, -1, -1], [-1, -1, -1]])


def test_the_nearest_box_where_none_overlaps():
    boxes = np.zeros((1, 1, 2, 4), np.float32)
    boxes[0, 0, :, :2] = [[0.9, 0.9], [0.7, 0.7]]
    boxes[0, 0, :, 2:] = 0.1
    truth = np.array([[0.2, 0.2, 0.1, 0.1]], np.float32)
    for order in (slice(None), slice(None, None, -1)):
        _, responsible, overlap = assign(boxes[:, :, order], truth, np.ones(1, bool))
        np.testing.assert_array_equal(responsible[0, 0], [False, True][order])
        np.testing.assert_array_equal(overlap, 0)


def test_gradients(x64):
    """Of the responsible box's coordinates and confidence, and of nothing else; the IoU is a constant."""
    cells, targets = random_cells(3), random_targets(3)._replace(valid=np.ones(6, bool))

    def loss(cells):
        return sum(squared_errors(cells, targets, image_size=48).values())

    _, responsible, overlap = assign(cells.boxes, jv.ops.boxes.xyxy_to_cxcywh(targets.boxes) / 48, targets.valid)
    grads = jax.grad(loss)(cells)
    np.testing.assert_array_equal((grads.boxes != 0).all(-1), responsible)
    np.testing.assert_array_equal((grads.boxes != 0).any(-1), responsible)
    wanted = 2 * np.where(responsible, cells.confidences - overlap, cells.confidences)
    np.testing.assert_allclose(grads.confidences, wanted, rtol=1e-12)

    def without_the_overlap(cells):  # finite differences would move it
        terms = squared_errors(cells, targets, image_size=48)
        return terms["loss_box"] + terms["loss_no_object"] + terms["loss_class"]

    check_grads(without_the_overlap, (cells,), order=1, modes=("fwd", "rev"))


@pytest.mark.parametrize("seed", range(3))
def test_decoding(seed):
    """The layout of the output vector, roots, cell offsets, scores, and NMS within each class."""
    model = YOLO(max_detections=400)
    cells = random_cells(seed, grid=7, classes=20)
    vector = np.concatenate([part.reshape(-1) for part in cells]).astype(np.float32)
    split = model._cells(vector[None])
    for part, wanted in zip(split, cells):
        np.testing.assert_array_equal(part[0], wanted.astype(np.float32))
    found = jax.jit(model._choose)(jax.tree.map(lambda leaf: leaf[0], split), jnp.array([448.0, 448.0]))
    wanted = darknet.detections(vector.astype(np.float64), model)
    assert len(wanted) > 50
    darknet.assert_same_detections(found, wanted)


def test_layers_of_figure_3():
    model = jv.get_model("yolo_v1")
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 448, 448, 3)))["params"]
    assert len(model.darknet_layers) == 26 and len(shapes) == 26
    windows = [shapes[f"conv{i}"]["kernel"].shape for i in range(1, 25)]
    assert [shape[0] for shape in windows] == [7, 3, 1, 3, 1, 3, *[1, 3] * 5, *[1, 3] * 2, 3, 3, 3, 3]
    assert [shape[3] for shape in windows][:6] == [64, 192, 128, 256, 256, 512]
    assert shapes["fc1"]["kernel"].shape == (7 * 7 * 1024, 4096) and shapes["fc2"]["kernel"].shape == (4096, 1470)
    cells = jax.eval_shape(lambda v: model.apply(v, jnp.zeros((1, 448, 448, 3)), method="raw"), {"params": shapes})
    assert cells.boxes.shape == (1, 7, 7, 2, 4)  # 98 boxes


def test_leaky_slope_and_flatten_in_chw_order():
    variables = random_variables(TINY, IMAGES)
    params = jax.tree.map(np.asarray, variables["params"])
    found, features = jax.jit(
        lambda v: (TINY.apply(v, IMAGES, method="raw"), TINY.apply(v, IMAGES, method="features"))
    )(variables)
    x = np.asarray(features["c2"]).transpose(0, 3, 1, 2).reshape(2, -1)
    assert (x < 0).any()
    x = x @ params["fc1"]["kernel"] + params["fc1"]["bias"]
    x = np.where(x > 0, x, 0.1 * x) @ params["fc2"]["kernel"] + params["fc2"]["bias"]
    np.testing.assert_allclose(found.classes.reshape(2, -1), x[:, :18], rtol=1e-3, atol=1e-4)


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="images of 48 x 48 pixels only, not 48 x 64"):
        jax.eval_shape(TINY.init, jax.random.key(0), jnp.zeros((1, 48, 64, 3)))
    with pytest.raises(ValueError, match="last map has 12 x 12 cells: give grid=12"):
        jax.eval_shape(TINY.clone(hidden=0).init, jax.random.key(0), IMAGES)


def test_targets_without_a_single_row():
    none = jv.Targets(jnp.zeros((2, 0, 4)), jnp.zeros((2, 0), int), jnp.zeros((2, 0), bool))
    loss, metrics = jax.jit(lambda v: TINY.apply(v, IMAGES, none, method="loss"))(random_variables(TINY, IMAGES))
    assert metrics["loss_no_object"] == loss > 0
    assert metrics["loss_box"] == metrics["loss_object"] == metrics["loss_class"] == 0


def test_devices_agree_with_one():
    """On loss and gradients: batch norm and dropout are those of the whole batch."""
    model = TINY.clone(batch_norm=True)
    images = jax.random.normal(jax.random.key(2), (4, 48, 48, 3))
    targets = jax.tree.map(
        lambda *leaves: np.stack(leaves), *in_float32([random_targets(i, classes=2) for i in range(4)])
    )
    variables = random_variables(model, images)

    def grad(model, images, targets):
        def loss(params):
            options = dict(train=True, method="loss", rngs={"sample": jax.random.key(3)}, mutable=["batch_stats"])
            return model.apply({**variables, "params": params}, images, targets, **options)[0][0]

        return jax.value_and_grad(loss)(variables["params"])

    def shared(images, targets):
        return jax.lax.pmean(grad(model.clone(axis_name="data"), images, targets), "data")

    parts = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), (images, targets))
    found = jax.tree.map(lambda leaf: leaf[0], jax.pmap(shared, axis_name="data")(*parts))
    wanted = jax.jit(lambda *batch: grad(model, *batch))(images, targets)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max()), found, wanted)


def test_one_batch_is_learnt_by_heart():
    model = TINY.clone(batch_norm=True, dropout=0.0, score_threshold=0.1)
    targets = jv.Targets(
        jnp.array([[[4.0, 4, 20, 24], [20, 22, 46, 44]], [[30.0, 2, 44, 14], [0, 0, 0, 0]]]),
        jnp.array([[0, 1], [1, 0]]),
        jnp.array([[True, True], [True, False]]),
    )
    variables, tx = random_variables(model, IMAGES), optax.adam(5e-3)

    @jax.jit
    def learn(params):
        def step(state, _):
            params, opt_state = state

            def loss(params):
                return model.apply({**variables, "params": params}, IMAGES, targets, method="loss")[0]

            value, grads = jax.value_and_grad(loss)(params)
            updates, opt_state = tx.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), value

        (params, _), values = jax.lax.scan(step, (params, tx.init(params)), length=300)
        return model.apply({**variables, "params": params}, IMAGES, method="detect"), values

    found, values = learn(variables["params"])
    assert values[-1] < values[0] / 100
    for image in (0, 1):
        wanted = targets.boxes[image][targets.valid[image]]
        assert found.valid[image].sum() == len(wanted)
        best = jv.ops.boxes.pairwise(jv.ops.boxes.iou, wanted, found.boxes[image])
        assert (best.max(axis=1) > 0.8).all()
        np.testing.assert_array_equal(
            found.labels[image][best.argmax(axis=1)], targets.labels[image][targets.valid[image]]
        )
