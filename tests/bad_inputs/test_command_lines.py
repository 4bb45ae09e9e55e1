"""Command lines that name what there is not, or what is out of range: one message, with the option as it is typed."""

import contextlib
import io
import json
import shlex
import sys

import pytest
from case import Case, by_name, check
from PIL import Image

from experiments import (
    benchmark,
    config,
    data_check,
    evaluate,
    multibox_priors,
    predict,
    rcnn_svm,
    results_table,
    train,
)
from experiments.command import message, script


def printed(call):
    """Run it, and raise what it prints on stderr where it ends with another code than 0."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            return call()
    except SystemExit as end:
        if end.code in (None, 0):
            return None
        assert end.code != 0 and "Traceback" not in errors.getvalue()
        raise ValueError(" ".join(f"{errors.getvalue()} {end.code}".replace("│", " ").split())) from end


def typed(line):
    """The arguments of train.py, up to the finished config."""
    return lambda folder: printed(lambda: config.parse("", shlex.split(line.format(folder=folder))))


def run(module, line):
    """A script as a whole."""

    def call(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [module.__file__, *shlex.split(line.format(folder=folder))])
            for setting in {"use_compilation_cache", "keep_freed_memory"} & vars(module).keys():  # of the whole process
                patch.setattr(module, setting, lambda: None)
            printed(module.main)

    return call


def out_of_range(option, value, config="digit_scenes_maskrcnn"):
    shown = value.split()[0] if value else "empty"
    return Case(f"{option} {value or 'empty'}", typed(f"{config} {option} '{value}'"), (option, shown, "must be"))


# What a number may be.
RANGES = tuple(
    out_of_range(option, value)
    for option, values in {
        "--optimizer.learning-rate": ("0", "-0.1", "nan", "inf"),
        "--optimizer.momentum": ("1", "-0.5", "nan"),
        "--optimizer.weight-decay": ("-0.5", "inf"),
        "--optimizer.clip-norm": ("0", "-1", "nan"),
        "--optimizer.ema-decay": ("0", "1", "1.5"),
        "--optimizer.warmup-steps": ("-1",),
        "--optimizer.milestones": ("0",),
        "--optimizer.freeze": ("(conv", "*"),
        "--augmentation.flip": ("1.5", "-0.1", "nan"),
        "--augmentation.colour": ("2",),
        "--augmentation.mixup": ("-1", "nan"),
        "--augmentation.cutmix": ("inf",),
        "--label-smoothing": ("1", "-0.1"),
        "--batch-size": ("0", "-8"),
        "--accumulate": ("0",),
        "--steps": ("0", "-5"),
        "--eval-every": ("0",),
        "--eval-images": ("0",),
        "--eval-batch-size": ("0", "-1"),
        "--eval-crop": ("0", "1.5"),
        "--checkpoint-every": ("0",),
        "--log-every": ("0",),
        "--max-objects": ("0",),
        "--mask-side": ("1", "100000"),
        "--devices": ("0", "-1"),
        "--workers": ("-1",),
        "--worker-processes": ("-1",),
        "--seed": ("-1", "99999999999"),
        "--pictures": ("-1",),
        "--best-metric": ("",),
        "--selective-search.max-regions": ("-1",),
        "--selective-search.min-side": ("-1",),
        "--distributed.coordinator": ("localhost", "host:port"),
        "--distributed.processes": ("0",),
        "--distributed.process": ("-1",),
    }.items()
    for value in values
)

PAIRS = (
    Case("an image of no height", typed("digits --image-size 0 32"), ("--image-size", "0", "8192")),
    Case("an image of a gigapixel", typed("digits --image-size 32768 32768"), ("--image-size", "32768")),
    Case("two shapes for a classifier", typed("digits --image-size 32 64 64 32"), ("--image-size", "one shape")),
    Case("a shape twice", typed("coco_maskrcnn --image-size 64 64 64 64"), ("--image-size", "without repetition")),
    Case("a std of 0", typed("digits --std 1 1 0"), ("--std", "above 0")),
    Case("a mean of NaN", typed("digits --mean 0 0 nan"), ("--mean", "nan", "finite")),
    Case("a falling resize", typed("coco_maskrcnn --resize 1333 800"), ("--resize", "1333 800", "rising")),
    Case("a resize of a classifier", typed("digits --resize 20 30"), ("--resize", "20 30", "detectors")),
    Case("falling scales", typed("digits --augmentation.scale 2 1"), ("--augmentation.scale", "2.0 1.0", "rising")),
    Case("an enlargement of 0", typed("digits --augmentation.scale 0 1"), ("--augmentation.scale", "0.0")),
    Case("a window above all", typed("digits --augmentation.crop-area 0.5 2"), ("--augmentation.crop-area", "2.0")),
    Case(
        "milestones out of order",
        typed("coco_maskrcnn --optimizer.milestones 80000 60000"),
        ("--optimizer.milestones", "80000 60000", "rising"),
    ),
    Case(
        "a milestone twice",
        typed("coco_maskrcnn --optimizer.milestones 60000 60000"),
        ("--optimizer.milestones", "60000 60000", "without repetition"),
    ),
    Case(
        "a milestone within the warm-up",
        typed("coco_maskrcnn --optimizer.milestones 500"),
        ("--optimizer.milestones", "500", "--optimizer.warmup-steps", "1000"),
    ),
    Case(
        "steps without milestones",
        typed("digits --optimizer.schedule step"),
        ("--optimizer.milestones", "empty", "step schedule"),
    ),
    Case(
        "milestones of a cosine",
        typed("digits --optimizer.milestones 500"),
        ("--optimizer.milestones", "500", "--optimizer.schedule step"),
    ),
    Case("fewer steps than warm-up", typed("digits --steps 6"), ("--optimizer.warmup-steps", "below --steps", "6")),
    Case(
        "a batch that does not split",
        typed("digits --batch-size 10 --accumulate 3"),
        ("--batch-size", "10", "--accumulate 3"),
    ),
    Case(
        "a batch that the processes do not split",
        typed("digits --batch-size 9 --distributed.coordinator a:1 --distributed.processes 2 --distributed.process 0"),
        ("--batch-size", "9", "2 processes"),
    ),
    Case("a process without a meeting", typed("digits --distributed.process 0"), ("--distributed.coordinator",)),
    Case(
        "a meeting without processes",
        typed("digits --distributed.coordinator a:1"),
        ("--distributed.processes", "--distributed.process"),
    ),
    Case(
        "a third process of two",
        typed("digits --distributed.coordinator a:1 --distributed.processes 2 --distributed.process 2"),
        ("--distributed.process", "below the 2"),
    ),
    Case("mixup of a detector", typed("coco_maskrcnn --augmentation.mixup 0.2"), ("--augmentation.mixup", "0.2")),
    Case("cutmix of a detector", typed("coco_maskrcnn --augmentation.cutmix 1"), ("--augmentation.cutmix", "1.0")),
    Case("smooth labels of a detector", typed("coco_maskrcnn --label-smoothing 0.1"), ("--label-smoothing", "0.1")),
    Case("a bent detector", typed("coco_maskrcnn --augmentation.elastic 3"), ("--augmentation.elastic", "segmenters")),
    Case(
        "colours unlike the weights'",
        typed("digits_squeezenet --channels RGB"),
        ("--weights", "--channels BGR", "--mean 0.40787"),
    ),
    Case(
        "means unlike the backbone's",
        typed("coco_maskrcnn --backbone-weights resnet50/IMAGENET1K_V2 --mean 0 0 0"),
        ("--backbone-weights", "--channels RGB", "--mean 0.485"),
    ),
    Case("the middle of a detector's image", typed("coco_maskrcnn --eval-crop 0.9"), ("--eval-crop", "0.9")),
    Case(
        "regions of a network that proposes",
        typed("digit_scenes_maskrcnn --selective-search.max-regions 100"),
        ("--selective-search.max-regions", "100", "proposes its own"),
    ),
    Case(
        "no regions for R-CNN",
        typed("digit_scenes_rcnn --selective-search.max-regions 0"),
        ("--selective-search.max-regions", "0", "rcnn_small"),
    ),
)

NAMES = (
    Case("no config", typed("coco_maskrcn"), ("coco_maskrcn",)),
    Case("an option that there is not", typed("digits --batchsize 4"), ("--batchsize", "--batch-size")),
    Case("a word for a number", typed("digits --steps many"), ("--steps", "many")),
    Case("a fraction for a count", typed("digits --steps 1.5"), ("--steps", "1.5")),
    Case("an option without its value", typed("digits --steps"), ("--steps",)),
    Case("an unknown optimiser", typed("digits --optimizer.name lion"), ("--optimizer.name", "lion")),
    Case("an unknown schedule", typed("digits --optimizer.schedule linear"), ("--optimizer.schedule", "linear")),
    Case("an unknown number type", typed("digits --compute-dtype float16"), ("--compute-dtype", "float16")),
    Case("an unknown way of many devices", typed("digits --parallel ddp"), ("--parallel", "ddp")),
    Case("no model of the name", typed("digits --model resnet51"), ("--model", "resnet51")),
    Case(
        "an option that the model has not",
        typed("digits --model-options --model-options.depth 50"),
        ("--model-options",),
    ),
    Case("weights that there are not", typed("digits_squeezenet --weights V9"), ("--weights", "V9")),
    Case("an unknown backbone", typed("coco_maskrcnn --backbone-weights vit/V1"), ("--backbone-weights", "vit")),
    Case(
        "a backbone's weights that there are not",
        typed("coco_maskrcnn --backbone-weights resnet50/V9"),
        ("--backbone-weights", "V9"),
    ),
    Case(
        "a classifier's backbone",
        typed("digits --backbone-weights resnet50/IMAGENET1K_V2"),
        ("--backbone-weights", "no backbone"),
    ),
    Case("no kind of data", typed("digits --data mnist"), ("--data", "mnist", "folders")),
    Case("a kind of data without its name", typed("digits --data"), ("--data", "empty")),
    Case("COCO without its files", typed("digit_scenes_ssd --data coco"), ("--data.train-images",)),
    Case("a folder without the other", typed("digits --data folders --data.train {folder}"), ("--data.val",)),
    Case("an option of another kind", typed("digits --data.devkit {folder}"), ("--data.devkit",)),
    Case(
        "validation annotations without images",
        typed("coco_overfit --data.val-annotations {folder}/val.json"),
        ("--data.val-annotations", "--data.val-images"),
    ),
    Case(
        "validation images without annotations",
        typed("coco_overfit --data.val-images {folder}"),
        ("--data.val-images", "--data.val-annotations"),
    ),
    Case(
        "masks of data that have none",
        typed("coco_maskrcnn --data voc --data.devkit {folder}"),
        ("--data", "Voc", "maskrcnn_resnet50_fpn"),
    ),
    Case("no images to take", typed("coco_overfit --data.limit 0"), ("--data.limit", "0")),
    Case("a list without its year", typed("voc_ssd300 --data.train trainval"), ("--data.train", "trainval")),
    Case("no list", typed("voc_ssd300 --data.val"), ("--data.val",)),
    Case("a list twice", typed("voc_ssd300 --data.val VOC2007/test VOC2007/test"), ("--data.val", "repetition")),
    Case("a class twice", typed("voc_ssd300 --data.categories cat cat"), ("--data.categories", "repetition")),
    Case("a class without a name", typed("voc_ssd300 --data.categories cat ''"), ("--data.categories", "empty")),
    Case("a set without a name", typed("cifar10_resnet18 --data.name ''"), ("--data.name", "empty")),
)


def coco(folder, ids=(1, 2), names=("cat", "dog")):
    """A file of one image without objects, and its image's folder."""
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 4, "width": 4}],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in zip(ids, names)],
    }
    Image.new("RGB", (4, 4)).save(folder / "1.jpg")
    path = folder / f"{'_'.join(names)}_{'_'.join(map(str, ids))}.json"
    path.write_text(json.dumps(content))
    return path


