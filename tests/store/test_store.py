"""The store keeps every finished row through kills, damage and full disks, and refuses what does not fit."""

import errno
import fcntl
import gc
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loc_edit import files as disk
from loc_edit.analysis.run import Run, load_run
from loc_edit.files import Damaged, StoreError, short_hash, write_json
from loc_edit.store import compacting, shards
from loc_edit.store.folder import BadRun, RunMismatch
from loc_edit.store.lock import FolderLock, RunLocked, lock_holder
from loc_edit.store.rows import IDENTITIES, SCHEMA_VERSION, BadRows
from loc_edit.store.selection import Selection
from loc_edit.store.settings import cell_key, describe, differences

CONFIG: dict[str, Any] = {"facts": 4, "layers": [0, 1], "rome": {"lr": 0.5, "clamp": None}}
PROVENANCE = {"model_fingerprint": "abc", "seed": 0, "torch": "2"}
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["loc_edit.analysis.run", "pytest"])  # then a writer starts in milliseconds


def edit(fact_id: int, layer: int = 0, **more: Any) -> dict[str, Any]:
    key = {"fact_id": fact_id, "problem": "error_injection", "method": "rome", "layer": layer, "window": 1}
    return key | {"status": "done", "rewrite": fact_id / 10, "rewrite_after": [0.25]} | more


def trace(fact_id: int, layer: int = 0, pos: int = 0, **more: Any) -> dict[str, Any]:
    key = {"fact_id": fact_id, "site": "mlp_out", "window": 5, "layer": layer, "pos": pos}
    return key | {"p_restored": 0.5, "p_clean": 0.9, "p_corrupted": 0.1, "subject_end": 1} | more


def create(folder: Path, config: dict[str, Any] = CONFIG, provenance: dict[str, Any] = PROVENANCE) -> Run:
    return Run.create(folder, config, provenance)


def unit(number: int) -> list[dict[str, Any]]:
    return [edit(fact_id, layer) for fact_id in (2 * number, 2 * number + 1) for layer in (0, 1)]


def fill(folder: Path, n_units: int = 3) -> Run:
    run = create(folder)
    for number in range(n_units):
        run.write("edits", f"unit-{number}", unit(number))
    return run


