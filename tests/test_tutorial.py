"""The tutorial: ten cells, which run as they stand and end in a figure."""

import re
import runpy
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "scripts" / "tutorial.py"


def test_it_has_ten_cells_each_with_a_title():
    cells = re.findall(r"^# %% (.*)$", PATH.read_text(encoding="utf-8"), re.MULTILINE)
    assert len([title for title in cells if title != "[markdown]"]) == 10


@pytest.mark.slow
def test_it_runs_from_a_prompt_to_a_figure(capsys):
    names = runpy.run_path(str(PATH))
    out = capsys.readouterr().out
    assert "The Louvre is located in the city of -> Paris, to become" in out
    assert "next after: 'Berlin'" in out
    (ax,) = names["figure"].axes
    assert [line.get_label() for line in ax.lines] == ["rewrite score", "neighborhood score"]
    assert names["scores"]["rewrite"].max() > 0.5
    assert re.search(r"tracing peaks at layer \d; the edit works best at layer \d", out)
