"""The study end to end on a random model of two layers: what is on disk, what is computed, what a stop leaves."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from runs import assert_same_rows, edited, files

import loc_edit
from loc_edit import names
from loc_edit.editing.registry import EDITORS
from loc_edit.editing.value import EditFailed
from loc_edit.events import listening
from loc_edit.experiment import experiment
from loc_edit.experiment.experiment import Experiment
from loc_edit.experiment.setup import Setup
from loc_edit.experiment.study import EditCell, TraceCell
from loc_edit.facts.loading import save_facts
from loc_edit.store.folder import RunMismatch
from loc_edit.store.lock import RunLocked
from loc_edit.store.rows import KEYS, SCHEMAS

METHODS = ("rome", "memit-2", "finetune-1", "finetune-2")
PROBLEMS = tuple(names.PROBLEMS)


# What a run leaves


def test_a_run_has_its_rows_configuration_and_provenance(lab, tiny, facts):
    run = lab().run()
    traces, edits = run.traces, run.edits
    assert set(SCHEMAS["traces"].names) <= set(traces.columns)
    assert set(SCHEMAS["edits"].names) <= set(run.read("edits", lists=True).columns)
    cells = sum(len(loc_edit.encode(tiny, fact)) for fact in facts) * tiny.cfg.n_layers
    assert len(traces) == cells
    assert len(edited(run)) == len(facts) * tiny.cfg.n_layers
    for frame, kind in ((traces, "traces"), (edits, "edits")):
        assert not frame.duplicated(list(KEYS[kind])).any()
    assert set(edits["status"]) == {"done"}
    assert edits["rewrite"].between(0, 1).all()
    assert set(zip(edits["fact_id"], edits["target"], strict=True)) == {(f.fact_id, f.target_new) for f in facts}
    assert run.provenance["model_fingerprint"] == loc_edit.fingerprint(tiny)
    assert run.provenance["torch"]
    assert run.config["sigma"] == 1.5
    assert run.config["layers"] == [0, 1]
    assert run.config["settings"]["rome-1"]["error_injection"]["steps"] == 3
    assert {"config.toml", "provenance.json", "contexts.json"} <= {path.name for path in run.path.iterdir()}


def test_rows_hold_what_the_public_functions_give(lab, tiny, facts, stats_of):
    run = lab(layers=(1,), essence=True).run()
    contexts = json.loads((run.path / "contexts.json").read_text())["0"]["rome"]
    edits = edited(run).set_index("fact_id")
    for fact in facts:
        prompt = loc_edit.encode(tiny, fact)
        noise = loc_edit.subject_noise(tiny, prompt, scale=1.5, samples=2)
        trace = loc_edit.trace(tiny, prompt, fact.target_true, noise=noise, window=1)
        mine = run.traces[run.traces["fact_id"] == fact.fact_id]
        assert mine["p_restored"].tolist() == pytest.approx(trace.p_restored.flatten().tolist(), rel=1e-4, abs=1e-9)
        assert mine["p_clean"].iloc[0] == pytest.approx(trace.p_clean, rel=1e-4)
        request = loc_edit.pose(fact, "error_injection", tiny)
        settings = loc_edit.RomeSettings(steps=3)
        edit = loc_edit.rome(tiny, request, 1, stats=stats_of(tiny), contexts=contexts, settings=settings)
        score = loc_edit.score(tiny, fact, request, edit)
        row = edits.loc[fact.fact_id]
        for name in ("rewrite", "paraphrase", "neighborhood", "essence", "overall"):
            assert row[name] == pytest.approx(getattr(score, name), rel=1e-3, abs=1e-6, nan_ok=True)


def test_facts_are_only_traced_or_only_edited(lab, facts, computed):
    traced = lab(problems=()).run()
    assert {kind for kind, *_ in computed} == {"traces"}
    assert len(traced.traces)
    assert traced.edits.empty
    computed.clear()
    edits = edited(lab(localizers=()).run())
    assert {kind for kind, *_ in computed} == {"edits"}
    assert len(edits) == len(facts) * 2
    assert len(edited(lab().run())) == len(edits)  # the same folder, whose rows are all there


@pytest.mark.slow
def test_every_method_and_problem_gives_each_row_once(lab, facts):
    run = lab(methods=METHODS, problems=PROBLEMS, windows=(1, 2), essence=True).run()
    assert not run.edits.duplicated(list(KEYS["edits"])).any()
    edits = edited(run)
    assert len(edits) == len(METHODS) * len(PROBLEMS) * 2 * len(facts)
    assert set(zip(edits["method"], edits["window"], strict=True)) == {
        ("rome", 1),
        ("memit", 2),
        ("finetune", 1),
        ("finetune", 2),
    }
    assert set(edits["problem"]) == set(PROBLEMS)
    assert set(edits["status"]) <= {"done", "skipped"}
    done = edits[edits["status"] == "done"]
    assert set(done["problem"]) >= set(PROBLEMS) - {"fact_erasure"}
    assert set(done.loc[done["problem"] == "fact_erasure", "objective"]) <= {"lower"}
    assert (edits.loc[edits["status"] == "skipped", "reason"] != "").all()
    assert set(run.traces["window"]) == {1, 2}


def test_frame_joins_edits_and_traces(lab, facts):
    made = lab(windows=(2,))
    run = made.run()
    frame = made.frame()
    pd.testing.assert_frame_equal(frame, run.frame(window=2))
    assert len(frame) == len(edited(run))
    known = frame[frame["trace"].notna()]
    assert set(known["fact_id"]) == {0, 1, 3}  # the other's answer is too unlikely to have a fraction
    for row in known.itertuples():
        cells = run.traces.query("fact_id == @row.fact_id and layer == @row.layer and pos >= subject_begin")
        best = ((cells["p_restored"] - cells["p_corrupted"]) / (cells["p_clean"] - cells["p_corrupted"])).max()
        assert row.trace == pytest.approx(max(0, best))


@pytest.mark.slow
def test_plan_counts_and_writes_nothing(lab, tmp_path):
    config = {"methods": METHODS[:3], "problems": PROBLEMS[:2], "windows": (1, 2)}
    plan = lab(**config).plan()
    assert (plan.facts, plan.layers, plan.combinations) == (4, 2, 6)
    assert plan.traces == 4 * 2
    assert plan.edits == 4 * 3 * 2 * 2
    assert 0 < plan.seconds < math.inf
    assert not (tmp_path / "run").exists()
    run = lab(**config).run()
    assert len(edited(run)) == plan.edits
    assert len(run.traces.groupby(["fact_id", "window"])) == plan.traces


def test_progress_counts_every_shard(lab):
    seen = []
    with listening(lambda event: seen.append(event.fields) if event.name == "progress" else None):
        lab().run()
    shards = [fields for fields in seen if fields["task"] == "shards"]
    # 2 chunks x (1 window + no edit + 2 layers + random layer)
    assert [fields["done"] for fields in shards] == list(range(1, 11))
    assert {fields["total"] for fields in shards} == {10}
    details = [fields["detail"] for fields in shards]
    assert details[:3] == ["tracing, window 1", "error_injection, no edit", "error_injection, rome-1, layer 0"]


def test_rows_come_when_they_are_on_disk(lab):
    made = lab()
    for n, _ in enumerate(made.rows(), 1):
        assert len(files(made.config.out)) >= n + 2
    assert n == 10


# What it is compared with


@pytest.mark.slow
def test_the_unedited_model_is_a_row_for_each_fact_and_problem(lab, facts):
    run = lab(methods=METHODS[:2], problems=("error_injection", "fact_forcing"), essence=True).run()
    none = run.read("edits", lists=True).query("method == 'none'")
    assert sorted(zip(none["problem"], none["fact_id"], strict=True)) == [
        (problem, fact.fact_id) for problem in ("error_injection", "fact_forcing") for fact in facts
    ]
    assert set(none["layer"]) == {-1}
    assert (none["rewrite"] == 0).all()
    assert (none["neighborhood"].dropna() == 1).all()
    assert (none["essence"] == 1).all()
    other = run.read("edits", lists=True).query("method == 'rome' and layer == 1")
    both = none.merge(other, on=["problem", "fact_id"])
    assert [list(p) for p in both["rewrite_before_x"]] == [list(p) for p in both["rewrite_before_y"]]


@pytest.mark.slow
def test_a_random_layer_is_drawn_for_each_fact_and_its_row_is_a_copy(lab, facts):
    run = lab(methods=METHODS, problems=("error_injection", "fact_forcing")).run()
    drawn = run.edits[run.edits["method"].str.startswith("random_layer")]
    assert len(drawn) == len(METHODS) * 2 * len(facts)
    assert set(drawn["layer"]) == {0, 1}  # else the seed of this test is unlucky
    assert (drawn.groupby("fact_id")["layer"].nunique() == 1).all()
    drawn = drawn.assign(method=drawn["method"].str.removeprefix("random_layer_"))
    key = list(KEYS["edits"])
    pairs = drawn.merge(edited(run), on=key, validate="one_to_one")
    assert len(pairs) == len(drawn)
    pd.testing.assert_series_equal(pairs["rewrite_x"], pairs["rewrite_y"], check_names=False)
    assert run.counts() == {"done": len(edited(run))}
    assert not set(run.frame()["method"]) & {"none", "random_layer_rome"}


# Once, and the same however it is divided


def test_a_second_run_recomputes_nothing(lab, computed):
    first = lab().run()
    assert len(computed) == 6
    before = files(first.path)
    computed.clear()
    second = lab().run()
    assert computed == []
    assert files(second.path) == before
    assert_same_rows(first, second)


@pytest.mark.slow
def test_the_chunk_size_does_not_change_the_numbers(lab, tmp_path):
    config = {"methods": METHODS, "problems": PROBLEMS, "essence": True, "layers": (0, 1)}
    one, other = (lab(chunk=size, out=str(tmp_path / f"{size}"), **config).run() for size in (1, 3))
    assert len(list((one.path / "edits").iterdir())) == 2 * len(list((other.path / "edits").iterdir()))
    assert_same_rows(one, other, rtol=1e-6, atol=5e-6)  # docs/promises.md says so


@pytest.mark.slow
def test_runs_of_one_configuration_are_equal(lab, tmp_path):
    config = {"methods": METHODS, "problems": ("fact_forcing",), "layers": (0,)}
    one, other = (lab(out=str(tmp_path / name), **config).run() for name in "ab")
    assert_same_rows(one, other)


def test_the_seed_changes_the_numbers(lab, tmp_path):
    one, other = (lab(seed=seed, out=str(tmp_path / f"{seed}")).run() for seed in (0, 1))
    assert one.traces["p_clean"].equals(other.traces["p_clean"])
    assert not one.traces["p_restored"].equals(other.traces["p_restored"])
    assert set(other.edits["seed"]) == {1}


# Stopped, and taken up again


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "stop"), [(1, KeyboardInterrupt), (3, KeyboardInterrupt), (4, MemoryError), (6, OSError)]
)
def test_a_stopped_run_goes_on_to_the_same_rows(lab, tmp_path, monkeypatch, computed, stop, n):
    whole = lab(out=str(tmp_path / "whole")).run()
    counting = TraceCell.rows, EditCell.rows
    computed.clear()

    def stopping(work):
        def compute(*args):
            if len(computed) == n - 1:
                raise stop
            return work(*args)

        return compute

    with monkeypatch.context() as patch:
        patch.setattr(TraceCell, "rows", stopping(counting[0]))
        patch.setattr(EditCell, "rows", stopping(counting[1]))
        with pytest.raises(stop):
            lab().run()
    finished = list(computed)
    assert len(finished) == n - 1
    computed.clear()
    resumed = lab().run()
    assert len(computed) == 6 - (n - 1)
    assert not set(computed) & set(finished)
    assert_same_rows(whole, resumed)


def test_contexts_are_those_of_the_first_start(lab, monkeypatch, computed):
    first = lab().run()
    saved = (first.path / "contexts.json").read_bytes()
    shards = {path: pq.read_table(path).column("method")[0].as_py() for path in (first.path / "edits").iterdir()}
    next(path for path, method in shards.items() if method == "rome").unlink()
    monkeypatch.setattr("loc_edit.experiment.setup.sample_contexts", lambda *a, **k: pytest.fail("sampled again"))
    computed.clear()
    second = lab().run()
    assert len(computed) == 1
    assert (second.path / "contexts.json").read_bytes() == saved
    assert len(edited(second)) == 8


KILLED = """
import os, signal, sys
from loc_edit import Experiment, ExperimentConfig

