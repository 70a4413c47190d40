"""Progress where there is no terminal: a line now and then, and one at the end."""

import pytest

from loc_edit import ProgressLines
from loc_edit import events as telling
from loc_edit.cli import show


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(telling.time, "monotonic", lambda: now[0])
    return now


def test_lines_come_at_growing_pauses_and_at_the_end(clock):
    said = []
    lines = ProgressLines(said.append)
    for done in range(1, 1001):
        clock[0] += 1
        lines("rome, layer 3", done, 1000)
    assert 15 < len(said) < 25
    assert said[0] == "2 of 1,000 units after 2 s, 1 units a second, 998 to go: rome, layer 3".replace("998", "17 min")
    assert said[-1] == "1,000 of 1,000 units after 17 min: rome, layer 3"


def test_what_was_found_on_disk_does_not_count_as_done_in_a_moment(clock):
    said = []
    lines = ProgressLines(said.append)
    lines("found on disk", 500, 600)
    assert said == ["500 of 600 units after 0 s: found on disk"]
    clock[0] += 10
    lines("tracing", 520, 600)
    assert "2 units a second, 40 s to go" in said[-1]


def test_the_command_line_writes_lines_into_a_log(capsys, monkeypatch):
    monkeypatch.setattr(show, "err", show.Console(stderr=True, force_terminal=False))
    with show.progress() as advance:
        advance("[layer] 3", 5, 5)
    said = capsys.readouterr().err
    assert "5 of 5 units" in said
    assert "[layer] 3" in said
    assert "\r" not in said
    assert "\x1b" not in said
