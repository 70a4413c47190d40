"""The progress of a run, read from its folder: counts, reasons, rate, writer; and the plan before a run."""

import fcntl
import math
import os
import re
import shutil
import time

import pandas as pd
import pytest

import loc_edit
from loc_edit.analysis.run import Run, load_run
from loc_edit.analysis.status import failed_cells, grouped_reasons, reason_lines, run_progress
from loc_edit.analysis.tables.rows import without_controls
from loc_edit.cli.main import main
from loc_edit.experiment.experiment import Experiment
from loc_edit.experiment.setup import Setup
from loc_edit.facts.loading import save_facts
from loc_edit.store.layout import LOCK, BadRun
from loc_edit.store.lock import RunLocked, lock_holder
from loc_edit.store.settings import cell_key

CONFIG = {
    "model": "builtin",
    "data": "builtin",
    "facts": 4,
    "layers": [2, 3],
    "methods": ["rome", "finetune-5"],
    "problems": ["error_injection", "tracing_reversal"],
    "windows": [1, 5],
    "chunk": 2,
    "seed": 0,
}
CHUNKS = ([0, 1], [2, 3])
REASON = "fact {}: the noised output {!r} is the true object already"


def edit_shard(run, problem, method, window, layer, facts, **columns):
    """One shard: done rows, but for what `columns` says of each fact."""
    cell = cell_key({"of": [problem, method, window, layer]})
    rows = [
        {"problem": problem, "method": method, "window": window, "layer": layer, "fact_id": fact, "cell": cell}
        | {"status": "done", "rewrite": 0.5, "seconds": 2.0}
        | {name: values[i] for name, values in columns.items()}
        for i, fact in enumerate(facts)
    ]
    key = f"{cell}-{cell_key({'facts': facts})}"
    run.write("edits", key, rows)
    return next((run.path / "edits").glob(f"{key}.*"))


def trace_shard(run, window, facts):
    rows = [
        {"fact_id": fact, "site": "mlp_out", "window": window, "layer": layer, "pos": pos, "p_clean": 0.5}
        for fact in facts
        for layer in range(3)
        for pos in range(2)
    ]
    run.write("traces", f"{cell_key({'window': window})}-{cell_key({'facts': facts})}", rows)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def half(folder):
    """Half a run: of 32 edits 9 are done, 2 skipped and 1 failed, in 6 shards of 16; of 8 traces 6 are done."""
    with Run.create(folder, CONFIG, {}) as run:
        for window, facts in ((1, CHUNKS[0]), (1, CHUNKS[1]), (5, CHUNKS[0])):
            trace_shard(run, window, facts)
        for layer in (2, 3):
            edit_shard(run, "error_injection", "rome", 1, layer, CHUNKS[0])
        edit_shard(run, "error_injection", "rome", 1, 2, CHUNKS[1])
        failed = {"status": ["done", "failed"], "reason": ["", "fact 3: p is not a number"], "rewrite": [0.1, math.nan]}
        edit_shard(run, "error_injection", "finetune", 5, 2, CHUNKS[1], **failed)
        skipped = {"status": ["done", "skipped"], "reason": ["", REASON.format(1, "it's")], "seconds": [4.0, math.nan]}
        for layer in (2, 3):
            edit_shard(run, "tracing_reversal", "finetune", 5, layer, CHUNKS[0], **skipped)
        edit_shard(run, "error_injection", "none", 0, -1, CHUNKS[0], seconds=[math.nan] * 2)
    return folder


@pytest.fixture
def say(monkeypatch, capsys):
    """(*arguments) -> exit status and what the command printed."""

    def call(*args):
        monkeypatch.setenv("COLUMNS", "300")
        code = main([str(arg) for arg in args])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


# Counts


