"""Write the table of classifiers, jaxvision/models/README.md, from the code, the weight records and the measured
differences: ``python experiments/zoo_table.py``."""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a script from anywhere

import jax

import jaxvision as jv
from experiments.command import parse, script
from jaxvision.models.counting import count

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "jaxvision" / "models" / "README.md"
MEASURED = ROOT / "tests" / "parity" / "measured.json"  # by tests/parity/compare.py, where torch is installed
LARGE = 4608  # pixels: some units of every map then see past no border (DenseNet-201: 3863)

PAPERS = {  # the longest prefix of a name counts
    "alexnet": ("Krizhevsky 2014", "https://arxiv.org/abs/1404.5997"),
    "alexnet_2012": ("Krizhevsky et al. 2012", "https://doi.org/10.1145/3065386"),
    "densenet": ("Huang et al. 2016", "https://arxiv.org/abs/1608.06993"),
    "googlenet": ("Szegedy et al. 2014", "https://arxiv.org/abs/1409.4842"),
    "inception_v3": ("Szegedy et al. 2015", "https://arxiv.org/abs/1512.00567"),
    "mnasnet": ("Tan et al. 2018", "https://arxiv.org/abs/1807.11626"),
    "mobilenet_v2": ("Sandler et al. 2018", "https://arxiv.org/abs/1801.04381"),
    "resnet": ("He et al. 2015", "https://arxiv.org/abs/1512.03385"),
    "resnext": ("Xie et al. 2016", "https://arxiv.org/abs/1611.05431"),
    "shufflenet_v2": ("Ma et al. 2018", "https://arxiv.org/abs/1807.11164"),
    "squeezenet": ("Iandola et al. 2016", "https://arxiv.org/abs/1602.07360"),
    "vgg": ("Simonyan and Zisserman 2014", "https://arxiv.org/abs/1409.1556"),
    "wide_resnet": ("Zagoruyko and Komodakis 2016", "https://arxiv.org/abs/1605.07146"),
}

INTRODUCTION = """# The classifiers

Written by `python experiments/zoo_table.py`; a test compares it with the code.

- **Parameters**: of weights, biases, scales and shifts with 1000 classes; auxiliary heads (GoogLeNet, Inception)
  included, running statistics not.
- **Multiply-adds**: of convolutions and dense layers in one forward pass at the side given, in 10⁹; one multiplication
  with its addition is 1, as in torchvision's metadata and in the ResNet paper ("FLOPs"). Auxiliary heads do not run.
- **Field / stride**: side of the receptive field of a unit of the last feature map, and the step to its neighbour's, in
  pixels, by `jaxvision.ops.receptive_field`.
- **Top-1**: on ImageNet-1k in per cent, as the publisher of each set of weights (`IMAGENET1K_V1`, …) gives it; not
  measured here.
- **Difference**: largest difference to torchvision measured here with random weights and statistics, relative: of
  logits; of the gradient of their logsumexp to the image; of running statistics after a training step.
- **Licence**: of the code that published the weights. Terms of the training images may apply too.
"""


@dataclasses.dataclass(frozen=True)
class Options:
    """Write the table of classifiers, which takes a minute or two."""


def paper(name: str) -> str:
    citation, address = PAPERS[max((prefix for prefix in PAPERS if name.startswith(prefix)), key=len)]
    return f"[{citation}]({address})"


def side(name: str) -> int:
    """The side of the images that the published weights take; 224 where there are none."""
    return jv.get_record(name).preprocessing.crop if jv.list_weights(name) else 224


@functools.cache
def counts(name: str):
    return count(jv.get_model(name), (1, side(name), side(name), 3))


def last_field(name: str) -> str:
    model = jv.get_model(name, num_classes=0)
    last = model.feature_names[-1]

    def features(images):
        return {last: model.init_with_output(jax.random.key(0), images)[0][1][last]}

    field = jv.ops.receptive_field(features, (1, LARGE, LARGE, 3))[last]
    return f"{field.size[0]} / {field.stride[0]:g}"


def records(name: str):
    return [jv.get_record(name, weights) for weights in jv.list_weights(name)]


def top1(name: str) -> str:
    metrics = {record.name: record.metrics.get("ImageNet-1K", {}).get("acc@1") for record in records(name)}
    return "<br>".join(
        f"{weights.removeprefix('IMAGENET1K_')} {value:.2f}" for weights, value in metrics.items() if value is not None
    )


def difference(name: str) -> str:
    measured = json.loads(MEASURED.read_text()).get(name) if MEASURED.exists() else None
    if measured is None:
        return ""
    parts = (measured.get(part) for part in ("logits", "gradient", "statistics"))
    return " / ".join("–" if part is None else f"{part:.0e}" for part in parts)


def licence(name: str) -> str:
    return "<br>".join(sorted({record.licence.split(";")[0] for record in records(name)}))


COLUMNS: dict[str, Callable[[str], str]] = {
    "name": lambda name: f"`{name}`",
    "paper": paper,
    "parameters": lambda name: f"{counts(name).parameters:,}",
    "multiply-adds": lambda name: f"{counts(name).multiply_adds / 1e9:.3f} at {side(name)}",
    "field / stride": last_field,
    "top-1": top1,
    "difference": difference,
    "licence": licence,
}


@script
def main() -> None:
    parse(Options)
    rows = [list(COLUMNS), ["---"] * len(COLUMNS)]
    rows += [[column(name) for column in COLUMNS.values()] for name in jv.list_models(task="classification")]
    lines = ("| " + " | ".join(row) + " |\n" for row in rows)
    TABLE.write_text(INTRODUCTION + "\n" + "".join(lines))


if __name__ == "__main__":
    main()