def files(run: Run, kind: str = "edits") -> list[Path]:
    return sorted((run.path / kind).glob("*.parquet"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


# --- what is written comes back


def test_rows_come_back_with_their_types_and_their_nan(folder: Path) -> None:
    with create(folder) as run:
        run.write("edits", "u", [edit(3, rewrite=None, rewrite_after=[0.1, 0.2], seed=np.int64(7), extra="kept")])
        run.write("traces", "u", [trace(3, token="</s>\x00é", degenerate=True)])
    (row,) = run.read("edits", lists=True).to_dict("records")
    assert np.isnan(row["rewrite"])
    assert np.isnan(row["essence"])
    assert (row["seed"], row["reason"], row["extra"], row["status"]) == (7, "", "kept", "done")
    assert list(row["rewrite_after"]) == [0.1, 0.2]
    assert list(row["paraphrase_before"]) == []
    assert run.edits["layer"].dtype == np.int32
    assert run.edits["fact_id"].dtype == np.int64
    (row,) = run.traces.to_dict("records")
    assert (row["token"], row["degenerate"], row["subject_begin"]) == ("</s>\x00é", True, -1)


def test_a_frame_and_mappings_make_the_same_shard(tmp_path: Path) -> None:
    rows = unit(0)
    with create(tmp_path / "a") as one, create(tmp_path / "b") as other:
        one.write("edits", "u", rows)
        other.write("edits", "u", pd.DataFrame(rows))
    assert files(one)[0].name == files(other)[0].name  # the name holds the checksum


def test_order_of_rows_and_columns_does_not_depend_on_order_of_writing(tmp_path: Path) -> None:
    rows = [edit(fact, layer, method=method) for fact in (11, 2, 7) for layer in (1, 0) for method in ("rome", "memit")]
    for index, name in enumerate(("mine_b", "mine_a", "mine_c")):
        rows[index][name] = 0.5
    frames = []
    for name, order in (("a", 1), ("b", -1)):
        with create(tmp_path / name) as run:
            for turn, row in enumerate(rows[::order]):
                run.write("edits", f"unit-{(turn * 5) % len(rows)}", [row])
        frames.append(run.edits)
    pd.testing.assert_frame_equal(*frames)
    assert frames[0]["method"].tolist() == ["memit"] * 6 + ["rome"] * 6
    assert frames[0]["fact_id"].tolist() == [2, 7, 11] * 4


def test_columns_are_chosen_scalars_first_and_lists_on_request(folder: Path) -> None:
    run = fill(folder)
    assert "rewrite_after" not in run.edits.columns
    assert run.read("edits", lists=True).columns[: len(run.edits.columns)].tolist() == run.edits.columns.tolist()
    assert run.read("edits", ["rewrite", "fact_id"]).columns.tolist() == ["rewrite", "fact_id"]
    with pytest.raises(BadRows, match="no column 'rewritten'; expected one of problem, method"):
        run.read("edits", ["rewritten"])


def test_changing_a_frame_does_not_change_the_run(folder: Path) -> None:
    run = fill(folder)
    before = run.edits
    frame = run.edits
    frame.loc[:, "rewrite"] = 5.0
    pd.testing.assert_frame_equal(run.edits, before)


def test_shards_without_rows_are_done(folder: Path) -> None:
    with create(folder) as run:
        assert run.edits.empty
        assert "rewrite" in run.edits.columns
        run.write("edits", "nothing", [])
    assert load_run(folder).done("edits") == {"nothing"}
    assert run.edits.empty


def test_writing_a_unit_again_replaces_it(folder: Path) -> None:
    run = fill(folder)
    for score in (0.5, 0.25, 0.75, 0.125, 0.0):  # whatever the order of the checksums, the last one counts
        run.write("edits", "unit-1", [edit(2, rewrite=score)])
        assert run.edits.query("fact_id in (2, 3)")["rewrite"].tolist() == [score]
    assert len(files(run)) == 3


def test_an_extra_column_may_be_missing_elsewhere(folder: Path) -> None:
    with create(folder) as run:
        run.write("edits", "a", [edit(0, norm=1)])
        run.write("edits", "b", [edit(1, norm=0.5, note="x")])
        run.write("edits", "c", [edit(2)])
    assert run.edits["norm"].tolist()[:2] == [1.0, 0.5]
    assert np.isnan(run.edits["norm"][2])
    assert run.edits["note"].tolist() == ["", "x", ""]


def test_the_same_row_in_two_units_is_taken_once_and_reported(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with create(folder) as run:
        run.write("edits", "a", [edit(0), edit(1)])
        run.write("edits", "b", [edit(1), edit(2), edit(1, cell="other settings")])
    assert run.edits["fact_id"].tolist() == [0, 1, 1, 2]
    assert "1 rows of edits are in more than one shard" in caplog.text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"layer": "five"}, "edits u: column 'layer': expected int32"),
        ({"fact_id": None}, "column 'fact_id' is part of the key and is empty in row 1"),
        ({"rewrite": [1.0]}, "column 'rewrite': expected double"),
        ({"status": "fine"}, "status 'fine': expected one of done, skipped, failed"),
        ({"fact_id": 0}, "two rows have the key"),
        ({"window": 2**40}, "column 'window': expected int32"),
    ],
)
def test_rows_that_do_not_fit_are_refused_whole(folder: Path, row: dict[str, Any], message: str) -> None:
    with create(folder) as run:
        with pytest.raises(BadRows, match=message):
            run.write("edits", "u", [edit(0), edit(1) | row])
        assert run.done("edits") == set()
        with pytest.raises(BadRows, match="no column 'window'"):
            run.write("edits", "u", [{key: value for key, value in edit(0).items() if key != "window"}])
        with pytest.raises(BadRows, match=r"'../x' of a shard of edits"):
            run.write("edits", "../x", [edit(0)])


