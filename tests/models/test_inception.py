"""GoogLeNet and Inception v3: auxiliary heads, transform_input, maps of the papers' tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learning import random_variables

import jaxvision as jv
from jaxvision.models.googlenet import transform

# Size of the images, auxiliary logits, parameters without the heads.
NAMES = {"googlenet": (224, {"aux1", "aux2"}, 6_624_904), "inception_v3": (299, {"aux1"}, 23_834_568)}


def abstract(model, size, **options):
    return jax.eval_shape(
        lambda: model.init_with_output(
            {"params": jax.random.key(0), "dropout": jax.random.key(0)}, jnp.zeros((2, size, size, 3)), **options
        )
    )


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("googlenet", [(112, 64), (56, 192), (28, 480), (14, 832), (7, 1024)]),
        ("inception_v3", [(147, 64), (71, 192), (35, 288), (17, 768), (8, 2048)]),
    ],
)
def test_maps_of_the_table(name, wanted):
    (_, features), _ = abstract(jv.get_model(name), NAMES[name][0])
    assert tuple(features) == ("c1", "c2", "c3", "c4", "c5")
    assert [features[f"c{k}"].shape[2:] for k in range(1, 6)] == wanted


@pytest.mark.parametrize("name", NAMES)
def test_auxiliary_heads(name):
    """Their variables are there whatever ``train`` is; their logits in training alone; neither without."""
    size, heads, parameters = NAMES[name]
    model = jv.get_model(name)
    (logits, quiet), variables = abstract(model, size)
    (_, loud), in_training = abstract(model, size, train=True)
    assert logits.shape == (2, 1000) and variables == in_training
    assert loud.keys() - quiet.keys() == heads and not heads & set(model.feature_names)
    assert all(loud[head].shape == (2, 1000) for head in heads)
    _, without = abstract(model.clone(aux_logits=False), size)
    lost = variables["params"].keys() - without["params"].keys()
    assert lost == ({"AuxLogits"} if name == "inception_v3" else heads)
    assert sum(leaf.size for leaf in jax.tree.leaves(without["params"])) == parameters
    _, headless = abstract(model.clone(num_classes=0), size)
    assert headless["params"].keys() == without["params"].keys() - {"fc"}


def test_small_images_initialise_inception_and_do_not_train_its_head():
    model = jv.get_model("inception_v3")
    assert abstract(model, 75)[1] == abstract(model, 299)[1]
    with pytest.raises(ValueError, match="aux_logits=False"):
        abstract(model, 96, train=True)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_transform_input(dtype):
    """Undo ImageNet's normalisation, then map 0 ... 1 to -1 ... 1."""
    pixels = np.array([0.0, 0.25, 1.0])[None, None, :, None] * np.ones((1, 1, 1, 3))
    normalised = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    moved = transform(jnp.asarray(normalised, dtype))
    assert moved.dtype == dtype
    np.testing.assert_allclose(moved.astype(np.float32), 2 * pixels - 1, atol=1e-6 if dtype == jnp.float32 else 2e-2)
    with pytest.raises(ValueError, match="4 channels"):
        transform(jnp.zeros((1, 2, 2, 4)))


def test_transform_input_comes_first():
    for name in NAMES:
        model, images = jv.get_model(name, num_classes=0), jax.random.normal(jax.random.key(1), (1, 75, 75, 3))
        variables = random_variables(model, images)
        stem = jax.jit(lambda model, variables, images: model.apply(variables, images)[1]["c1"], static_argnums=0)
        np.testing.assert_allclose(
            stem(model.clone(transform_input=True), variables, images),
            stem(model, variables, transform(images)),
            rtol=1e-5,
            atol=1e-5,
        )
