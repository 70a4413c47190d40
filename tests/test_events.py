"""Events and their listeners: bars on a terminal; elsewhere a line of progress now and then, and one at the end."""

import io
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console
from tqdm import tqdm

from loc_edit import ProgressBars, ProgressLines, events
from loc_edit.cli import show


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(events.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def lines():
    """The lines that `ProgressLines` prints."""
    printed = []
    with events.listening(ProgressLines(printed.append)):
        yield printed


@pytest.fixture
def quick_bars(monkeypatch):
    """Bars that show at once, not after a second."""
    monkeypatch.setattr("tqdm.auto.tqdm", lambda **given: tqdm(**{**given, "delay": 0, "mininterval": 0}))
    return ProgressBars()


def test_lines_come_at_growing_pauses_and_at_the_end(clock, lines):
    events.progress("cells", 0, 1000)
    for done in range(1, 1001):
        clock[0] += 1
        events.progress("cells", done, 1000, detail="rome, layer 3")
    assert 15 < len(lines) < 25
    assert lines[0] == "2 of 1,000 cells after 2 s, 1 a second, 17 min to go: rome, layer 3"
    assert lines[-1] == "1,000 of 1,000 cells after 17 min: rome, layer 3"


def test_cells_on_disk_do_not_count_as_done_in_a_moment(clock, lines):
    events.progress("cells", 500, 600, found=500)
    assert lines == ["500 of 600 cells found on disk"]
    clock[0] += 10
    events.progress("cells", 520, 600, found=500, detail="tracing")
    assert "2 a second, 40 s to go: tracing" in lines[-1]


def test_each_task_has_its_own_time(clock, lines):
    events.progress("cells", 0, 10)
    clock[0] += 100
    for done in (0, 50, 100):
        events.progress("tokens", done, 100)
        clock[0] += 5
    events.progress("cells", 1, 10)
    assert lines == [
        "50 of 100 tokens after 5 s, 10 a second, 5 s to go",
        "100 of 100 tokens after 10 s",
        "1 of 10 cells after 2 min, 0.0087 a second, 17 min to go",
    ]


def test_a_task_may_be_done_again(clock, lines):
    for _ in range(2):
        events.progress("answers", 4, 4, found=4)
        events.progress("tokens", 0, 8)
        clock[0] += 1
        events.progress("tokens", 8, 8)
    assert lines == ["4 of 4 answers found on disk", "8 of 8 tokens after 1 s"] * 2


def test_other_events_are_no_progress_and_nobody_listens_after_the_block():
    printed = []
    with events.listening(ProgressLines(printed.append)):
        events.emit("shard", rows=3)
    events.progress("cells", 1, 1)
    assert printed == []


def test_the_command_line_writes_lines_into_a_log(capsys, monkeypatch):
    monkeypatch.setattr(show, "err", Console(stderr=True, force_terminal=False))
    with show.progress():
        events.progress("cells", 5, 5, detail="[layer] 3")
    printed = capsys.readouterr().err
    assert "5 of 5 cells" in printed
    assert "[layer] 3" in printed
    assert "\r" not in printed
    assert "\x1b" not in printed


def test_the_command_line_shows_each_task_as_a_bar_on_a_terminal(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(show, "err", Console(file=screen, force_terminal=True, width=120, legacy_windows=False))
    with show.progress():
        assert "preparing" in screen.getvalue()
        events.progress("tokens", 2000, 10_000, found=2000)
        events.emit("shard", rows=3)
        events.progress("tokens", 10_000, 10_000, found=2000)
        events.progress("cells", 1, 5, detail="[layer] 3")
    last = screen.getvalue().rpartition("tokens")[2]
    assert "10,000/10,000" in last
    assert "1/5" in last
    assert "[layer] 3" in last
    assert "preparing" not in last


def test_bars_start_at_what_was_found_and_a_task_that_was_interrupted_begins_again(quick_bars, capsys):
    bars = quick_bars
    with events.listening(bars):
        events.emit("shard", rows=3)
        events.progress("cells", 500, 600, found=500)
        events.progress("cells", 520, 600, found=500, detail="tracing")
        assert bars._bars["cells"].n == 520
        events.progress("cells", 300, 600, found=300)
        assert bars._bars["cells"].n == 300
        events.progress("cells", 600, 600, found=300)
    assert bars._bars == {}
    assert "600/600" in capsys.readouterr().err


def test_steps_of_one_call_have_a_bar_that_goes_away(quick_bars, capsys):
    with events.listening(quick_bars):
        events.step()  # nobody counts these
        assert quick_bars._bars == {}
        for done in range(3):
            events.step("steps of v*", done, 20)
        assert quick_bars._bars["steps of v*"].n == 2
        assert not quick_bars._bars["steps of v*"].leave
        events.step("patched tokens", 1, 4)  # the steps before stopped early
        assert list(quick_bars._bars) == ["patched tokens"]
        events.progress("cells", 0, 2)
        events.step("patched tokens", 2, 4)  # the larger task shows how far it is
        assert list(quick_bars._bars) == ["cells"]
    quick_bars.close()
    assert quick_bars._bars == {}
    assert "2/20" in capsys.readouterr().err


def test_a_notebook_has_bars_until_something_else_listens_and_a_cell_closes_its_bars(quick_bars, monkeypatch):
    hooks = {}
    shell = SimpleNamespace(kernel=object(), events=SimpleNamespace(register=hooks.__setitem__))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(events, "ProgressBars", lambda: quick_bars)
    events._bars_of_notebook.cache_clear()
    try:
        assert events.has_listeners()
        events.progress("cells", 1, 3)
        with events.listening(lambda event: None):
            events.progress("cells", 2, 3)
        assert quick_bars._bars["cells"].n == 1
        hooks["post_run_cell"](None)
        assert quick_bars._bars == {}
    finally:
        events._bars_of_notebook.cache_clear()


def test_without_a_notebook_nobody_listens():
    assert not events.has_listeners()
