"""Where the time of a compiled program goes: its costliest instructions, from JAX's profiler."""

import collections
import gzip
import json
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple


class Cost(NamedTuple):
    seconds: float
    instruction: str
    shape: str
    layer: str  # where in the model, and which primitive; "transpose" is the backward pass


def costs(program: Any, arguments: list[Any]) -> list[Cost]:
    """The instructions of one call, dearest first. Times of threads that wait for others count."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(program(*arguments))
        (file,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    known = instructions(program.as_text())
    seconds: collections.Counter = collections.Counter()
    for event in events:
        if event.get("ph") == "X" and event["name"] in known:
            seconds[event["name"]] += 1e-6 * event["dur"]
    return [Cost(time, name, *known[name]) for name, time in seconds.most_common()]


def instructions(text: str) -> dict[str, tuple[str, str]]:
    """(shape, layer) of each instruction of a program in HLO; a fusion without a place of its own has that of the last
    instruction inside it that has one."""
    places: dict[str, str] = {}  # of computations
    found: dict[str, tuple[str, str]] = {}
    computation = ""
    for line in text.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            computation = header[1]
        if not (match := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (\S+?)(?:\{[^}]*\})? ", line)):
            continue
        place = re.search(r'op_name="([^"]*)"', line)
        called = re.search(r"calls=%?([\w.\-]+)", line)
        layer = place[1] if place else places.get(called[1], "") if called else ""
        if layer:
            places[computation] = layer
        found[match[1]] = (match[2], re.sub(r"^jit\(\w*\)/", "", layer))
    return found


def kind(cost: Cost) -> str:
    """The pass and the primitive of an instruction. XLA takes their place away from kernel gradients of convolutions,
    which are known by what they make: [in, rows, columns, out] or [rows, columns, in, out] with an odd window."""
    if not cost.layer:
        sides = [int(side) for side in re.findall(r"\d+", cost.shape.partition("[")[2])]
        windows = len(sides) == 4 and any(a == b and a in (3, 5, 7, 11) for a, b in (sides[:2], sides[1:3]))
        return "backward, kernel gradient of a convolution" if windows else "without a place"
    direction = "backward" if "transpose(" in cost.layer else "forward"
    return f"{direction}, {cost.layer.rpartition('/')[2]}"


def table(costs: list[Cost], count: int) -> list[str]:
    """Shares of the sum of all, in Markdown: by kind, those above 2 %; and the first ``count`` instructions."""
    total = sum(cost.seconds for cost in costs)
    kinds: collections.Counter = collections.Counter()
    for cost in costs:
        kinds[kind(cost)] += cost.seconds
    lines = ["| share | kind |", "|---:|---|"]
    lines += [f"| {time / total:.1%} | {name} |" for name, time in kinds.most_common() if time > 0.02 * total]
    lines += ["", "| share | ms | instruction | makes | layer |", "|---:|---:|---|---|---|"]
    for cost in costs[:count]:
        share = f"{cost.seconds / total:.1%} | {1e3 * cost.seconds:.1f}"
        lines.append(f"| {share} | {cost.instruction} | {cost.shape} | {cost.layer} |")
    return lines
