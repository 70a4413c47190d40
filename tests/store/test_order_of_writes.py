"""A kill between any two writes of the store leaves a folder that says what it holds, and that goes on."""

import errno
import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import fsspec
import pytest

from loc_edit import files
from loc_edit.analysis.run import Run, load_run
from loc_edit.store.mirror import Mirror
from loc_edit.store.selection import Selection, earlier_cells

PROVENANCE = {"model_fingerprint": "abc", "seed": 0}
OLD, NEW = {"facts": 2, "layers": [0]}, {"facts": 2, "layers": [1]}


def selection(layer: int) -> Selection:
    about = {"problem": "error_injection", "method": "rome", "layer": layer, "window": 1}
    return Selection({}, {f"cell{layer}": about}, {0: "c0", 1: "c1"})


def start(folder: Path, config: dict[str, Any] = OLD) -> Run:
    return Run.create(folder, config, PROVENANCE, selection(config["layers"][0]))


def rows(layer: int) -> list[dict[str, Any]]:
    key = {"problem": "error_injection", "method": "rome", "layer": layer, "window": 1, "cell": f"cell{layer}"}
    return [{**key, "fact_id": f, "fact_content": f"c{f}", "status": "done", "rewrite": f / 10} for f in (0, 1)]


class Kill(BaseException):
    """The process is gone."""


@pytest.fixture
def killed_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], Any]], Iterator[int]]:
    """(work) -> does work(0), killed before its first rename, work(1) before its second, and so on, until one ends."""

    def kills(work: Callable[[int], Any]) -> Iterator[int]:
        real = os.replace
        for number in count():
            left = [number]

            def dying(source: Path, target: Path, left: list[int] = left) -> None:
                if not left[0]:
                    raise Kill
                left[0] -= 1
                real(source, target)

            with monkeypatch.context() as patch:
                patch.setattr(files.os, "replace", dying)
                try:
                    work(number)
                    return
                except Kill:
                    pass
            yield number

    return kills


def test_a_start_that_is_killed_leaves_a_whole_run_or_none(tmp_path, killed_at):
    numbers = []
    for number in killed_at(lambda number: start(tmp_path / str(number)).close()):
        numbers.append(number)
        folder = tmp_path / str(number)
        if (folder / "config.toml").exists():
            assert load_run(folder).selection == selection(0)
        start(folder).close()
        again = load_run(folder)
        assert (again.selection, again.provenance["seed"]) == (selection(0), 0)
    assert numbers == [0, 1, 2, 3], "a kill before the writer's name, the selection, provenance and configuration"


def test_a_change_of_configuration_that_is_killed_never_names_the_cells_of_another(tmp_path, killed_at):
    """The configuration is written after its selection: where a reader finds it, the rows that it reads are its own."""
    places = [tmp_path / str(number) for number in range(12)]
    for place in places:
        with start(place) as run:
            run.write("edits", "a", rows(0))
    seen = []
    for number in killed_at(lambda number: start(places[number], NEW).close()):
        run = load_run(places[number])
        seen.append((run.config == NEW, run.selection == selection(1)))
        with start(places[number], NEW) as run:
            run.write("edits", "b", rows(1))
        run = load_run(places[number])
        assert (run.config, run.selection, set(run.edits["layer"])) == (NEW, selection(1), {1})
        assert len(run.read("edits", cells="all")) == 4
        assert selection(0).edits.items() <= earlier_cells(run.path, "edits").items()
    assert (True, False) not in seen
    assert set(seen) == {(False, False), (False, True)}


def test_an_earlier_configuration_is_kept_with_its_selection_and_its_provenance(tmp_path):
    start(tmp_path / "run").close()
    names = ("config.toml", "selection.json", "provenance.json")
    before = {f"0001-{name}": (tmp_path / "run" / name).read_bytes() for name in names}
    start(tmp_path / "run", NEW).close()
    kept = {path.name: path.read_bytes() for path in (tmp_path / "run" / "history").iterdir()}
    assert kept == before
    start(tmp_path / "run", OLD).close()
    assert len(list((tmp_path / "run" / "history").iterdir())) == 6


def test_a_fetch_that_is_killed_leaves_no_run_until_it_is_whole(tmp_path, killed_at):
    fsspec.filesystem("memory").store.clear()
    address = "memory://bucket/run"
    with start(tmp_path / "run") as run:
        run.write("edits", "a", rows(0))
    Mirror(address, run.path).finish()
    there = {path.relative_to(run.path) for path in run.path.rglob("*") if path.is_file() and path.name[0] != "."}
    numbers = []
    for number in killed_at(lambda number: Mirror(address, tmp_path / str(number)).fetch()):
        numbers.append(number)
        folder = tmp_path / str(number)
        assert not (folder / "config.toml").exists()
        Mirror(address, folder).fetch()
        assert {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} == there
    assert numbers == [0, 1, 2, 3], "one kill before each file"
    fsspec.filesystem("memory").store.clear()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc to name a file that is open")
def test_the_bytes_are_on_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def seen_fsync(descriptor: int) -> None:
        calls.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def seen_replace(source: Path, target: Path) -> None:
        calls.append(("replace", str(source), str(target)))
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", seen_fsync)
    monkeypatch.setattr(files.os, "replace", seen_replace)
    files.write_atomic(tmp_path / "a", b"whole")
    [temporary] = {call[1] for call in calls if call[0] == "replace"}
    assert calls == [("fsync", temporary), ("replace", temporary, str(tmp_path / "a")), ("fsync", str(tmp_path))]
    calls.clear()
    start(tmp_path / "run").close()
    assert calls[-1] == ("fsync", str(tmp_path)), "the name of a new folder is on the disk before its first row"


def test_a_shard_that_the_disk_cannot_read_is_set_aside_and_another_error_stops_the_run(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with start(folder) as run:
        run.write("edits", "a", rows(0))
        run.write("edits", "b", rows(0))
    real = Path.read_bytes

    def failing(number: int) -> None:
        def read_bytes(path: Path) -> bytes:
            if path.name.startswith("a."):
                raise OSError(number, os.strerror(number))
            return real(path)

        monkeypatch.setattr(Path, "read_bytes", read_bytes)

    failing(errno.EACCES)
    with pytest.raises(files.StoreError, match=r"cannot read .*/a\..*Permission denied"):
        start(folder)
    failing(errno.EIO)
    assert load_run(folder).done("edits") == {"b"}
    with start(folder) as run:
        assert run.done("edits") == {"b"}
    assert [path.name[:3] for path in (folder / "edits").glob("*.corrupt")] == ["_a."]
