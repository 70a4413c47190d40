"""The documentation site: `sphinx-build -W docs docs/_build`."""

import shutil
import sys
from importlib.metadata import version as installed
from pathlib import Path

from sphinx.ext.napoleon.docstring import GoogleDocstring

project = "loc_edit"
author = "the loc_edit authors"
copyright = author
version = release = installed("loc-edit")

sys.path.insert(0, str(Path(__file__).parent))  # for `offline`
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "offline"]
exclude_patterns = ["_build"]
nb_execution_mode = "off"  # scripts/make_notebooks.py executes them, and so do the tests

HERE = Path(__file__).parent
(HERE / "notebooks").mkdir(exist_ok=True)
for notebook in (HERE.parent / "notebooks").glob("*.ipynb"):
    shutil.copy2(notebook, HERE / "notebooks")

html_theme = "furo"
html_title = "loc_edit"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"

default_role = "code"  # docstrings write `name` for code, as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_fence_as_directive = ["mermaid"]  # its text is what the test of the rooms reads
myst_heading_anchors = 3

parse = GoogleDocstring._parse


def parse_as_method(docstring):
    """Napoleon takes a property's words before a colon for its type, which the annotation says already."""
    if docstring._what in ("attribute", "data", "property"):
        docstring._what = "method"
    parse(docstring)


GoogleDocstring._parse = parse_as_method
