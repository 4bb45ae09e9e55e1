"""Every notebook runs from top to bottom, and its two forms say the same."""

import pathlib

import jupytext
import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
LONGEST = 180  # seconds a cell on two CPU cores
TRAIN = ("compose_a_detector", "dense_prediction")  # two minutes each
RUNS = [pytest.param(path, marks=[pytest.mark.slow] * (path.stem in TRAIN)) for path in NOTEBOOKS]


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert NOTEBOOKS


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # jupyter's own
@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_runs(path):
    notebook = jupytext.read(path)
    where = {"metadata": {"path": str(ROOT)}}  # the kernel starts here and so imports this jaxvision
    nbclient.NotebookClient(notebook, timeout=LONGEST, kernel_name="python3", resources=where).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_both_forms_agree(path):
    """If not: ``jupytext --to ipynb notebooks/NAME.py && jupyter execute --inplace notebooks/NAME.ipynb``."""
    paired = path.with_suffix(".ipynb")
    text, executed = jupytext.read(path), nbformat.read(paired, as_version=4)
    assert [(c.cell_type, c.source) for c in text.cells] == [(c.cell_type, c.source) for c in executed.cells]
    assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")
    assert paired.stat().st_size < 1_000_000