def other_classes(module, **other):
    def call(folder):
        first, second = coco(folder), coco(folder, **other)
        line = f"coco_overfit --output {folder}/run --data.train-images {folder} --data.train-annotations {first} "
        run(module, f"{line} --data.val-images {folder} --data.val-annotations {second}")(folder)

    return call


def with_file(module, content, line):
    """A script, where the file ``given`` has the content."""

    def call(folder):
        (folder / "given").write_bytes(content)
        run(module, line)(folder)

    return call


def nothing_there(config, options=""):
    return run(train, f"{config} --output {{folder}}/run {options}")


SCRIPTS = (
    Case("COCO that is not there", nothing_there("coco_overfit", "--data.train-images /no"), ("/no",)),
    Case("VOC that is not there", nothing_there("voc_ssd300", "--data.devkit /no"), ("/no",)),
    Case("folders that are not there", nothing_there("folder_resnet18", "--data.train /no"), ("/no",)),
    Case(
        "a detector's data for a classifier", nothing_there("digits", "--data digit_scenes"), ("--data", "DigitScenes")
    ),
    Case(
        "a classifier's data for a detector", nothing_there("digit_scenes_ssd", "--data digits"), ("--data", "Digits")
    ),
    Case("more devices than there are", nothing_there("digits", "--devices 4096"), ("--devices", "4096")),
    Case("ids that change places", other_classes(train, ids=(2, 1)), ("class 0", "'cat'", "'dog'", "validation")),
    Case("classes of other names", other_classes(train, names=("cat", "cow")), ("'dog'", "'cow'", "validation")),
    Case("a class less", other_classes(train, ids=(1,), names=("cat",)), ("'dog'", "missing", "validation")),
    Case("another id", other_classes(train, ids=(1, 3)), ("'dog'", "id 2", "but 3", "validation")),
    Case("another id, checked", other_classes(data_check, ids=(1, 3)), ("'dog'", "id 2", "but 3")),
    Case("no run", run(evaluate, "{folder}/no"), ("/no", "checkpoint")),
    Case("no images of a run", run(evaluate, "{folder}/no --images 0"), ("--images", "0", "at least 1")),
    Case("a checkpoint of another name", run(evaluate, "{folder}/no --which newest"), ("--which", "newest")),
    Case("machines for no run", run(rcnn_svm, "{folder}/no"), ("/no",)),
    Case("a table of no run", run(results_table, "{folder}/no"), ("no/config.json", "no run")),
    Case("no priors", run(multibox_priors, "digit_scenes_multibox --number 0"), ("--number", "0")),
    Case("priors of no config", run(multibox_priors, "no_config"), ("no_config", "coco_maskrcnn")),
    Case("nothing to predict", run(predict, ""), ("at least one image",)),
    Case("no class to list", run(predict, "a.jpg --top 0"), ("--top", "0", "at least 1")),
    Case("a score above 1", run(predict, "a.jpg --min-score 50"), ("--min-score", "50", "between 0 and 1")),
    Case("prediction without a model", run(predict, "a.jpg --model resnet51"), ("resnet51",)),
    Case("prediction without weights", run(predict, "a.jpg --model ssd_small"), ("--model", "ssd_small", "--run")),
    Case("prediction with no record", run(predict, "a.jpg --model resnet18 --weights V9"), ("resnet18", "V9")),
    Case("prediction with no file", run(predict, "a.jpg --model resnet18 --weights /no.pth"), ("/no.pth",)),
    Case("prediction by no run", run(predict, "a.jpg --run {folder}/no"), ("/no", "checkpoint")),
    Case("no file of classes", run(predict, "a.jpg --classes /no.txt"), ("/no.txt",)),
    Case("an empty file of classes", with_file(predict, b"", "a.jpg --classes {folder}/given"), ("given", "empty")),
    Case("a gap in the classes", with_file(predict, b"a\n\nb", "a.jpg --classes {folder}/given"), ("given", "line 2")),
    Case("a class name twice", with_file(predict, b"a\nb\na", "a.jpg --classes {folder}/given"), ("'a'", "line 1")),
    Case("classes in Latin-1", with_file(predict, b"B\xe4r", "a.jpg --classes {folder}/given"), ("given", "UTF-8")),
    Case("two names for 1,000 classes", with_file(predict, b"a\nb", "a.jpg --classes {folder}/given"), ("2", "1000")),
    Case("a benchmark of nothing", run(benchmark, "everything"), ("everything",)),
    Case("a benchmark without turns", run(benchmark, "ops --repeats 0"), ("--repeats",)),
)