replace = os.replace
def dying(a, b, count=[0]):
    count[0] += str(b).endswith(".parquet")
    if count[0] == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(a, b)
os.replace = dying
Experiment(ExperimentConfig.from_toml(sys.argv[1])).run()
"""


@pytest.fixture(scope="module")
def builtin_run(tmp_path_factory):
    """A small configuration on the built-in model, its file, and an unbroken run of it."""
    folder = tmp_path_factory.mktemp("builtin")
    config = loc_edit.ExperimentConfig(
        facts=3,
        layers=(3,),
        chunk=1,
        noise_samples=2,
        windows=(3,),
        corpus_tokens=2000,
        settings={"rome": {"steps": 2}},
        essence=False,
        out=str(folder / "whole"),
    )
    return config, Experiment(config).run()


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_rows(builtin_run, tmp_path, computed):
    config, whole = builtin_run
    killed = config.model_copy(update={"out": str(tmp_path / "killed")})
    (tmp_path / "my.toml").write_text(killed.to_toml())
    arguments = [sys.executable, "-c", KILLED, str(tmp_path / "my.toml"), "4"]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert result.returncode == -signal.SIGKILL, result.stderr
    there = loc_edit.load_run(killed.out)
    assert len(there.done("traces")) + len(there.done("edits")) == 3
    assert list(Path(killed.out).rglob("*.tmp"))  # killed in the middle of writing
    resumed = Experiment(killed).run()
    assert len(computed) == 4  # of 6; one of the three was the row without an edit
    assert not list(Path(killed.out).rglob("*.tmp"))
    assert_same_rows(whole, resumed, rtol=1e-4, atol=1e-6)  # another process may round otherwise


PARENT = """
import os, time
from loc_edit.experiment.engine.engine import Engine, compute_tasks