def test_half_a_run_is_counted(half):
    progress = run_progress(load_run(half))
    counts = progress.edits.set_index(["problem", "method", "window"])
    expected = pd.DataFrame(
        [
            ("error_injection", "rome", 1, 6, 0, 0, 8, 2, 3, 4),
            ("error_injection", "finetune", 5, 1, 0, 1, 8, 6, 1, 4),
            ("tracing_reversal", "rome", 1, 0, 0, 0, 8, 8, 0, 4),
            ("tracing_reversal", "finetune", 5, 2, 2, 0, 8, 4, 2, 4),
        ],
        columns=[
            *("problem", "method", "window", "done", "skipped", "failed"),
            *("expected", "remaining", "units", "units_expected"),
        ],
    ).set_index(["problem", "method", "window"])
    pd.testing.assert_frame_equal(counts, expected, check_dtype=False)
    assert progress.traces.drop(columns="localizer").values.tolist() == [[1, 4, 4, 0], [5, 2, 4, 2]]
    assert set(progress.traces["localizer"]) == {"causal_tracing"}
    assert progress.remaining == 20 + 2
    assert progress.controls == (2, 4 * (2 + 4))
    assert (progress.facts, progress.facts_note) == (4, "")
    assert progress.seconds == pytest.approx((10 * 2.0 - 2 * 2.0 + 2 * 4.0) / 10)
    assert progress.writer is None
    assert progress.damaged == []


def test_localizers_are_expected_at_their_own_windows(folder):
    with Run.create(folder, CONFIG | {"localizers": ["causal_tracing", "random"], "localizer_windows": [5]}, {}):
        pass
    progress = run_progress(load_run(folder)).traces
    pairs = list(zip(progress["localizer"], progress["window"], strict=True))
    assert pairs == [("causal_tracing", 1), ("causal_tracing", 5), ("random", 5)]
    assert progress["remaining"].tolist() == [4, 4, 4]


def test_a_run_that_has_only_begun_has_everything_to_do(folder):
    Run.create(folder, CONFIG, {}).close()
    progress = run_progress(load_run(folder))
    assert progress.edits[["done", "skipped", "failed", "units"]].to_numpy().sum() == 0
    assert progress.remaining == 32 + 8
    assert progress.reasons.empty
    assert all(
        math.isnan(x) for x in (progress.seconds, progress.rows_per_second, progress.last, progress.seconds_to_go)
    )


@pytest.mark.parametrize(
    ("changes", "n", "note"),
    [
        ({"facts": None}, len(loc_edit.load_facts()), ""),
        ({"facts": 10**6}, len(loc_edit.load_facts()), ""),
        ({"facts": None, "data_limit": 30}, 30, ""),
        ({"known": True}, 4, ""),  # four have rows
        ({"known": True, "facts": 9}, 9, "knows"),
        ({"data": "absent.json", "facts": 9}, 9, "absent.json"),
        ({"data": "absent.json"}, 4, ""),
        ({"data": "absent.json", "facts": None}, 4, "so far"),
        ({"data": "counterfact", "facts": None}, 4, "so far"),  # not fetched for a look
    ],
)
def test_where_the_number_of_facts_comes_from(half, changes, n, note):
    run = load_run(half)
    run.config = {name: value for name, value in (CONFIG | changes).items() if value is not None}
    progress = run_progress(run)
    assert progress.facts == n
    assert note in progress.facts_note
    assert bool(note) == bool(progress.facts_note)
    assert progress.edits["expected"].tolist() == [2 * n] * 4


def test_a_tuning_counts_its_candidates_and_no_traces(folder):
    grid = {"rome": {"clamp": [1.0, 2.0], "decay": [0.1, 0.2, 0.3]}, "finetune": {"eps": [0.1, 0.2]}}
    Run.create(folder, CONFIG | {"layers": [2], "grid": grid}, {}).close()
    progress = run_progress(load_run(folder))
    assert progress.edits["expected"].tolist() == [4 * 6, 4 * 2] * 2
    assert progress.traces.empty
    assert progress.controls == (0, 0)


def test_another_folder_s_configuration_is_refused_by_name(folder):
    Run.create(folder, {"a": 1}, {}).close()
    with pytest.raises(BadRun, match="no key 'data'"):
        run_progress(load_run(folder))


