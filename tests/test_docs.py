"""The documentation names what there is; `.ci/run` builds it with warnings as errors."""

import re
from pathlib import Path

import loc_edit

DOCS = Path(__file__).parents[1] / "docs"


def test_every_public_name_stands_in_the_reference_once():
    named = re.findall(r"^\.\. auto\w+:: (\w+)$|^\.\. data:: (\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert sorted(a or b for a, b in named) == loc_edit.__all__


def test_every_page_is_in_the_contents():
    listed = set(re.findall(r"^\w+$", (DOCS / "index.md").read_text(), re.MULTILINE))
    assert {page.stem for page in DOCS.glob("*.md")} == listed | {"index"}
