"""Imports go one way (design: rooms), and ``import jaxvision`` stays light."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "jaxvision"

ALLOWED = {
    "typing": set(),
    "version": set(),
    "pictures": set(),
    "registry": {"typing"},
    "ops": {"typing"},
    "losses": {"typing", "ops"},
    "evaluate": {"typing", "ops"},
    "visualize": {"typing", "ops"},
    "inference": {"typing", "ops", "pictures", "layers"},  # takes models as arguments, and tells segmenters from others
    "saliency": {"typing", "ops"},
    "weights": {"typing", "registry", "pictures"},  # from_torch takes a name or a module
    "layers": {"typing", "ops", "losses"},
    "models": {"typing", "registry", "ops", "losses", "layers"},
    "data": {"typing", "ops", "pictures"},
    "train": {"typing"},
}
FORBIDDEN = {"torch", "torchvision", "tensorflow"}


def imports(path: pathlib.Path):
    """(top-level name, room of jaxvision or None) of each import in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write jaxvision.…"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield parts[0], parts[1] if parts[0] == "jaxvision" and len(parts) > 1 else None


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_directions(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for top, other in imports(path):
        assert top not in FORBIDDEN, f"{path} imports {top}"
        assert top != "experiments", f"{path} imports experiments"
        if room != "__init__" and other is not None and other != room:
            assert other in ALLOWED[room], f"{room} may not import {other} ({path})"


def test_import_is_light():
    code = (
        "import sys, jaxvision\n"
        "heavy = {'torch', 'tensorflow', 'matplotlib', 'orbax', 'grain', 'pooch', 'tensorflow_datasets', 'tyro'}\n"
        "import flax  # what flax itself loads is not ours\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    baseline = "import sys, flax.linen\nprint(sorted({'orbax', 'matplotlib'} & set(sys.modules)))"
    loaded, flax_loads = (
        subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout.strip()
        for text in (code, baseline)
    )
    assert set(ast.literal_eval(loaded)) <= set(ast.literal_eval(flax_loads))