# --- a run is its configuration


def test_resume_finds_what_is_done(folder: Path) -> None:
    first = fill(folder)
    rows = first.edits
    first.close()
    reordered = {"rome": {"lr": 0.5}, "layers": (0, 1), "facts": 4.0}
    with create(folder, reordered, PROVENANCE | {"torch": "3"}) as second:
        assert second.done("edits") == {"unit-0", "unit-1", "unit-2"}
        pd.testing.assert_frame_equal(second.edits, rows)
    assert second.config == {"facts": 4, "layers": [0, 1], "rome": {"lr": 0.5}}
    assert second.provenance == PROVENANCE | {"schema_version": SCHEMA_VERSION}


def test_another_configuration_is_refused_by_name(folder: Path) -> None:
    fill(folder).close()
    with pytest.raises(RunMismatch) as caught:
        create(folder, {"facts": 8, "layers": [0, 1], "rome": {"lr": 0.1}, "seed": 1})
    message = str(caught.value)
    assert str(folder) in message
    assert "facts is 4 there and 8 here" in message
    assert "rome.lr is 0.5 there and 0.1 here" in message
    assert "seed is not set there and 1 here" in message
    assert "layers" not in message
    with pytest.raises(RunMismatch, match='model_fingerprint is "abc" there and "xyz" here'):
        create(folder, CONFIG, PROVENANCE | {"model_fingerprint": "xyz"})
    assert len(load_run(folder).edits) == 12


