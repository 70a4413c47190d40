"""Run the notebooks, and write them with what they show: `notebooks/*.py` to `notebooks/*.ipynb`.

python scripts/make_notebooks.py                   # a few minutes; wants Chromium and its driver, and SmolLM2
python scripts/make_notebooks.py 01_trace_and_edit

A notebook is kept as text, in cells that begin with `# %%`; edit that file, and never the other.  In what is written, a
circuitsvis view is a picture, as its script takes 1.3 MB.
"""

import argparse
import base64
import os
import sys
import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
sys.path.append(str(ROOT / "tests"))

SETUP = """
from circuitsvis.utils.render import RenderedHTML
RenderedHTML._repr_html_ = lambda view: view.local_src
"""


def read(name: str) -> nbformat.NotebookNode:
    """The cells of a notebook, without what they show."""
    notebook, cells = jupytext.read(FOLDER / f"{name}.py", fmt="py:percent"), []
    for cell in notebook.cells:
        if title := cell.metadata.pop("title", None):  # what follows `# %%` on its line
            cells.append(nbformat.v4.new_markdown_cell(title))
        cell.metadata.clear()
        cells.append(cell)
    for i, cell in enumerate(cells):
        cell.id = f"cell-{i}"
    notebook.cells = cells
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def executed(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook after a run in an empty folder, without warnings, progress and times."""
    setup = nbformat.v4.new_code_cell(SETUP, id="setup")
    notebook.cells.insert(0, setup)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": folder}}).execute()
    del notebook.cells[0]
    number = 0
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            number += 1
            cell.execution_count = number
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = number
    return notebook


def picture_views(notebook: nbformat.NotebookNode) -> None:
    """Puts a picture in the place of each circuitsvis view."""
    from browser import chromium

    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            html = output.get("data", {}).get("text/html", "")
            if "ColoredTokensMulti" not in html:
                continue
            with tempfile.TemporaryDirectory() as folder, chromium(folder) as browser:
                page = Path(folder) / "view.html"
                page.write_text(f"<meta charset=utf-8><body style='width: 700px; margin: 8px'>{html}", encoding="utf-8")
                browser.get(page.as_uri())
                browser.implicitly_wait(10)
                view = browser.find_element("css selector", "[id^=circuits-vis]")
                view.find_element("css selector", "div")
                picture = base64.b64encode(view.screenshot_as_png).decode()
            output.data = nbformat.NotebookNode({"image/png": picture, "text/plain": "a circuitsvis view"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=sorted(path.stem for path in FOLDER.glob("*.py")))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    for name in parser.parse_args().names:
        notebook = executed(read(name))
        picture_views(notebook)
        path = FOLDER / f"{name}.ipynb"
        nbformat.write(notebook, path)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
