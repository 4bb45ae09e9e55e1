"""Records hold what was published; preprocessing gives what torchvision's presets give."""

import numpy as np
import pytest
from PIL import Image

from jaxvision import registry
from jaxvision.weights.records import Preprocessing, _records, get_record, list_weights

MODELS = [name for name in registry.list_models() if list_weights(name)]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_every_record_has_a_model():
    assert {record.model for record in _records()} == set(MODELS)
    assert len(MODELS) == 47 and len(_records()) == 57


@pytest.mark.parametrize("model", MODELS)
def test_records_are_complete(model):
    for name in list_weights(model):
        record = get_record(model, name)
        assert (record.model, record.name) == (model, name)
        assert len(record.sha256) in (8, 10, 64) and int(record.sha256, 16) >= 0
        assert record.licence and record.recipe.startswith("https://") and record.num_params > 10**6
        registry.get_model(model, **record.model_options)
        if record.model_options.get("num_classes") == 0:
            assert not record.categories and not record.metrics
        else:
            classes = {"classification": 1000, "detection": 90, "segmentation": 21}
            assert len(record.categories) == classes[registry.model_task(model)]
        if record.url.startswith("https://"):
            assert record.url.endswith(f"-{record.sha256}.pth")
            assert record.metrics or not record.categories
    assert sum(get_record(model, name).default for name in list_weights(model)) == 1
    assert get_record(model) == get_record(model, "DEFAULT")


def test_known_facts():
    assert list_weights("resnet50") == ["IMAGENET1K_V1", "IMAGENET1K_V2"]
    record = get_record("resnet50")
    assert record.name == "IMAGENET1K_V2" and record.metrics["ImageNet-1K"]["acc@1"] == 80.858
    assert record.preprocessing == Preprocessing(232, crop=224)
    assert record.categories[0] == "tench" and record.categories[999] == "toilet tissue"
    coco = get_record("maskrcnn_resnet50_fpn", "COCO_V1")
    assert coco.categories[0] == "person" and coco.categories[89] == "toothbrush"
    assert coco.model_options == {"norm_epsilon": 0.0}
    for name, eps in (("retinanet_resnet50_fpn", {"norm_epsilon": 0.0}), ("fasterrcnn_resnet50_fpn_v2", {})):
        assert get_record(name).model_options == eps
    ssd = get_record("ssd300_vgg16").preprocessing
    assert ssd._size(640, 480) == (300, 300) and ssd.std == (1 / 255,) * 3
    assert get_record("inception_v3").preprocessing == Preprocessing(342, crop=299)
    assert get_record("googlenet").model_options == {"transform_input": True}
    fcn = get_record("fcn_resnet50")
    assert fcn.categories[0] == "background" and fcn.categories[20] == "tvmonitor"
    assert fcn.preprocessing == Preprocessing(520) and fcn.metrics["COCO-val2017-VOC-labels"]["miou"] == 60.5
    features = get_record("vgg16", "IMAGENET1K_FEATURES")
    assert features.preprocessing.mean == (0.48235, 0.45882, 0.40784) and features.preprocessing.std == (1 / 255,) * 3
    assert get_record("vgg16").name == "IMAGENET1K_V1"


def test_unknown_names():
    with pytest.raises(ValueError, match=r"no weights 'V9' for 'resnet50'; there are \['IMAGENET1K_V1'"):
        get_record("resnet50", "V9")
    with pytest.raises(ValueError, match="no weights for 'resnet51'"):
        get_record("resnet51")
    assert list_weights("resnet51") == []


def slow_preprocessing(pixels, *, shorter_side, crop, mean, std):
    """Resize by Pillow, then each output pixel on its own."""
    height, width = pixels.shape[:2]
    size = (shorter_side, int(shorter_side * height / width))
    if width > height:
        size = (int(shorter_side * width / height), shorter_side)
    resized = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR), np.float64)
    top, left = round((size[1] - crop) / 2), round((size[0] - crop) / 2)
    result = np.zeros((crop, crop, 3))
    for channel in range(3):
        part = resized[top : top + crop, left : left + crop, channel]
        result[..., channel] = (part / 255 - mean[channel]) / std[channel]
    return result


@pytest.mark.parametrize("shape", [(61, 40), (40, 61), (50, 50), (20, 31)])
def test_classification_preprocessing(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    mean, std = IMAGENET
    ours = Preprocessing(30, crop=25)(pixels)
    assert ours.dtype == np.float32
    expected = slow_preprocessing(pixels, shorter_side=30, crop=25, mean=mean, std=std)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_bgr_bytes():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    ours = Preprocessing(9, channels="BGR", scale=1.0, mean=(1.0, 2.0, 3.0), std=(1.0, 1.0, 2.0))(pixels)
    np.testing.assert_allclose(ours, (pixels[..., ::-1].astype(float) - [1, 2, 3]) / [1, 1, 2], rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((480, 640), (800, 1066)), ((427, 640), (800, 1199)), ((200, 1000), (266, 1333)), ((1000, 200), (1333, 266))],
)
def test_detection_size(shape, expected):
    height, width = shape
    assert Preprocessing(800, longest_side=1333)._size(width, height)[::-1] == expected


def test_takes_any_image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
    take = Preprocessing(10)
    expected = take(pixels)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    alpha = np.dstack([pixels, np.full((12, 10), 128, np.uint8)])
    for image in [Image.fromarray(pixels), tmp_path / "image.png", str(tmp_path / "image.png"), alpha]:
        np.testing.assert_array_equal(take(image), expected)
    grey = take(np.repeat(pixels[..., :1], 3, axis=2))
    for image in [pixels[..., 0], pixels[..., :1], Image.fromarray(pixels[..., 0])]:
        np.testing.assert_array_equal(take(image), grey)


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)])
def test_refuses_other_arrays(image):
    with pytest.raises(ValueError, match="an image is uint8"):
        Preprocessing(4)(image)


def test_truncated_and_missing_files(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"photo\.jpg is truncated"):
        Preprocessing(4)(path)
    with pytest.raises(FileNotFoundError):
        Preprocessing(4)(tmp_path / "none.jpg")


def test_crop_must_fit():
    with pytest.raises(ValueError, match="does not fit"):
        Preprocessing(4, crop=5)