CASES = RANGES + PAIRS + NAMES + SCRIPTS


@by_name(CASES)
def test_one_message_that_names_it(case, tmp_path):
    check(case, tmp_path)


def test_the_command_line_itself_is_sound(tmp_path):
    """Or the cases above would fail for another reason."""
    found = config.parse("", shlex.split(f"digit_scenes_ssd --data coco --data.train-images {tmp_path} "
                                         f"--data.train-annotations {coco(tmp_path)} --steps 600"))  # fmt: skip
    assert found.data.train_images == tmp_path and found.data.limit is None and found.steps == 600
    assert config.parse("", ["coco_overfit", "--model", "ssd_small"]).model_options == {}
    line = f"coco_overfit --data voc --data.devkit {tmp_path} --model ssd_small"  # VOC has no masks
    assert config.parse("", line.split()).model == "ssd_small"


def test_all_faults_are_told_at_once():
    with pytest.raises(ValueError) as caught:
        config.parse("", shlex.split("digits --batch-size 0 --optimizer.learning-rate -1"))
    assert sorted(line.split()[0] for line in str(caught.value).splitlines()) == [
        "--batch-size",
        "--optimizer.learning-rate",
    ]


@pytest.mark.parametrize("error", [ValueError("bad"), TypeError("bad"), FileNotFoundError(2, "bad", "x.json")])
def test_one_message_without_a_traceback(error, monkeypatch):
    @script
    def main():
        raise error

    monkeypatch.setattr(sys, "argv", ["main.py"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == f"error: {message(error)}" and "bad" in end.value.code
    monkeypatch.setattr(sys, "argv", ["main.py", "--traceback"])
    with pytest.raises(type(error)):
        main()


def test_interrupted_and_mistaken(monkeypatch):
    """Ctrl-C ends with 130; a mistake of ours keeps its traceback."""
    monkeypatch.setattr(sys, "argv", ["main.py"])
    monkeypatch.setattr("signal.signal", lambda *_: None)  # which would keep Ctrl-C from the tests
    for error, ends, code in ((KeyboardInterrupt, SystemExit, 130), (AssertionError, AssertionError, None)):

        @script
        def main(error=error):
            raise error

        with pytest.raises(ends) as end:
            main()
        assert getattr(end.value, "code", None) == code
