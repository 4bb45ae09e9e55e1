"""Faster R-CNN on a single map: its composition, detections, losses and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvision as jv
from jaxvision.layers.rpn import RPN
from jaxvision.models.faster_rcnn_c4 import rcnn_c4, rcnn_dc5
from jaxvision.models.resnet import ResNet
from jaxvision.typing import Targets

TARGETS = Targets(
    jnp.array([[[8.0, 10, 42, 50], [0, 0, 0, 0]], [[0, 0, 0, 0]] * 2]),
    jnp.array([[2, 0], [0, 0]]),
    jnp.array([[True, False], [False, False]]),
)
EMPTY = TARGETS._replace(valid=jnp.zeros_like(TARGETS.valid))


def narrow(composition):
    return composition(
        ResNet((1, 1, 1, 2), "bottleneck", num_classes=0, width=8, stride_in_1x1=True),
        num_classes=3,
        rpn=RPN(sizes=((16.0, 32.0),), rounded=False, post_nms=(24, 12), beta=0.0),
        samples=16,
        score_threshold=0.0,
        max_detections=20,
    )


# DC5 differs in its backbone, which is looked at below, and has the head of the detectors on a pyramid.
@pytest.fixture(scope="module", params=[rcnn_c4, pytest.param(rcnn_dc5, marks=pytest.mark.slow)])
def detector(request):
    """targets -> (detections, losses, gradients to parameters and pixels) of two images, in NumPy's arrays."""
    model = narrow(request.param)
    images = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
    variables = jax.jit(model.init)(jax.random.key(0), images)

    def loss(params, images, targets):
        return model.apply(
            {**variables, "params": params}, images, targets, method="loss", rngs={"sample": jax.random.key(2)}
        )

    def everything(images, targets):
        gradients, terms = jax.grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], images, targets)
        return model.apply(variables, images, method="detect"), terms, *gradients

    compiled = jax.jit(everything)
    return lambda targets: jax.tree.map(np.asarray, compiled(images, targets))


def test_detections_and_losses(detector):
    found, terms, to_parameters, to_pixels = detector(TARGETS)
    assert found.boxes.shape == (2, 20, 4) and found.valid.all() and set(found.labels[0].tolist()) == {0, 1, 2}
    assert (found.boxes >= 0).all() and (found.boxes <= 64).all()
    assert terms.keys() == {"loss", "loss_objectness", "loss_rpn_box", "loss_class", "loss_box"}
    assert all(term > 0 for term in terms.values())
    assert np.isfinite(to_pixels).all() and all(image.any() for image in to_pixels)
    silent = [jax.tree_util.keystr(path) for path, leaf in jax.tree.leaves_with_path(to_parameters) if not leaf.any()]
    # Gradients of absolute differences are signs, whose sum over a few boxes may be zero.
    assert set(silent) <= {"['box_head']['bbox_pred']['bias']", "['proposals']['bbox_pred']['bias']"}


def test_without_objects_boxes_do_not_train(detector):
    _, terms, gradients, _ = detector(EMPTY)
    assert terms["loss_box"] == terms["loss_rpn_box"] == 0 and terms["loss_class"] > 0 and terms["loss_objectness"] > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    np.testing.assert_array_equal(gradients["box_head"]["bbox_pred"]["kernel"], 0)


@pytest.mark.parametrize(("composition", "last"), [(rcnn_c4, "c4"), (rcnn_dc5, "c5")])
def test_one_map_at_stride_16(composition, last):
    model = narrow(composition)
    (found, features), variables = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 64, 96, 3)))
    assert model.roi_levels == (last,) and tuple(features) == model.backbone.feature_names
    assert model.backbone.feature_names[-1] == last and features[last].shape[1:3] == (4, 6)
    assert found.boxes.shape == (1, 20, 4)
    where = {
        part: [name for name in parameters if "layer4" in name] for part, parameters in variables["params"].items()
    }
    place = "box_head" if last == "c4" else "backbone"
    assert where == {"backbone": [], "proposals": [], "box_head": [], place: ["layer4_0", "layer4_1"]}


def test_the_head_is_the_last_stage_of_the_network():
    """On the whole c4 it computes the classifier's pooled c5: with the same variables the values are the same."""
    network = ResNet((1, 1, 1, 2), "bottleneck", num_classes=0, width=8, stride_in_1x1=True)
    head = rcnn_c4(network, num_classes=3).box_head
    images = jax.random.normal(jax.random.key(1), (1, 64, 64, 3))

    @jax.jit
    def both():
        variables = network.init(jax.random.key(0), images)
        pooled, features = network.apply(variables, images)
        own = head.init(jax.random.key(2), features["c4"])["params"]
        last = {
            collection: {name: part for name, part in parts.items() if name.startswith("layer4")}
            for collection, parts in variables.items()
        }
        last["params"] = {**own, **last["params"]}
        return head.apply(last, features["c4"])[0], pooled @ own["cls_score"]["kernel"]  # the biases are zero

    np.testing.assert_allclose(*both(), rtol=1e-5, atol=1e-6)


def dilations(network):
    """Of the 3x3 convolutions of the last stage."""
    found = []

    def watch(call, args, kwargs, context):
        if context.module.name == "conv2" and context.module.path[-2].startswith("layer4"):
            found.append((context.module.dilation, context.module.strides))
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return found


def test_every_block_of_the_last_stage_is_dilated():
    """As in Detectron2; in torchvision's order the first block is not."""
    network = ResNet((1, 1, 1, 3), "bottleneck", num_classes=0, width=8)
    assert dilations(network) == [(1, 2), (1, 1), (1, 1)]
    assert dilations(network.clone(dilate=(False, False, True))) == [(1, 1), (2, 1), (2, 1)]
    assert dilations(rcnn_dc5(network, num_classes=3).backbone) == [(2, 1)] * 3


@pytest.mark.parametrize("compose", [rcnn_c4, rcnn_dc5])
def test_networks_of_other_depths_are_refused(compose):
    with pytest.raises(ValueError, match="four stages is needed, not of 3"):
        compose(ResNet((1, 1, 1), "basic"), num_classes=3)
    with pytest.raises(ValueError, match="at most four stages"):
        jax.eval_shape(ResNet((1,) * 5, "basic").init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))


def test_backbones_by_name():
    deep = jv.get_model("fasterrcnn_c4", backbone="resnet101", axis_name="data")
    assert deep.backbone.stage_sizes == (3, 4, 23) and not deep.backbone.stride_in_1x1
    assert deep.axis_name == deep.proposals.axis_name == deep.backbone.axis_name == "data"
    assert deep.box_head.first.norm.axis_name == "data" and deep.box_head.first.norm.frozen
    with pytest.raises(ValueError, match="must be a ResNet"):
        jv.get_model("fasterrcnn_dc5", backbone="vgg16")
