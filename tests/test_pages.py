"""The pages about the study's answer say what the files beside them say."""

import sys
from pathlib import Path

import jinja2
import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import make_pages  # noqa: E402


def test_every_page_says_what_its_files_say():
    for path, text in make_pages.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"run scripts/make_pages.py: {path.name}"
        assert "{{" not in text
        assert "{%" not in text


def test_a_page_changes_with_its_files(monkeypatch):
    tables, read = [], make_pages.table

    def doubled(name):
        tables.append(name)
        frame = read(name)
        return frame.assign(r2_added=2 * frame["r2_added"]) if name == "builtin/verdict" else frame

    monkeypatch.setattr(make_pages, "table", doubled)
    answer = make_pages.environment().get_template("answer.md.jinja").render()
    assert tables
    assert answer not in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_page_is_not_built_when_its_claims_fail(monkeypatch):
    read = make_pages.table
    won = {"difference_low": 0.01, "difference_high": 0.02}
    changed = {"builtin/localizer_choices": won, "builtin/layer_choices": won}
    monkeypatch.setattr(make_pages, "table", lambda name: read(name).assign(**changed.get(name, {})))
    with pytest.raises(make_pages.NotTrue):
        make_pages.pages()


def test_numbers_that_are_not_there_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="has 0 rows where"):
        make_pages.value("builtin/verdict", "r2_added", problem="none")
    template = make_pages.environment().from_string("{{ value_of_nothing }}")
    with pytest.raises(jinja2.UndefinedError):
        template.render()
    with pytest.raises(FileNotFoundError):
        make_pages.rows("no_such_file")


@pytest.mark.parametrize(
    ("number", "shown"), [(0.8449, ".84"), (-0.174, "-.17"), (1.0, "1.00"), (-0.004, "-.00"), (0.999, "1.00")]
)
def test_numbers_below_one_have_no_leading_zero(number, shown):
    assert make_pages.decimals(number) == shown
    assert make_pages.points(0.0371) == "3.7"
    assert make_pages.percent(0.838) == "84"
    assert isinstance(make_pages.rows("builtin/verdict", method="rome"), pd.DataFrame)
