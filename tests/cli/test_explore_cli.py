"""`loc-edit explore` without Gradio."""

import importlib.util

from loc_edit.cli import main as cli


def test_without_gradio_one_line_names_the_extra(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr("loc_edit.cli.explore.find_spec", lambda name: None if name == "gradio" else find(name))
    assert cli.main(["explore"]) == 1
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line == "loc-edit: explore needs Gradio: pip install 'loc-edit[explore]'"
