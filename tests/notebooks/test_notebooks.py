"""Smoke: each notebook runs from its first cell to its last. They define nothing and are kept without outputs.

DWRL_JAX_VARIANT=smoke is the only setting that makes them short.
"""

import ast
import os

import nbclient
import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from dwrl_jax.workdir import records
from tests.small import REPO

NOTEBOOKS = sorted((REPO / "notebooks").glob("*.ipynb"))
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


def code_of(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def definitions(source):
    """Names of the kinds of definition in a cell, whose magics are turned into calls first."""
    tree = ast.parse(TransformerManager().transform_cell(source))
    return [type(node).__name__ for node in ast.walk(tree) if isinstance(node, DEFINITIONS)]


def test_a_definition_would_be_found():
    assert definitions("%matplotlib inline\nx = 1\n!ls") == []
    assert sorted(definitions("class A:\n    f = lambda: 1\n    def g(self): pass")) == [
        "ClassDef",
        "FunctionDef",
        "Lambda",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_define_nothing_and_hold_no_outputs(path):
    nbformat.validate(nbformat.read(path, as_version=4))
    for cell in code_of(path):
        assert not definitions(cell.source), cell.source
        assert not cell.outputs and cell.execution_count is None, cell.source


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Notebooks share a folder: explore looks into quickstart's run."""
    return tmp_path_factory.mktemp("notebooks")


def execute(name, folder, monkeypatch):
    """The outputs of the last cell, and of all; with no pip or git, so that nothing is installed."""
    monkeypatch.setenv("DWRL_JAX_VARIANT", "smoke")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(REPO / "notebooks" / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    assert not (folder / "dwrl_jax").exists()  # the cell that installs was skipped
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def shown(outputs, kind):
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


def test_quickstart(workplace, monkeypatch):
    outputs = execute("quickstart", workplace, monkeypatch)
    assert "gain at k = 8" in "".join(output.text for output in outputs if output.output_type == "stream")
    thoughts, page = shown(outputs, "text/html")
    assert thoughts.count("&lt;b&gt;Before&lt;/b&gt;") == thoughts.count("&lt;b&gt;After&lt;/b&gt;") == 1
    assert "--w:" in thoughts and "Held-out accuracy" in page
    assert len(shown(outputs, "image/png")) == 1


@pytest.mark.slow
def test_explore(workplace, monkeypatch):
    outputs = execute("explore", workplace, monkeypatch)
    results = records.read_results(workplace / "runs" / "notebook_smoke")
    assert results["steps"] == 4
    assert len(shown(outputs, "image/png")) == 2 and len(shown(outputs, "text/html")) == 1
    assert "'right': [" in shown(outputs, "text/plain")[1]


@pytest.mark.slow
def test_estimator(workplace, monkeypatch):
    assert len(shown(execute("estimator", workplace, monkeypatch), "image/png")) == 2