def test_folders_that_are_no_run_are_refused(folder: Path) -> None:
    with pytest.raises(BadRun, match="there is no such folder"):
        load_run(folder)
    folder.mkdir()
    with pytest.raises(BadRun, match="the folder is empty"):
        load_run(folder)
    for open_it in (load_run, create):
        with pytest.raises(BadRun, match="s3://bucket/run: expected a folder on a disk"):
            open_it("s3://bucket/run")
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(BadRun, match=r"holds no config\.toml"):
        load_run(folder)
    with pytest.raises(BadRun, match=r"is not empty and holds no run .*'thesis\.tex'"):
        create(folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
    for open_it in (load_run, create):
        with pytest.raises(BadRun, match="is a file"):
            open_it(folder / "thesis.tex")


def test_rows_without_a_configuration_are_not_taken_over(folder: Path) -> None:
    fill(folder).close()
    (folder / "config.toml").unlink()
    with pytest.raises(BadRun, match=r"3 shards of rows but no config\.toml"):
        create(folder)


def test_a_start_that_was_killed_before_the_configuration_can_be_made_again(folder: Path) -> None:
    create(folder).close()
    (folder / "config.toml").rename(folder / ".config.toml.1-ab.tmp")
    with create(folder) as run:
        run.write("edits", "u", unit(0))
    assert not (folder / ".config.toml.1-ab.tmp").exists()


def test_a_newer_schema_is_refused(folder: Path) -> None:
    fill(folder).close()
    newer = SCHEMA_VERSION + 1
    (folder / "provenance.json").write_text(json.dumps(PROVENANCE | {"schema_version": newer}))
    for open_it in (load_run, create):
        with pytest.raises(BadRun, match=f"written by a newer loc_edit.*version {newer}"):
            open_it(folder)


@pytest.mark.parametrize("name", ["config.toml", "provenance.json"])
def test_a_damaged_description_is_named(folder: Path, name: str) -> None:
    create(folder).close()
    text = (folder / name).read_text()
    (folder / name).write_text(text[: len(text) // 2] + "[=")
    with pytest.raises(BadRun, match=f"{name} is damaged"):
        load_run(folder)


@pytest.mark.parametrize(
    "content",
    [
        {"edits": {}, "facts": {}},
        {"traces": 5, "edits": {}, "facts": {}},
        {"traces": ["a"], "edits": {}, "facts": {}},
        {"traces": {}, "edits": {}, "facts": ["0"]},
        {"traces": {}, "edits": {}, "facts": {"first": "content"}},
    ],
)
def test_a_selection_of_a_wrong_shape_is_refused_with_its_file(tmp_path: Path, content: dict[str, Any]) -> None:
    write_json(tmp_path / "selection.json", content)
    with pytest.raises(Damaged, match=r"selection\.json is damaged: .*run the experiment again"):
        Selection.read(tmp_path)


def test_a_selection_comes_back_with_its_sequences(tmp_path: Path) -> None:
    about = {"problem": "error_injection", "layer": 1}
    for selection in (Selection(facts={0: "c"}), Selection({"t": about}, {"e": about}, {3: "c"}, {"s": about})):
        selection.write(tmp_path)
        assert Selection.read(tmp_path) == selection


def test_a_run_is_made_with_its_parents_and_a_version_that_is_no_number_is_damage(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "run"
    create(folder).close()
    write_json(folder / "provenance.json", PROVENANCE | {"schema_version": "newest"})
    with pytest.raises(BadRun, match=r"provenance\.json is damaged: .*newest"):
        load_run(folder)


def test_failed_rows_are_forgotten_and_the_others_of_their_units_stay(folder: Path) -> None:
    with create(folder) as run:
        run.write("edits", "e", [edit(0), edit(1, status="failed", reason="no")])
        run.write("edits", "f", [edit(2, status="failed", reason="no")])
        run.write("traces", "t", [trace(0), trace(1, reason="no")])
        run.write("traces", "u", [trace(2)])
        run.forget_failed()
        assert (run.done("edits"), run.done("traces")) == ({"e"}, {"t", "u"})
        assert (set(run.edits["fact_id"]), set(run.traces["fact_id"])) == ({0}, {0, 2})


def test_a_configuration_that_toml_cannot_hold_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"configuration\.rome\.lr: <object .* is object; expected a bool"):
        create(folder, {"rome": {"lr": object()}})
    assert not folder.exists()


def test_a_run_copied_elsewhere_still_loads_and_resumes(folder: Path, tmp_path: Path) -> None:
    fill(folder).close()
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(folder, copy)
    rows = load_run(folder).edits
    shutil.rmtree(folder)
    pd.testing.assert_frame_equal(load_run(copy).edits, rows)
    with create(copy) as run:
        assert len(run.done("edits")) == 3


def test_the_clock_does_not_matter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folder, 2).close()
    rows = load_run(folder).edits
    for number, path in enumerate([*folder.rglob("*"), folder]):
        os.utime(path, (number % 3 * 4e9, number % 3 * 4e9))
    for name in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, lambda: -1e9)
    with create(folder) as run:
        assert run.done("edits") == {"unit-0", "unit-1"}
        run.write("edits", "unit-1", unit(1))
    pd.testing.assert_frame_equal(run.edits, rows)


def test_a_cell_is_its_whole_configuration() -> None:
    cell = {"method": "rome", "layers": [3], "settings": {"lr": 0.5, "steps": 20}}
    same = {
        "settings": {"steps": 20.0, "lr": np.float64(0.5), "clamp": None},
        "layers": (3,),
        "method": "rome",
    }
    assert cell_key(cell) == cell_key(same)
    others = [
        {},
        cell | {"seed": 0},
        cell | {"layers": [4]},
        cell | {"settings": {"lr": 0.5}},
        cell | {"layers": 3},
    ]
    assert len({cell_key(other) for other in [cell, *others]}) == 6
    assert cell_key({"bias": True}) != cell_key({"bias": 1})
    assert cell_key({"b": 1e-4, "a": [1, "é"]}) == "818a59ae21f5eb4b"  # for ever: old runs must be found again


def test_repr_tells_rows_and_statuses(folder: Path) -> None:
    with create(folder) as run:
        run.write("traces", "t", [trace(0), trace(1)])
        run.write("edits", "a", [edit(0), edit(1, status="skipped", reason="p < .02"), edit(2)])
    text = repr(load_run(folder))
    assert str(folder) in text
    assert "2 rows in 1 shards" in text
    assert "3 rows in 1 shards (2 done, 1 skipped)" in text


def test_a_notebook_shows_the_mean_scores_of_a_run_by_layer(folder: Path) -> None:
    with create(folder) as run:
        run.write("traces", "t", [trace(0)])
    assert "<table" not in load_run(folder)._repr_html_()  # there are no edits yet
    with create(folder) as run:
        run.write("edits", "a", [edit(0, rewrite=0.25), edit(1, rewrite=0.5)])
        run.write("edits", "b", [edit(2, status="failed", rewrite=None, reason="<b>")])
    html = load_run(folder)._repr_html_()
    assert ">0.375</td>" in html
    assert "3 rows in 2 shards" in html


def test_frame_joins_edits_with_the_effect_at_their_layer(folder: Path) -> None:
    with create(folder) as run:
        run.write("edits", "e", [edit(fact, layer) for fact in (0, 1) for layer in (0, 1)])
        run.write(
            "traces",
            "t",
            [trace(f, layer, p_restored=0.1 + 0.2 * f + 0.4 * layer) for f in (0, 1) for layer in (0, 1)],
        )
    frame = run.frame(window=5)
    assert len(frame) == 4
    expected = (0.2 * frame["fact_id"] + 0.4 * frame["layer"]) / 0.8
    np.testing.assert_allclose(frame["trace"], expected, atol=1e-12)


# --- damage


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0x10
    path.write_bytes(bytes(data))


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, empty])
def test_a_damaged_shard_is_set_aside_and_computed_again(
    folder: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    run = fill(folder)
    whole = run.edits
    run.close()
    damage(files(run)[1])
    reader = load_run(folder)
    assert reader.done("edits") == {"unit-0", "unit-2"}
    assert len(reader.edits) == 8
    assert "1 damaged shard" in repr(reader)
    assert len(files(run)) == 3  # a reader changes nothing
    with create(folder) as resumed:
        assert resumed.done("edits") == {"unit-0", "unit-2"}
        assert [path.name[-8:] for path in (folder / "edits").glob("_*")] == [".corrupt"]
        assert "to be computed again" in caplog.text
        resumed.write("edits", "unit-1", unit(1))
    pd.testing.assert_frame_equal(resumed.edits, whole)
    pd.testing.assert_frame_equal(load_run(folder).edits, whole)


def test_strange_files_among_the_shards_are_left_alone(folder: Path) -> None:
    run = fill(folder)
    rows = run.edits
    for name in ("notes.txt", "mine.parquet", ".unit-9.0123456789abcdef.parquet.7-ab.tmp"):
        (folder / "edits" / name).write_bytes(b"?")
    pd.testing.assert_frame_equal(run.edits, rows)
    run.close()
    with create(folder) as again:
        assert len(again.done("edits")) == 3
    assert sorted(path.name for path in (folder / "edits").iterdir() if path not in files(run)) == ["notes.txt"]
    assert (folder / "edits" / "mine.parquet").exists()


def test_two_whole_shards_of_one_unit_count_once(folder: Path) -> None:
    run = fill(folder, 1)
    shards.write_shard(folder / "edits", "edits", "unit-0", [row | {"seconds": 3.0} for row in unit(0)])
    assert len(files(run)) == 2  # as after a kill between the rename and the removal of the earlier one
    run.close()
    assert len(load_run(folder).edits) == 4
    create(folder).close()
    assert len(files(run)) == 1


def put(folder: Path, table: pa.Table) -> str:
    """A shard whose checksum is right, made behind the store's back."""
    path = folder / "edits" / "x"
    pq.write_table(table, path)
    name = f"odd.{short_hash(path.read_bytes())}.parquet"
    path.rename(path.with_name(name))
    return name


def test_a_shard_that_lacks_a_key_column_or_is_newer_is_named(folder: Path) -> None:
    run = fill(folder)
    run.close()
    table = pq.read_table(files(run)[0], partitioning=None)
    name = put(folder, table.drop_columns("window"))
    with pytest.raises(BadRows, match=rf"{name}: no column 'window'"):
        _ = load_run(folder).edits
    assert "no column 'window'" in repr(load_run(folder))
    (folder / "edits" / name).unlink()
    name = put(folder, table.replace_schema_metadata({"loc_edit.schema_version": "4"}))
    with pytest.raises(BadRows, match=rf"{name} has rows of schema version 4"):
        create(folder)


# --- disks


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_refusing_disk_gives_one_clear_error_and_loses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    run = fill(folder)

    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(disk.os, call, refuse)
        with pytest.raises(StoreError) as caught:
            run.write("edits", "unit-3", unit(3))
    assert caught.value.errno == number
    assert f"cannot write {folder / 'edits' / 'unit-3'}" in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    assert "What was finished before is kept" in str(caught.value)
    assert list((folder / "edits").glob(".*")) == []
    assert run.done("edits") == {"unit-0", "unit-1", "unit-2"}
    run.write("edits", "unit-3", unit(3))
    assert len(run.edits) == 16


def test_a_full_and_a_read_only_disk(small_disk: Path) -> None:
    run = create(small_disk / "run")
    with pytest.raises(StoreError, match="No space left on device") as caught:  # noqa: PT012
        for number in range(100):
            run.write("edits", f"unit-{number}", unit(number))
    assert caught.value.errno == errno.ENOSPC
    assert number > 3
    run.close()
    for options in ("remount,ro", "remount,rw,size=2m"):
        subprocess.run(["mount", "-o", options, small_disk], check=True)
        reader = load_run(small_disk / "run")
        assert len(reader.done("edits")) == number
        assert len(reader.edits) == 4 * number
        if "ro" in options.split(","):
            with pytest.raises(StoreError, match="Read-only file system"):
                create(small_disk / "run")
    with create(small_disk / "run") as run:
        run.write("edits", f"unit-{number}", unit(number))
    assert len(run.edits) == 4 * number + 4


# --- kills and second writers


N_UNITS = 60


def write_all(folder: Path, started: Any, permits: Any) -> None:
    with create(folder) as run:
        started.set()
        for number in sorted(set(range(N_UNITS)) - {int(key[5:]) for key in run.done("edits")}):
            permits.acquire()
            run.write("edits", f"unit-{number}", unit(number))


def hold(folder: Path, started: Any, permits: Any) -> None:
    with create(folder):
        started.set()
        time.sleep(60)


def start(target: Callable[..., None], folder: Path, n_permits: int = 0) -> Any:
    """A started writer that may write at most ``n_permits`` units."""
    started, permits = processes.Event(), processes.Semaphore(n_permits)  # held here until the writer has them
    process = processes.Process(target=target, args=(folder, started, permits))
    process.start()
    assert started.wait(30)
    return process


def kill(process: Any) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join()


@pytest.mark.slow
def test_kills_lose_no_row_and_double_none(folder: Path, tmp_path: Path) -> None:
    pause = random.Random(0)
    done = [0]
    for _ in range(8):
        writer = start(write_all, folder, n_permits=7)  # 8 x 7 < N_UNITS: it is never finished when it is killed
        while len(list((folder / "edits").glob("*.parquet"))) <= done[-1]:
            assert writer.is_alive()
            time.sleep(0.001)
        writer.join(pause.uniform(0.0, 0.02))
        assert writer.is_alive()
        kill(writer)
        reader = load_run(folder)
        done.append(len(reader.done("edits")))
        assert len(reader.edits) == 4 * done[-1]  # whole units only
    assert all(0 < after - before <= 7 for before, after in pairwise(done))
    writer = start(write_all, folder, n_permits=N_UNITS)
    writer.join(60)
    write_all(tmp_path / "unbroken", processes.Event(), processes.Semaphore(N_UNITS))
    pd.testing.assert_frame_equal(load_run(folder).edits, load_run(tmp_path / "unbroken").edits)
    assert len(load_run(folder).edits) == 4 * N_UNITS
    assert list((folder / "edits").glob(".*")) == []


def test_a_second_writer_is_refused_until_the_first_is_killed(folder: Path) -> None:
    holder = start(hold, folder)
    with pytest.raises(RunLocked, match=rf"{folder} is in use by another writer \(process {holder.pid} on"):
        create(folder)
    assert load_run(folder).edits.empty  # readers are welcome
    kill(holder)
    create(folder).close()


def test_a_second_writer_in_this_process_is_refused_until_close(folder: Path) -> None:
    first = create(folder)
    with pytest.raises(RunLocked, match="this one: close its Run first"):
        create(folder)
    first.close()
    with create(folder) as second, pytest.raises(BadRun, match="open for reading only"):
        first.write("edits", "u", [])
    second.close()
    with pytest.raises(BadRun, match="open for reading only"):
        load_run(folder).write("edits", "u", [])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_does_not_keep_its_dead_parents_lock(folder: Path) -> None:
    program = """
import os, sys, time
from pathlib import Path
from loc_edit.store.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
if os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(60)
time.sleep(60)
"""
    folder.mkdir()
    parent = subprocess.Popen([sys.executable, "-c", program, folder], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = int(parent.stdout.readline())
    try:
        with pytest.raises(RunLocked):
            FolderLock(folder)
        parent.kill()
        parent.wait()
        os.kill(child, 0)  # it lives
        FolderLock(folder).release()
    finally:
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


def test_the_lock_holder_is_known_in_a_folder_that_may_only_be_read(small_disk: Path) -> None:
    folder = small_disk / "run"
    assert lock_holder(folder) is None
    run = create(folder)
    subprocess.run(["mount", "-o", "bind", small_disk, small_disk], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", small_disk], check=True)
        with pytest.raises(OSError, match="Read-only"):
            (folder / "x").write_bytes(b"")
        assert lock_holder(folder) == f"process {os.getpid()} on {socket.gethostname()}"
    finally:
        subprocess.run(["umount", small_disk], check=True)
    run.close()
    assert lock_holder(folder) is None
    assert {path.name for path in folder.glob(".*")} == {".lock"}


def test_the_name_that_a_killed_writer_left_does_not_count(folder: Path) -> None:
    holder = start(hold, folder)
    assert lock_holder(folder) == f"process {holder.pid} on {socket.gethostname()}"
    kill(holder)
    assert (folder / ".writer").exists()
    assert lock_holder(folder) is None
    with create(folder):
        assert lock_holder(folder) == f"process {os.getpid()} on {socket.gethostname()}"


def test_a_run_that_nobody_refers_to_gives_its_lock_back(folder: Path) -> None:
    run = create(folder)
    assert lock_holder(folder)
    del run
    gc.collect()
    assert lock_holder(folder) is None


def test_a_disk_without_locks_gets_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with create(folder) as run:
        run.write("edits", "u", unit(0))
    assert "this disk has no file locks" in caplog.text
    assert "unknown: the lock cannot be read" in str(lock_holder(folder))


def test_the_store_needs_no_torch() -> None:
    subprocess.run(
        [sys.executable, "-c", "import loc_edit.store.run, sys; assert 'torch' not in sys.modules"], check=True
    )


def test_rows_of_very_many_identities_are_sorted_and_told_apart(folder: Path) -> None:
    n, names = 3000, ["problem", "method", "layer", "window", "fact_id", "seed"]
    draws = np.random.default_rng(0)
    columns = {name: draws.permutation(n) for name in names}  # more combinations than a 64-bit number can count
    rows = pd.DataFrame(columns | {"status": "done"}).astype({"problem": str, "method": str})
    with create(folder) as run:
        with pytest.raises(BadRows, match="two rows have the key"):
            run.write("edits", "u", pd.concat([rows, rows.tail(1)]))
        run.write("edits", "u", rows)
        found = run.edits
    assert len(found) == n
    in_order = [name for name in IDENTITIES["edits"] if name in names]
    pd.testing.assert_frame_equal(found[names], found.sort_values(in_order, kind="stable")[names])
    assert sorted(found["fact_id"]) == list(range(n))


@pytest.mark.parametrize(("length", "shown"), [(80, "x" * 78), (81, "... (81 characters)")])
def test_long_settings_are_shortened(length: int, shown: str) -> None:
    text = describe(differences({"lr": "x" * (length - 2)}, {"lr": 1}))  # two quotation marks more
    assert shown in text
    assert text.startswith("lr is ")


# --- many small shards as few large ones


def cells_of(n: int) -> Selection:
    about = {"problem": "error_injection", "method": "rome", "window": 1}
    return Selection({}, {f"cell{n}": {**about, "layer": n} for n in range(n)}, {f: f"c{f}" for f in range(12)})


def small_shards(folder: Path) -> Run:
    run = Run.create(folder, CONFIG, PROVENANCE, cells_of(2))
    for number in (2, 0, 3, 1):
        for layer in (0, 1):
            facts = range(3 * number, 3 * number + 3)
            rows = [edit(f, layer, cell=f"cell{layer}", fact_content=f"c{f}", rewrite_after=[f / 7]) for f in facts]
            run.write("edits", f"cell{layer}-{number}", rows)
    return run


def test_rows_are_counted_by_cell_and_those_that_are_not_selected_apart(folder: Path) -> None:
    small_shards(folder).close()
    counted = load_run(folder).cells("edits")
    assert counted["cell"].tolist() == ["cell0", "cell1"]
    assert counted["rows"].tolist() == counted["facts"].tolist() == [12, 12]
    assert counted["present"].tolist() == [True, True]
    fewer = Selection({}, {"cell1": cells_of(2).edits["cell1"]}, {f: f"c{f}" for f in range(4)})
    with Run.create(folder, {**CONFIG, "facts": 3}, PROVENANCE, fewer) as run:
        counted = run.cells("edits")
        assert counted["cell"].tolist() == ["cell1", "cell0"]
        assert counted["present"].tolist() == [True, False]
        assert counted["layer"].tolist() == [1, 0], "described by the history"
        assert counted["rows"].tolist() == [12, 12]
        assert len(run.edits) == 4
        assert run.kept() == 12 + 8


def test_compacting_saves_files_and_changes_no_row(folder: Path) -> None:
    run = small_shards(folder)
    before, facts = run.read("edits", lists=True), {f for shard in run.shards("edits") for f in shard.facts}
    assert run.compact(rows=6) == 4
    pd.testing.assert_frame_equal(run.read("edits", lists=True), before)
    run.close()
    again = load_run(folder)
    pd.testing.assert_frame_equal(again.read("edits", lists=True), before)
    assert len(files(again)) == 4
    assert {f for shard in again.shards("edits") for f in shard.facts} == facts
    with pytest.raises(BadRun, match="reading only"):
        again.compact()
    with Run.create(folder, CONFIG, PROVENANCE, cells_of(2)) as run:
        assert run.compact() == 2
        assert run.compact() == 0
    assert len(files(run)) == 2
    pd.testing.assert_frame_equal(load_run(folder).read("edits", lists=True), before)


@pytest.mark.parametrize("n", range(1, 9))
def test_compacting_may_be_killed_at_any_removal(folder: Path, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    run = small_shards(folder)
    before = run.read("edits", lists=True)
    removed = [0]

    def dying(path: Path) -> None:
        removed[0] += 1
        if removed[0] == n:
            raise KeyboardInterrupt
        path.unlink()

    with monkeypatch.context() as patch:
        patch.setattr(compacting, "remove_shard", dying)
        with pytest.raises(KeyboardInterrupt):
            run.compact()
    run.close()
    pd.testing.assert_frame_equal(load_run(folder).read("edits", lists=True), before)
    with Run.create(folder, CONFIG, PROVENANCE, cells_of(2)) as run:
        run.compact()
    assert len(files(run)) == 2
    pd.testing.assert_frame_equal(load_run(folder).read("edits", lists=True), before)
