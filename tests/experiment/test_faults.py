"""What befalls long runs, really done: kills, Ctrl-C, full disks, damage, want of memory, dead workers."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from pandas.testing import assert_frame_equal
from runs import assert_same_rows, edited, files
from servers import wait_for

from loc_edit.analysis.run import load_run
from loc_edit.editing.registry import EDITORS
from loc_edit.editing.update import Edit
from loc_edit.experiment import batch
from loc_edit.experiment.engine import local
from loc_edit.experiment.failures import ManyFailed
from loc_edit.files import StoreError
from loc_edit.store.lock import RunLocked
from loc_edit.store.rows import KEYS

BIG = {
    "methods": ("rome", "memit-2", "finetune-1", "finetune-2"),
    "problems": ("error_injection", "fact_forcing"),
    "chunk": 1,
}
SOME = {"methods": ("rome", "finetune-1"), "chunk": 1}
KILLS = 20


@pytest.fixture
def in_child():
    """(work) -> the id of a forked process that does it; none is left at the end."""
    children = []

    def start(work):
        pid = os.fork()
        if pid == 0:
            code = 1
            signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever pytest was started under
            try:
                work()
                code = 0
            except KeyboardInterrupt:
                code = 130
            finally:
                os._exit(code)
        children.append(pid)
        return pid

    yield start
    for pid in children:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            continue


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.long
@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_no_row_and_double_none(lab, tmp_path, in_child):
    whole = lab(**BIG, out=str(tmp_path / "whole")).run()
    expected = len(whole.edits)
    folder, draw, killed, seen = tmp_path / "run", random.Random(0), 0, []
    while killed < KILLS:
        before = sum(1 for _ in folder.glob("*/*.parquet"))
        pid = in_child(lambda: lab(**BIG).run())
        wait_for(lambda before=before: sum(1 for _ in folder.glob("*/*.parquet")) > before)
        time.sleep(draw.uniform(0.0, 0.05))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "it was done before it was killed"
        killed += 1
        there = load_run(folder)
        assert there.damaged == []
        assert not there.edits.duplicated(list(KEYS["edits"])).any()
        seen.append(len(there.edits))
    assert seen == sorted(seen), "no row is ever lost"
    assert 0 < seen[-1] < expected, "the last kill came in the middle"
    run = lab(**BIG).run()
    assert len(run.read("edits", cells="all")) == expected, "none twice"
    assert_same_rows(run, whole)
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done_gives_the_lock_back_and_is_logged(lab, tmp_path, in_child):
    whole = lab(**SOME, out=str(tmp_path / "whole")).run()
    folder = tmp_path / "run"
    pid = in_child(lambda: lab(**SOME).run())
    wait_for(lambda: sum(1 for _ in folder.glob("edits/*.parquet")) > 3)
    os.kill(pid, signal.SIGINT)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    assert log_of(folder)[-1]["how"] == "stopped"
    n = len(load_run(folder).edits)
    assert 0 < n < len(whole.edits)
    assert_same_rows(lab(**SOME).run(), whole)


def fails_for(bad, real):
    """A function in place of `real`, which poses a fact's probes, that raises for some facts."""

    def failing(model, fact, *rest):
        if fact.fact_id in bad:
            raise KeyError(f"fact {fact.fact_id}")
        return real(model, fact, *rest)

    return failing


def test_an_unexpected_error_of_one_fact_is_its_row_and_can_be_retried(lab, tmp_path, monkeypatch):
    whole = lab(chunk=4, out=str(tmp_path / "whole")).run()
    real = batch.make_probes
    monkeypatch.setattr(batch, "make_probes", fails_for({2}, real))
    run = lab(chunk=4).run()
    failed = run.edits[run.edits["status"] == "failed"]
    assert set(failed["fact_id"]) == {2}
    assert set(failed["reason"]) == {"KeyError: 'fact 2'"}
    assert len(run.edits) == len(whole.edits)
    columns = ["problem", "method", "layer", "fact_id", "rewrite"]
    others = [rows.edits.query("fact_id != 2")[columns].reset_index(drop=True) for rows in (run, whole)]
    assert_frame_equal(*others, rtol=1e-4, atol=1e-5)
    events = [line for line in log_of(tmp_path / "run") if line["event"] == "failure"]
    assert {event["fact_id"] for event in events} == {2}
    assert all("in failing" in event["traceback"] for event in events)
    monkeypatch.setattr(batch, "make_probes", real)
    assert "failed" in set(lab(chunk=4).run().edits["status"]), "the same run again keeps the rows"
    retried = lab(chunk=4).run(retry_failed=True)
    assert_frame_equal(retried.edits[columns], whole.edits[columns], rtol=1e-4, atol=1e-5)


