"""The notebooks: what is committed was made from the text beside it, and the text runs."""

import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "scripts"))

from make_notebooks import FOLDER, executed, read  # noqa: E402

NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
SMALLER = {"02_own_model_own_facts": {'"smollm2"': '"builtin"', "(4, 10, 16)": "(1, 3)"}}
"""Words that are replaced for the tests, where a notebook takes minutes."""


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def test_there_are_four():
    assert [name[:2] for name in NAMES] == ["01", "02", "03", "04"]
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_its_text_with_what_it_showed(name):
    path = FOLDER / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in read(name).cells
    ], f"{path.name} is old: python scripts/make_notebooks.py {name}"
    assert path.stat().st_size < 1e6
    assert "find_spec" in notebook.cells[2].source
    assert any("image/png" in output.get("data", {}) for output in outputs(notebook))
    assert not [output for output in outputs(notebook) if output.output_type in ("stream",) and output.name == "stderr"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES[:2], *(pytest.param(name, marks=pytest.mark.long) for name in NAMES[2:])])
def test_a_notebook_runs_and_shows_what_it_showed(name):
    notebook = read(name)
    for cell in notebook.cells:
        for text, smaller in SMALLER.get(name, {}).items():
            cell.source = cell.source.replace(text, smaller)
    shown = [sorted(output.get("data", {"text": ""})) for output in outputs(executed(notebook))]
    committed = outputs(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4))
    assert len(shown) == len(committed)
    for kinds, output in zip(shown, committed, strict=True):  # a view is a picture in what is committed
        data = output.get("data", {"text": ""})
        assert kinds == sorted(data) or data["text/plain"] == "a circuitsvis view"