# Reasons


def rows_of(*reasons, status="skipped", problem="tracing_reversal", methods=("rome",)):
    return pd.DataFrame(
        [
            {"problem": problem, "method": method, "window": 1, "fact_id": i, "status": status, "reason": reason}
            for i, reason in enumerate(reasons)
            for method in methods
        ]
    )


def test_reasons_are_grouped_by_what_they_have_in_common():
    rows = pd.concat(
        [
            rows_of(
                *(REASON.format(i, text) for i, text in enumerate(("Rome", "it's", 'a "b"'))), methods=("rome", "x")
            ),
            rows_of("fact 0: p('Rome') = 0.0123 < 0.02, nothing to erase", problem="fact_erasure"),
            rows_of("fact 7: p('Oslo') = 1.5e-05 < 0.02, nothing to erase", problem="fact_erasure").assign(fact_id=7),
            rows_of("the subject's key is not finite", "", status="failed", problem="fact_erasure"),
        ]
    )
    progress = grouped_reasons(rows).set_index("reason")
    alike = progress.loc["the noised output ... is the true object already"]
    assert (alike["facts"], alike["rows"], alike["methods"], alike["example"]) == (3, 6, "ROME, x", 0)
    assert progress.loc["p(...) = ... < 0.02, nothing to erase", "facts"] == 2
    assert progress.loc["the subject's key is not finite", "facts"] == 1
    assert progress.loc["no reason given", "facts"] == 1
    assert len(progress) == 4


def test_a_line_per_problem_says_how_many_and_why():
    rows = pd.concat(
        [
            rows_of(*(REASON.format(i, "x" * i) for i in range(1, 13)), methods=("rome", "memit")),
            rows_of("a", "a", "b", status="failed", problem="fact_forcing", methods=("rome", "memit")),
            rows_of("", status="done"),
        ]
    )
    assert reason_lines(grouped_reasons(rows)) == [
        "tracing_reversal: 12 facts skipped: the noised output ... is the true object already",
        "fact_forcing: 6 edits of 3 facts failed: 2 x a; 1 x b",
    ]
    assert reason_lines(grouped_reasons(rows_of("", status="done"))) == []


# Rate, writer, damage


def set_times(folder, *times):
    """The times of the edits' files of chosen methods, in the order of their names."""
    cells = {shard.key: shard.path for shard in load_run(folder).shards("edits")}
    control = cell_key({"of": ["error_injection", "none", 0, -1]})
    paths = [path for key, path in sorted(cells.items()) if not key.startswith(control)]
    for path, when in zip(paths, times, strict=True):
        os.utime(path, (when, when))


@pytest.mark.parametrize(
    ("times", "per_second"),
    [
        ((0, 10, 20, 30, 40, 50), 2 / 10),
        ((50, 20, 10, 0, 40, 30), 2 / 10),  # written in another order
        ((0, 10, 20, 10_020, 10_030, 10_040), 2 / 10),  # a pause
        ((7, 7, 7, 7, 7, 7), math.nan),  # a copy
        ((7, 7.0001, 7.0002, 7.0003, 7.0004, 7.0005), math.nan),  # a slower copy
    ],
)
def test_the_rate_comes_from_the_times_of_the_files_without_pauses(half, times, per_second):
    set_times(half, *times)
    progress = run_progress(load_run(half))
    assert progress.rows_per_second == pytest.approx(per_second, nan_ok=True)
    to_go = 20 * progress.seconds if math.isnan(per_second) else 20 / per_second
    assert progress.seconds_to_go == pytest.approx(to_go)


def test_the_writer_is_named_while_there_is_one(folder):
    assert lock_holder(folder) is None
    run = Run.create(folder, CONFIG, {})
    assert f"process {os.getpid()}" in lock_holder(folder)
    assert f"process {os.getpid()}" in run_progress(load_run(folder)).writer
    run.close()
    assert lock_holder(folder) is None