def open_worker():
    return slow

def slow(task):
    if task:
        time.sleep(600)
    return os.getpid()

if __name__ == "__main__":
    for n, (_, pid) in enumerate(compute_tasks([[0, 1], [0, 1]], open_worker, Engine(workers=2))):
        print(pid, flush=True)
"""


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py")], stdout=subprocess.PIPE, text=True)
    workers = {int(parent.stdout.readline()) for _ in range(2)}
    assert len(workers) == 2
    assert all(is_alive(pid) for pid in workers)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while any(is_alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [pid for pid in workers if is_alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"  # a zombie is done


# What is refused


def test_another_model_in_the_folder_is_refused(lab, monkeypatch, make_model):
    run = lab(methods=("finetune-1",)).run()
    before = files(run.path)
    monkeypatch.setattr(Setup, "model", make_model(seed=9))
    with pytest.raises(RunMismatch, match="another model"):
        lab(methods=("finetune-1",)).run()
    assert files(run.path) == before


def test_a_second_writer_is_refused(lab):
    made = lab()
    at_work = made.rows()
    next(at_work)
    with pytest.raises(RunLocked, match="in use"):
        lab().run()
    assert len(list(at_work)) == 9


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"layers": (2,)}, ValueError, r"\[2\].*layers 0 to 1"),
        ({"layers": (-1,)}, ValueError, r"got \(-1,\)"),
        ({"noise": "abc"}, ValueError, "abc"),
        ({"data": "absent.json"}, FileNotFoundError, "absent.json"),
        ({"site": "nonsense"}, ValueError, "nonsense"),
    ],
)
def test_what_cannot_be_run_makes_no_folder(lab, tmp_path, change, error, words):
    with pytest.raises(error, match=words):
        lab(**change).run()
    assert not (tmp_path / "run").exists()


def test_a_fact_that_does_not_fit_makes_no_folder(lab, tmp_path, facts):
    long = replace(facts[1], template="Nobody crossed it. " * 30 + "{} is", fact_id=77)
    wordy = replace(facts[1], template="the " * 58 + "{} is", target_true="north " * 30, fact_id=78)
    for fact in (long, wordy):
        save_facts([facts[0], fact], tmp_path / "bad.jsonl")
        with pytest.raises(ValueError, match=f"fact {fact.fact_id}: "):
            lab(data=str(tmp_path / "bad.jsonl")).run()
        assert not (tmp_path / "run").exists()


def test_facts_of_one_id_are_refused(lab, tmp_path, facts):
    save_facts([facts[0], replace(facts[1], fact_id=0)], tmp_path / "twice.jsonl")
    with pytest.raises(loc_edit.BadFact, match="record 1: its id 0 already belongs to record 0"):
        lab(data=str(tmp_path / "twice.jsonl")).run()


# Which facts


def test_facts_may_be_the_first_few_those_known_or_those_likely(lab, tiny, facts, monkeypatch):
    likely = {answer.fact_id: answer.p_true for answer in loc_edit.answers(tiny, facts)}
    least = sorted(likely.values())[2]
    assert sorted(likely.values())[1] < least  # there is something to leave out
    kept = [fact.fact_id for fact in lab(min_probability=least).facts]
    assert kept == [fact_id for fact_id, p in likely.items() if p >= least]
    assert [fact.fact_id for fact in lab(data_limit=2).facts] == [0, 1]
    known = [a.fact_id for a in loc_edit.answers(tiny, facts) if a.known]
    assert len(known) < len(facts)
    if known:
        assert [fact.fact_id for fact in lab(known=True).facts] == known
    with pytest.raises(loc_edit.BadFact, match="the model knows none of the 4 facts"):
        _ = lab(min_probability=1.0).facts


def test_facts_that_settings_were_tuned_on_can_be_left_out(lab):
    chosen = lab(facts=None).facts
    tuned_on, studied = lab(facts=1).facts, lab(facts=2, skip_facts=1).facts
    assert [*tuned_on, *studied] == chosen[:3]
    assert lab(facts=None, skip_facts=1).facts == chosen[1:]
    with pytest.raises(loc_edit.BadFact, match="skip_facts 4 leaves none of 4 facts"):
        _ = lab(skip_facts=4).facts
    with pytest.raises(ValueError, match="expected an integer of at least 0, got -1"):
        lab(skip_facts=-1)


def test_malformed_records_are_refused_or_left_out(lab, tmp_path, facts):
    save_facts(facts[:2], tmp_path / "some.jsonl")
    with open(tmp_path / "some.jsonl", "a") as file:
        file.write('{"subject": "Rome"}\n')
    with pytest.raises(loc_edit.BadFact, match="record 2"):
        lab(data=str(tmp_path / "some.jsonl")).run()
    assert not (tmp_path / "run").exists()
    run = lab(data=str(tmp_path / "some.jsonl"), skip_invalid=True).run()
    assert set(run.edits["fact_id"]) == {0, 1}


def test_statistics_are_those_of_the_layers_that_editors_need(lab, tiny, stats_of, monkeypatch):
    asked, given = [], stats_of(tiny)
    monkeypatch.undo()  # the lab's statistics are given
    monkeypatch.setattr(Setup, "model", tiny)
    monkeypatch.setattr(
        "loc_edit.experiment.setup.key_stats", lambda *args, **kwargs: asked.append((args, kwargs)) or given
    )
    _ = lab(layers=(1,), methods=("rome", "finetune-2"), ridge=0.5).setup.stats
    _ = lab(layers=(1,), methods=("memit-2",)).setup.stats
    assert [args[1] for args, _ in asked] == [[1], [0, 1]]
    assert asked[0][1]["ridge"] == 0.5


# Facts that fail


def test_a_fact_that_fails_has_a_row_and_stops_no_other(lab, tmp_path, monkeypatch):
    whole = lab(chunk=4, out=str(tmp_path / "whole")).run()
    rome = EDITORS["rome"]

    def failing(model, requests, *args, **kwargs):
        if 1 in [request.fact_id for request in requests]:
            raise EditFailed("fact 1: the value is not finite")
        return rome(model, requests, *args, **kwargs)

    monkeypatch.setitem(EDITORS, "rome", failing)
    run = lab(chunk=4).run()
    edits = edited(run).set_index("fact_id")
    assert set(edits.loc[1, "status"]) == {"failed"}
    assert set(edits.loc[1, "reason"]) == {"fact 1: the value is not finite"}
    assert edits.loc[1, "rewrite"].isna().all()
    assert set(edits.drop(index=1)["status"]) == {"done"}
    same = whole.edits[whole.edits["fact_id"] != 1].drop(columns="seconds").reset_index(drop=True)
    mine = run.edits[run.edits["fact_id"] != 1].drop(columns="seconds").reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, same, rtol=2e-4, atol=1e-5)
    assert len(run.traces) == len(whole.traces)


def test_a_fact_that_a_problem_makes_no_sense_for_is_skipped_with_a_reason(lab, tmp_path, facts):
    odd = [facts[0], replace(facts[1], target_new=None), replace(facts[2], target_new=facts[2].target_true)]
    save_facts(odd, tmp_path / "odd.jsonl")
    run = lab(data=str(tmp_path / "odd.jsonl")).run()
    edits = run.edits.set_index("fact_id")
    assert set(edits.loc[0, "status"]) == {"done"}
    assert set(edits.loc[[1, 2], "status"]) == {"skipped"}
    assert all("needs target_new" in reason for reason in edits.loc[1, "reason"])
    assert all("also target_true" in reason for reason in edits.loc[2, "reason"])
    assert run.counts() == {"skipped": 4, "done": 2}


@pytest.mark.slow
def test_a_problem_for_no_fact_is_all_skipped(lab, tmp_path, facts):
    save_facts([replace(fact, target_new=None) for fact in facts], tmp_path / "none.jsonl")
    run = lab(data=str(tmp_path / "none.jsonl")).run()
    assert set(run.edits["status"]) == {"skipped"}
    assert len(run.traces)
    found = loc_edit.analyze(run, draws=10)
    assert "figure_1" in found.written
    assert "no finished edit has a score" in found.missing["statistics"]
    assert "table_3" in found.missing


def test_facts_are_spread_over_the_relations(lab, facts):
    chosen = lab(facts=2).facts
    assert len(chosen) == 2
    assert len({fact.relation for fact in chosen}) == 2
    assert lab(facts=None).facts == lab(facts=99).facts == facts


def test_there_are_as_many_workers_as_cores_and_memory_allow(lab, monkeypatch):
    monkeypatch.setattr(experiment, "cores", lambda: 4)
    size = sum(p.nbytes for p in lab().model.parameters())
    process = experiment.WITHOUT_MODEL + experiment.COPIES * size
    for free, workers in ((100 * process, 4), (6 * process, 3), (process, 1), (0, 1)):
        monkeypatch.setattr(experiment, "free_memory", lambda device, free=free: free)
        assert lab().default_workers() == workers
    assert lab(workers=7).default_workers() == 7
    assert lab(engine="ray").default_workers() is None