def test_an_error_of_many_facts_stops_the_run_with_its_reason(lab, tmp_path, monkeypatch):
    whole = lab(chunk=4, out=str(tmp_path / "whole")).run()
    real = batch.make_probes
    monkeypatch.setattr(batch, "make_probes", fails_for({0, 2}, real))
    with pytest.raises(
        ManyFailed, match="error_injection, no edit: 2 of 4 facts failed, fact 0 with KeyError: 'fact 0'"
    ):
        lab(chunk=4).run()
    assert [line["reason"] for line in log_of(tmp_path / "run") if line["event"] == "failure"] == [
        "KeyError: 'fact 0'",
        "KeyError: 'fact 2'",
    ]
    assert load_run(tmp_path / "run").edits.empty
    monkeypatch.setattr(batch, "make_probes", real)
    assert_same_rows(lab(chunk=4).run(), whole)


def test_a_localizer_that_breaks_on_one_fact_leaves_its_trace_empty(lab, tmp_path, monkeypatch):
    whole = lab(chunk=4, out=str(tmp_path / "whole")).run()
    real = batch.localize_many

    def failing(model, prompts, *rest, **more):
        if any(prompt.fact_id == 1 for prompt in prompts):
            raise ZeroDivisionError("nothing there")
        return real(model, prompts, *rest, **more)

    monkeypatch.setattr(batch, "localize_many", failing)
    run = lab(chunk=4).run()
    empty = run.traces["p_restored"].isna()
    assert set(run.traces.loc[empty, "fact_id"]) == {1}
    assert set(run.traces.loc[empty, "reason"]) == {"ZeroDivisionError: nothing there"}
    monkeypatch.setattr(batch, "localize_many", real)
    retried, columns = lab(chunk=4).run(retry_failed=True), ["fact_id", "layer", "pos", "p_restored"]
    assert_frame_equal(retried.traces[columns], whole.traces[columns], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_full_disk_stops_the_run_with_all_rows_and_more_room_ends_it(lab, small_disk, tmp_path):
    whole = lab(**SOME, out=str(tmp_path / "whole")).run()
    with pytest.raises(StoreError, match="No space left on device"):
        lab(**SOME, out=str(small_disk / "run")).run()
    n = len(load_run(small_disk / "run").edits)
    assert 0 < n < len(whole.edits)
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    assert_same_rows(lab(**SOME, out=str(small_disk / "run")).run(), whole)


def test_damaged_shards_are_set_aside_and_computed_again(lab, tmp_path, computed):
    whole = lab(out=str(tmp_path / "whole")).run()
    run = lab().run()
    shards = {shard.path: shard for kind in ("traces", "edits") for shard in run.shards(kind)}
    about = run.selection.edits
    tracing = next(path for path in shards if path.parent.name == "traces")
    edit = next(path for path, shard in shards.items() if about.get(shard.cell, {}).get("method") == "rome")
    tracing.write_bytes(tracing.read_bytes()[:-100])
    data = bytearray(edit.read_bytes())
    data[len(data) // 2] ^= 1
    edit.write_bytes(bytes(data))
    computed.clear()
    mended = lab().run()
    assert sorted(kind for kind, *_ in computed) == ["edits", "traces"]
    assert_same_rows(mended, whole)
    assert len(list((tmp_path / "run").glob("*/_*.corrupt"))) == 2
    assert [line["event"] for line in log_of(run.path)].count("warning") == 0, "seen before the log is open"


DYING = """
import os, signal, sys
from loc_edit.experiment.engine.engine import Engine, compute_tasks
from loc_edit.experiment.engine.lanes import WorkerDied

def open_worker():
    return square

def square(task):
    number, marker = task
    if marker and not os.path.exists(marker):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return number ** 2

if __name__ == "__main__":
    streams = [[(1, ""), (2, sys.argv[1]), (3, "")], [(4, ""), (5, "")]]
    print(sorted(result for _, result in compute_tasks(streams, open_worker, Engine(workers=2))), flush=True)
    try:
        list(compute_tasks([[(13, ""), (1, "")]], open_worker, Engine(workers=2)))
    except WorkerDied as error:
        print(error)
"""


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_one_that_always_dies_ends_the_run(tmp_path):
    (tmp_path / "dying.py").write_text(DYING)
    arguments = [sys.executable, str(tmp_path / "dying.py"), str(tmp_path / "died")]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert (tmp_path / "died").exists()
    first, second = result.stdout.splitlines()
    assert first == "[1, 4, 9, 16, 25]"
    assert second.startswith("3 workers ended while they computed (13, '')")


FAILING = """
from loc_edit.experiment.engine.engine import Engine, compute_tasks

def open_worker():
    return fail

def fail(task):
    raise EOFError(f"task {task} read too far")

if __name__ == "__main__":
    try:
        list(compute_tasks([[1, 2]], open_worker, Engine(workers=2)))
    except EOFError as error:
        print(error)
"""


@pytest.mark.slow
def test_an_error_of_a_task_is_not_taken_for_the_end_of_its_worker(tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    result = subprocess.run([sys.executable, tmp_path / "failing.py"], capture_output=True, text=True, timeout=120)
    assert result.stdout == "task 1 read too far\n", result.stderr


GROWING = """
import os, time
from loc_edit.experiment.engine.engine import Engine, compute_tasks

kept = []

def open_worker():
    return grow

def grow(task):
    kept.append(b"x" * 400_000_000)
    time.sleep(1.2)
    return os.getpid()

if __name__ == "__main__":
    print(len({pid for _, pid in compute_tasks([[1, 2, 3]], open_worker, Engine(workers=2))}))
"""


@pytest.mark.slow
def test_a_worker_whose_memory_grows_keeps_its_model(tmp_path):
    (tmp_path / "growing.py").write_text(GROWING)
    result = subprocess.run([sys.executable, tmp_path / "growing.py"], capture_output=True, text=True, timeout=120)
    assert result.stdout == "1\n", result.stderr


def test_want_of_memory_halves_the_batch_and_ends_in_the_same_rows(lab, tmp_path, monkeypatch):
    whole = lab(chunk=4, out=str(tmp_path / "whole")).run()
    rome, sizes = EDITORS["rome"], []

    def greedy(model, requests, *args, **kwargs):
        sizes.append(len(requests))
        if len(requests) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return rome(model, requests, *args, **kwargs)

    monkeypatch.setitem(EDITORS, "rome", greedy)
    run = lab(chunk=4).run()
    assert sizes == [4, 2, 1, 1, 1, 1] * 2
    assert set(run.edits["status"]) == {"done"}
    assert_same_rows(run, whole, rtol=2e-4, atol=1e-5)
    warnings = [line["message"] for line in log_of(run.path) if line["event"] == "warning"]
    assert len(warnings) == 4
    assert "out of memory" in warnings[0]


def test_memory_that_does_not_suffice_for_one_fact_stops_the_run_and_is_no_result(lab, monkeypatch):
    def greedy(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setitem(EDITORS, "rome", greedy)
        with pytest.raises(torch.OutOfMemoryError):
            lab().run()
    assert not (load_run(lab().config.out).edits["status"] == "failed").any()
    assert (
        log_of(load_run(lab().config.out).path)[-1] | {"how": "failed"} == log_of(load_run(lab().config.out).path)[-1]
    )
    assert set(edited(lab().run())["status"]) == {"done"}


def test_an_edit_of_nan_is_a_failed_row_with_a_reason(lab, tmp_path, monkeypatch):
    whole = lab(out=str(tmp_path / "whole")).run()
    rome = EDITORS["rome"]

    def broken(model, requests, *args, **kwargs):
        edits = rome(model, requests, *args, **kwargs)
        return [spoilt(e) if r.fact_id == 1 else e for e, r in zip(edits, requests, strict=True)]

    def spoilt(edit):
        return Edit(tuple(replace(u, right=u.right * float("nan")) for u in edit.updates), edit.about)

    monkeypatch.setitem(EDITORS, "rome", broken)
    edits = edited(lab().run()).set_index("fact_id")
    assert set(edits.loc[[1], "status"]) == {"failed"}
    assert edits.loc[[1], "rewrite"].isna().all()
    assert (edits.loc[[1], "reason"] != "").all()
    assert set(edits.drop(index=1)["status"]) == {"done"}
    sound = edited(whole).set_index("fact_id").drop(index=1)["rewrite"]
    assert edits.drop(index=1)["rewrite"].tolist() == sound.tolist()


@pytest.mark.slow
def test_a_second_process_on_the_folder_is_refused_until_the_first_is_gone(lab, tmp_path, in_child):
    whole = lab(**SOME, out=str(tmp_path / "whole")).run()
    folder = tmp_path / "run"
    pid = in_child(lambda: lab(**SOME).run())
    wait_for(lambda: any(folder.glob("edits/*.parquet")))
    with pytest.raises(RunLocked, match=f"process {pid} on"):
        lab(**SOME).run()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert_same_rows(lab(**SOME).run(), whole)


def test_a_clock_that_jumps_changes_no_row_and_no_duration(lab, tmp_path, monkeypatch):
    whole = lab(out=str(tmp_path / "whole")).run()
    real, jumps = time.time, iter([0, 10**8, -(10**8), 5, -(10**9)] * 100)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + next(jumps))
        at_work = lab().rows()
        for _ in range(4):
            next(at_work)
        at_work.close()
        for n, path in enumerate((tmp_path / "run").rglob("*.parquet")):
            os.utime(path, (real() + (-1) ** n * 10**8,) * 2)
        run = lab().run()
    assert_same_rows(run, whole)
    elapsed = [line["elapsed"] for line in log_of(run.path)]
    assert max(elapsed) < 600
    assert min(elapsed) >= 0


@pytest.mark.slow
def test_a_folder_copied_elsewhere_goes_on_there(lab, tmp_path, computed):
    whole = lab(**SOME, out=str(tmp_path / "whole")).run()
    at_work = lab(**SOME).rows()
    for _ in range(12):
        next(at_work)
    copy = tmp_path / "other disk" / "copied"
    shutil.copytree(tmp_path / "run", copy)  # while it is being written
    at_work.close()
    before = files(tmp_path / "run")
    computed.clear()
    run = lab(**SOME, out=str(copy)).run()
    assert 0 < len(computed) < 4 * (1 + 2 * 2)
    assert_same_rows(run, whole)
    assert files(tmp_path / "run") == before


@pytest.fixture
def interruptible():
    """Ctrl-C raises `KeyboardInterrupt`, also where the tests were started with the signal ignored, as by nohup."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("interruptible")
def test_a_process_that_starts_never_sees_ctrl_c_and_this_one_sees_it_afterwards():
    command = [sys.executable, "-c", "print('up', flush=True); import time; time.sleep(60)"]
    start = partial(subprocess.Popen, command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    started = []

    def interrupted_start():
        with local._interrupts_held():
            started.append(start())
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            started.append("the end of the block")

    with pytest.raises(KeyboardInterrupt):
        interrupted_start()
    protected, end = started
    assert end
    with start() as ordinary, protected:
        for process in (protected, ordinary):
            assert process.stdout.readline() == b"up\n"
            process.send_signal(signal.SIGINT)
        assert ordinary.wait(timeout=60) != 0
        assert protected.poll() is None
        protected.kill()