def test_reading_a_run_does_not_keep_a_writer_out(folder, monkeypatch):
    Run.create(folder, CONFIG, {}).close()
    looking = os.open(folder / LOCK, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    with pytest.raises(RunLocked):
        Run.create(folder, CONFIG, {})
    monkeypatch.setattr(time, "sleep", lambda seconds: fcntl.flock(looking, fcntl.LOCK_UN))
    Run.create(folder, CONFIG, {}).close()
    os.close(looking)


def test_damaged_shards_are_listed_and_not_counted(half):
    shard = sorted((half / "edits").glob("*.parquet"))[0]
    before = run_progress(load_run(half))
    shard.write_bytes(shard.read_bytes()[:-1])
    progress = run_progress(load_run(half))
    assert progress.damaged == [shard]
    assert shard.exists(), "only a writer sets it aside"
    assert progress.remaining + progress.controls[0] != before.remaining + before.controls[0]
    Run.create(half, CONFIG, {}).close()
    assert [path.name for path in run_progress(load_run(half)).damaged] == [f"_{shard.name}.corrupt"]


# The command


def test_the_command_prints_counts_rate_writer_and_reasons(half, say):
    set_times(half, 0, 10, 20, 30, 40, 50)
    code, out, _ = say("status", half)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["Error", "injection", "FT-5", "1", "0", "1", "6", "8", "1/4"] in lines
    assert "window 5: 2 of 4 facts" in out
    assert re.search(r"rate +12 edit rows a minute", out)
    assert re.search(r"to go +100 s|to go +2 min", out)
    assert re.search(r"writer +none now", out)
    assert "error_injection: 1 edit of 1 fact (FT-5) failed: p is not a number (such as fact 3)" in out
    assert 'tracing_reversal: 1 fact skipped: the noised output "it\'s" is the true object already' in out
    before = {path: path.read_bytes() for path in half.rglob("*") if path.is_file()}
    shutil.copytree(half, half.parent / "copied [1]")
    code, again, _ = say("status", half.parent / "copied [1]")
    assert code == 0
    assert "copied [1]" in again
    assert before == {path: path.read_bytes() for path in half.rglob("*") if path.is_file()}


@pytest.mark.parametrize("what", ["absent", "empty", "file"])
def test_a_path_without_a_run_is_refused_in_one_line(tmp_path, say, what):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    code, out, err = say("status", tmp_path / what)
    assert code == 1
    assert out == ""
    assert len(err.splitlines()) == 1
    assert f"no run at {tmp_path / what}" in err


# A real run


@pytest.fixture
def lab(tmp_path, monkeypatch, tiny, stats_of, facts):
    """(**options) -> an experiment on the tiny model and its four facts."""
    monkeypatch.setattr(Setup, "model", tiny)
    monkeypatch.setattr(Setup, "stats", stats_of(tiny))
    save_facts(facts, tmp_path / "facts.jsonl")
    common = {
        "model": "tiny",
        "data": str(tmp_path / "facts.jsonl"),
        "noise": "1.5",
        "noise_samples": 2,
        "windows": (1,),
        "methods": ("finetune-1", "finetune-2"),
        "problems": ("error_injection", "fact_erasure"),
        "settings": {"finetune": {"steps": 2}},
        "essence": False,
        "chunk": 2,
        "out": str(tmp_path / "run"),
    }
    return lambda **options: Experiment(loc_edit.ExperimentConfig(**(common | options)))


def test_a_run_ends_with_a_line_on_the_skipped_facts(lab, say, tmp_path, monkeypatch):
    monkeypatch.setattr("loc_edit.cli.run.print_analysis", lambda analysis: None)
    monkeypatch.setattr(loc_edit, "analyze", lambda run: None)
    (tmp_path / "my.toml").write_text(lab(methods=("finetune-1",), workers=1).config.to_toml())
    code, out, err = say("run", "--config", tmp_path / "my.toml")
    assert code == 0, err
    edits = without_controls(load_run(tmp_path / "run").edits)
    n = edits.loc[edits["status"] == "skipped", "fact_id"].nunique()
    assert n > 0
    assert re.search(rf"^fact_erasure: {n} facts? skipped: p\(.+\) = .+ < 0\.02, nothing to erase$", out, re.MULTILINE)
    assert "error_injection:" not in out


@pytest.mark.parametrize("units", [1, 7])
def test_the_next_run_computes_the_rest_of_a_stopped_run(lab, units):
    made = lab()
    rows = made.rows()
    for _ in range(units):
        next(rows)
    rows.close()
    stopped = run_progress(load_run(made.config.out))
    assert stopped.remaining > 0
    kept = load_run(made.config.out)
    before = len(without_controls(kept.edits)) + kept.traces["fact_id"].nunique()
    run = made.run()
    assert stopped.remaining == len(without_controls(run.edits)) + run.traces["fact_id"].nunique() - before
    progress = run_progress(run)
    assert progress.remaining == 0
    assert progress.controls[0] == progress.controls[1]
    assert progress.edits["units"].tolist() == progress.edits["units_expected"].tolist()
    assert progress.edits[["done", "skipped", "failed"]].to_numpy().sum() == len(without_controls(run.edits))
    assert progress.edits["skipped"].sum() > 0, "a fact that the model does not know is not erased"
    assert progress.reasons["problem"].tolist() == ["fact_erasure"]


def test_a_plan_predicts_the_disk_space_of_the_run(lab, tiny):
    plan = lab().plan()
    run = lab().run()
    written = sum(shard.path.stat().st_size for kind in ("traces", "edits") for shard in run.shards(kind))
    assert 0.8 * written < plan.disk < 1.25 * written
    assert plan.model == sum(p.nbytes for p in tiny.parameters())
    assert (plan.stats_disk, plan.stats_memory) == (0, 0), "fine-tuning needs no key statistics"
    assert plan.memory == plan.processes * plan.model


@pytest.mark.slow
def test_a_plan_counts_key_statistics_where_they_are_needed(lab):
    plan = lab(methods=("rome",), problems=("error_injection",), settings={"rome": {"steps": 1}}, workers=3).plan()
    assert plan.stats_disk == 2 * 24 * 24 * 4
    assert plan.stats_memory == 2 * 24 * 24 * 8
    assert plan.processes == 3
    assert plan.memory == 3 * (plan.model + plan.stats_memory)


def test_a_plan_counts_the_time_for_key_statistics_unless_they_are_in_the_cache(lab, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("LOC_EDIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "corpus.txt").write_text("the tower stands in the city\n" * 40, encoding="utf-8")
    corpus = {"corpus": str(tmp_path / "corpus.txt"), "corpus_tokens": 100}
    options = {"methods": ("rome",), "problems": ("error_injection",), "settings": {"rome": {"steps": 1}}, **corpus}
    plan = lab(**options).plan()
    assert plan.statistics > 0
    assert plan.seconds == plan.statistics + plan.work / plan.processes
    loc_edit.key_stats(tiny, [0, 1], corpus["corpus"], tokens=100)
    assert lab(**options).plan().statistics == 0
    assert lab(**{**options, "corpus_tokens": 99}).plan().statistics > 0
    assert lab(**{**options, "corpus": "identity"}).plan().statistics == 0
    assert lab(**{**options, "methods": ("finetune-1",)}).plan().statistics == 0


def test_a_cell_has_failed_when_edits_failed_and_none_is_done():
    statuses = {0: ("failed", "skipped"), 1: ("failed", "done"), 2: ("skipped", "skipped"), 3: ("done", "done")}
    about = {"problem": "error_injection", "method": "memit", "window": 5}
    edits = pd.DataFrame([about | {"layer": n, "status": one} for n, both in statuses.items() for one in both])
    assert failed_cells(edits) == ["Error injection, MEMIT, layer 0"]
    assert failed_cells(edits[edits["layer"] > 0]) == []
