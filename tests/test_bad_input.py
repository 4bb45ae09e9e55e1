"""Bad input as a user meets it: the message names the file, the field and the remedy, and nothing half-written stays.

Each reader's own cases are tested beside it (tests/data, tests/weights, tests/train); here are the paths through them.
"""

import copy
import json
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import jaxvision as jv
from experiments import detection, train
from experiments.config import Coco, Config
from experiments.reading import train_batches
from jaxvision import train as training
from tests.train.task import Batches

# pycocotools' own decode warns under numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

GOOD = {
    "images": [{"id": i, "file_name": f"{i}.jpg", "height": 48, "width": 64} for i in (1, 2)],
    "annotations": [
        {"id": i, "image_id": i, "category_id": 3, "bbox": [8, 8, 30, 20], "segmentation": [[8, 8, 38, 8, 38, 28]]}
        for i in (1, 2)
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 6, "name": "dog"}],
}


def configure(folder, *, change=None, on_error="raise"):
    """A run on two photographs, whose second annotation is changed (None removes a field)."""
    content = copy.deepcopy(GOOD)
    for name, value in (change or {}).items():
        content["annotations"][1][name] = value
        if value is None:
            del content["annotations"][1][name]
    (folder / "instances.json").write_text(json.dumps(content))
    for index in (1, 2):
        pixels = np.random.default_rng(index).integers(0, 255, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.jpg")
    return Config(
        data=Coco(folder, folder / "instances.json", on_error=on_error),
        model="maskrcnn_small",
        image_size=((64, 64),),
        batch_size=2,
        workers=0,
        output=folder / "run",
    )


FAULTS = {
    "truncated photograph": ({}, r"2\.jpg: not a readable image"),
    "missing key": ({"bbox": None}, r"instances\.json: annotation 2: lacks \['bbox'\]"),
    "negative width": ({"bbox": [38, 8, -30, 20]}, r"instances\.json: annotation 2: bbox .* has a negative width"),
    "unknown category": ({"category_id": 4}, r"instances\.json: annotation 2: category_id 4 is not in the list"),
}


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_data_set_stops_the_run_before_it_writes_or_is_passed_over(tmp_path, fault, on_error):
    change, message = FAULTS[fault]
    config = configure(tmp_path, change=change, on_error=on_error)
    if fault == "truncated photograph":
        path = tmp_path / "2.jpg"
        path.write_bytes(path.read_bytes()[:-300])
    if on_error == "raise":
        with pytest.raises(ValueError, match=message) as error:
            train.run(config)
        assert "Mend them, or pass on_error='skip'" in str(error.value)
        assert [path.name for path in config.output.iterdir()] == [".lock"]  # nothing that a later run could meet
    else:
        source, _ = detection.sources(config)
        batch = next(train_batches(config, detection.rows(config), source))
        assert np.isfinite(batch["images"]).all() and batch["targets"].valid[batch["image_ids"] == 1].any()
        assert not batch["targets"].valid[batch["image_ids"] == 2].any()
        assert len(source.problems) == 1


def empty_variables(num_classes):
    model = jv.get_model("maskrcnn_small", num_classes=num_classes)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return model, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_weights_of_a_detector_with_other_classes(tmp_path):
    save_file(jv.to_torch(*empty_variables(3)), tmp_path / "three.safetensors")
    with pytest.raises(ValueError, match="num_classes=") as error:
        jv.load_weights(jv.get_model("maskrcnn_small", num_classes=5), tmp_path / "three.safetensors")
    for layer in ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits"):
        assert f"roi_heads.{layer}.weight" in str(error.value)


def test_resuming_a_run_with_other_classes_leaves_it_alone(tmp_path):
    tx = training.optimizer("sgd", learning_rate=0.1)
    before, now = (training.create_state(jax.random.key(0), empty_variables(k)[1], tx) for k in (3, 5))
    writer = training.JsonlWriter(tmp_path)
    writer.start(0)
    writer.scalars(1, {"loss": 1.0})
    writer.close()
    checkpointer = training.Checkpointer(tmp_path)
    checkpointer.save(1, before, None, {"classes": 3}, {"best": None, "stale": 0})
    written = contents(tmp_path)
    with pytest.raises(ValueError, match="does not fit the model") as error:
        training.fit(
            training.parallelize(lambda state, batch: (state, {}), devices=jax.devices()[:1]),
            now,
            Batches(),
            total_steps=2,
            checkpointer=checkpointer,
            config={"classes": 5},
            checkpoint_every=1,
            writers=[training.JsonlWriter(tmp_path)],
        )
    assert "params/box_head/cls_score/kernel: float32[256, 4] in the checkpoint, float32[256, 6]" in str(error.value)
    assert f"{tmp_path}/last/1" in str(error.value) and "another output folder" in str(error.value)
    assert contents(tmp_path) == written


class Attack:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_weights_that_would_run_a_command(tmp_path):
    path, canary = tmp_path / "weights.pth", tmp_path / "canary"
    path.write_bytes(pickle.dumps({"state_dict": Attack(f"touch {canary}")}))
    with pytest.raises(ValueError, match=r"weights\.pth asks for 'posix\.system'.*safetensors"):
        jv.load_weights("squeezenet1_1", path)
    assert not canary.exists()
