"""The notebook: it is what its source says, and it runs."""

import os
import pathlib

import jax
import jupytext
import nbclient
import nbformat
import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "launch"


def test_it_is_made_from_its_source():
    made = jupytext.read(FOLDER / "colab.py")
    notebook = nbformat.read(FOLDER / "colab.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in made.cells
    ], "run: jupytext --to ipynb launch/colab.py"
    assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("ITERINF_SMALL", "1")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    cache = str(jax.config.jax_compilation_cache_dir)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", cache)
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    notebook = nbformat.read(FOLDER / "colab.ipynb", as_version=4)
    expected = ["text/markdown", "image/png", "image/png", "image/png"]
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    types = [
        next(iter(output.data.keys() - {"text/plain"}), "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "display_data"
    ]
    assert types == expected
    assert (tmp_path / "runs" / "colab" / "results" / "table.md").exists()
    assert os.listdir(tmp_path) == ["runs"]
