"""The command line: every command on very small settings, and what a mistake costs: one line, and nothing written."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pandas as pd
import pytest
from commands import call, files, message

import loc_edit
from loc_edit.analysis.analyze import Analysis
from loc_edit.analysis.tables.rows import without_controls
from loc_edit.cli.main import _NewOnly
from loc_edit.editing.registry import EDITORS
from loc_edit.editing.value import EditFailed
from loc_edit.facts.loading import save_facts
from loc_edit.models import loading

COMMANDS = ("run", "plan", "status", "trace", "edit", "stats", "analyze", "facts")
SMALL = """
facts = 12
layers = [3, 4]
chunk = 6
noise_samples = 2
windows = [3]
corpus_tokens = 2000
essence = false
workers = 1
[settings.rome]
steps = 4
"""


@pytest.fixture(scope="module", autouse=True)
def _one_model():
    """The built-in model is read once; tests leave it as it is."""
    read, kept = loading.read_builtin, {}

    def once(**given):
        key = tuple(given.items())
        return kept.get(key) or kept.setdefault(key, read(**given))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "read_builtin", once)
        yield


@pytest.fixture(scope="module", autouse=True)
def _few_draws():
    """Statistics without resampling, and key statistics of few tokens: the tests here are about neither."""
    few_tokens = partial(loc_edit.key_stats, tokens=2000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loc_edit, "analyze", partial(loc_edit.analyze, draws=0))
        patch.setattr(
            "loc_edit.experiment.setup.key_stats", lambda model, layers, corpus, **_: few_tokens(model, layers, corpus)
        )
        yield


@pytest.fixture
def no_analysis(monkeypatch):
    """Runs end with their rows."""
    nothing = Analysis(pd.DataFrame(), pd.DataFrame({"layer": []}), {}, {})
    monkeypatch.setattr(loc_edit, "analyze", lambda run: nothing)
    monkeypatch.setattr("loc_edit.cli.run.print_analysis", lambda analysis: None)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small configuration, and a run of it by the command line."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.toml").write_text(SMALL)
    result = call("run", "--config", folder / "small.toml", "--out", folder / "run")
    assert result.status == 0, result.err
    return SimpleNamespace(config=folder / "small.toml", run=folder / "run", result=result)


# What the commands do


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    result = call(command, "--help")
    assert result.status == 0
    assert f"loc-edit {command}" in result.out
    assert "--help" in result.out


def test_help_lists_the_commands():
    result = call("--help")
    assert result.status == 0
    assert all(command in result.out for command in COMMANDS)


def test_every_field_of_a_configuration_is_an_option():
    text = call("run", "--help").out
    for name in set(loc_edit.ExperimentConfig.model_fields) - {"settings"}:
        assert f"--{name.replace('_', '-')}" in text


def test_run_writes_rows_tables_and_figures_and_says_where(small):
    run = loc_edit.load_run(small.run)
    edits = without_controls(run.edits)
    assert len(edits) == 24
    assert edits["layer"].unique().tolist() == [3, 4]
    assert len(list((small.run / "tables").iterdir())) > 0
    assert {path.suffix for path in (small.run / "figures").rglob("*.*")} >= {".pdf", ".png", ".csv"}
    assert str(small.run) in small.result.out
    assert "24 done" in small.result.out
    assert "R² layer" in small.result.out
    assert "12/12" not in small.result.out
    assert "10 of 10 shards" in small.result.err  # progress, where there is no terminal


@pytest.mark.slow
def test_run_again_computes_nothing_and_changes_no_row(small):
    rows = files(small.run / "edits") | files(small.run / "traces")
    result = call("run", "--config", small.config, "--out", small.run)
    assert result.status == 0
    assert files(small.run / "edits") | files(small.run / "traces") == rows
    assert "24 done" in result.out


@pytest.mark.slow
def test_options_beside_a_configuration_win(small, here, no_analysis):
    options = ("--facts", 2, "--layers", 5, "--seed", 3, "--out", "mine")
    result = call("run", "--config", small.config, *options)
    assert result.status == 0, result.err
    edits = without_controls(loc_edit.load_run("mine").edits)
    assert edits[["layer", "seed"]].drop_duplicates().values.tolist() == [[5, 3]]
    assert len(edits) == 2


@pytest.mark.slow
def test_plan_counts_and_writes_nothing(small, here):
    result = call("plan", "--config", small.config, "--methods", "rome", "finetune-1", "--out", "planned")
    assert result.status == 0
    numbers = {line.split()[0]: line.split()[1] for line in result.out.splitlines()}
    assert numbers["facts"] == "12"
    assert numbers["traces"] == "12"
    assert numbers["edits"] == "48"
    assert float(numbers["time"]) >= 0
    assert list(here.iterdir()) == []


@pytest.mark.slow
def test_trace_prints_and_saves_one_trace(here):
    fact = loc_edit.load_facts()[0]
    result = call("trace", "--fact", 0, "--window", 3, "--samples", 2, "--folder", "traces")
    assert result.status == 0, result.err
    assert fact.prompt in result.out
    assert fact.target_true in result.out
    assert "*" in result.out
    assert {path.suffix for path in (here / "traces").iterdir()} == {".png", ".pdf", ".csv"}
    drawn = pd.read_csv(next((here / "traces").glob("*.csv")))
    assert drawn["layer"].nunique() == 8
    assert set(drawn["window"]) == {3}


@pytest.mark.parametrize("localizer", ["attribution", "mean_ablation", "direct"])
def test_trace_by_another_localizer(here, localizer):
    few = ("--samples", 2, "--window", 1, "--folder", "traces", "--noise", "u0.5")
    result = call("trace", "--fact", 1, "--localizer", localizer, *few)
    assert result.status == 0, result.err
    assert f"{localizer}: restored" in result.out
    assert len(list((here / "traces").iterdir())) == 3
    assert "localizer 'guess'" in message(call("trace", "--fact", 1, "--localizer", "guess", *few))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "problem"), [("rome", "error_injection"), ("finetune-1", "fact_erasure"), ("finetune-5", "fact_forcing")]
)
def test_edit_shows_before_and_after_and_saves(here, method, problem):
    fact = loc_edit.load_facts()[0]
    options = ("--method", method, "--problem", problem, "--save", "edit.safetensors")
    result = call("edit", "--fact", 0, "--layer", 3, *options)
    assert result.status == 0, result.err
    for words in (fact.prompt, "next tokens before", "next tokens after", "paraphrase", "neighborhood", "overall"):
        assert words in result.out
    edit = loc_edit.Edit.load(here / "edit.safetensors", loc_edit.load_model())
    assert 3 in edit.layers
    assert edit.norm > 0


@pytest.mark.slow
def test_stats_says_how_sound_the_statistics_are(here):
    result = call("stats", "--tokens", 2000, "--save", "stats.safetensors")
    assert result.status == 0, result.err
    assert "condition number" in result.out
    loaded = loc_edit.KeyStats.load(here / "stats.safetensors")
    assert loaded.layers == tuple(range(8)) or list(loaded.layers) == list(range(8))


def test_facts_lists_facts():
    result = call("facts", "--n", 3)
    assert result.status == 0
    first = loc_edit.load_facts()[0]
    assert first.prompt in result.out
    assert first.target_new in result.out
    relation = call("facts", "--relation", first.relation)
    assert first.prompt in relation.out
    assert "no fact of relation 'nothing'" in message(call("facts", "--relation", "nothing"))


@pytest.mark.slow
def test_analyze_writes_the_tables_again(small):
    before = {p.name for p in (small.run / "tables").iterdir()}
    for path in (small.run / "tables").iterdir():
        path.unlink()
    result = call("analyze", small.run, "--draws", 0)
    assert result.status == 0, result.err
    assert "R² layer" in result.out
    assert {p.name for p in (small.run / "tables").iterdir()} <= before
    assert list((small.run / "tables").iterdir())


@pytest.mark.slow
def test_the_program_runs_by_itself(tmp_path):
    command = [sys.executable, "-m", "loc_edit", "facts", "--n", "2"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert result.returncode == 0
    assert loc_edit.load_facts()[0].relation[:6] in result.stdout
    command = [sys.executable, "-m", "loc_edit", "analyze", "nowhere"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.strip() == "loc-edit: no run at nowhere: there is no such folder"


# Mistakes


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("run", "--model", "nonesuch"), "model 'nonesuch'"),
        (("run", "--model", "./no/such/folder"), "./no/such/folder"),
        (("run", "--data", "absent.json"), "absent.json"),
        (("run", "--layers", "3", "99"), "layers [99]: loc-edit-builtin has layers 0 to 7"),
        (("run", "--layers", "-1"), "layers: expected"),
        (("run", "--windows", "0"), "windows: expected a list whose entries are each an integer of at least 1"),
        (("run", "--facts", "0"), "facts: expected an integer of at least 1 or None, got 0"),
        (("run", "--methods", "roma"), "method 'roma'"),
        (("run", "--problems", "fact_erasur"), "did you mean 'fact_erasure'?"),
        (("run", "--preset", "gptj"), "preset 'gptj'"),
        (("run", "--noise", "loud"), "'loud'"),
        (("run", "--site", "mlp_inn", "--facts", "1"), "site 'mlp_inn'"),
        (("run", "--config", "absent.toml"), "absent.toml"),
        (("plan", "--config", "absent.toml"), "absent.toml"),
        (("plan", "--windows", "0"), "windows"),
        (("trace", "--fact", "99999"), "no fact 99999 in builtin"),
        (("trace", "--fact", "0", "--window", "0"), "expected window to be an integer of at least 1"),
        (("trace", "--fact", "0", "--site", "mlp_inn"), "site 'mlp_inn'"),
        (("trace", "--fact", "0", "--model", "nonesuch"), "nonesuch"),
        (("edit", "--fact", "0", "--layer", "8"), "layers [8]"),
        (("edit", "--fact", "0", "--layer", "3", "--method", "roma"), "method 'roma'"),
        (("edit", "--fact", "0", "--layer", "3", "--problem", "nothing"), "problem 'nothing'"),
        (("edit", "--fact", "99999", "--layer", "3"), "no fact 99999"),
        (("stats", "--corpus", "absent.txt"), "absent.txt"),
        (("analyze", "nowhere"), "nowhere"),
        (("status", "nowhere"), "nowhere"),
        (("facts", "--data", "absent.json"), "absent.json"),
    ],
)
def test_a_mistake_is_named_in_one_line_and_writes_nothing(here, args, named):
    line = message(call(*args))
    assert named in line
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("run", "--fatcs", "3"), "--fatcs"),
        (("run", "--facts", "three"), "three"),
        (("bogus",), "bogus"),
        (("edit", "--fact", "0"), "--layer"),
        (("analyze",), "loc-edit analyze"),
    ],
)
def test_options_that_do_not_parse_are_named(here, args, named):
    result = call(*args)
    assert result.status == 2
    assert named in result.out + result.err
    assert "Traceback" not in result.out + result.err
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("fatcs = 3", "unknown key 'fatcs'; did you mean 'facts'?"),
        ("windows = [0]", "windows"),
        ("[settings.rome]\nstepps = 1", "stepps"),
        ("facts = ", "no TOML"),
    ],
)
def test_a_mistake_in_a_file_names_the_file(here, text, named):
    (here / "my.toml").write_text(text)
    line = message(call("run", "--config", "my.toml"))
    assert "my.toml" in line
    assert named in line
    assert [path.name for path in here.iterdir()] == ["my.toml"]


def test_bad_facts_are_named(here):
    good = loc_edit.load_facts()[0]
    (here / "empty.jsonl").write_text("")
    assert "empty.jsonl: no facts in it" in message(call("run", "--data", "empty.jsonl"))
    known = {"known_id": 5, "attribute": "Paris", "subject": "The Prado", "prompt": "The Louvre is in"}
    (here / "absent.jsonl").write_text(json.dumps(known) + "\n")
    line = message(call("run", "--data", "absent.jsonl"))
    assert "record 0" in line
    assert "subject 'The Prado' is not in prompt 'The Louvre is in'" in line
    save_facts([good, replace(good, fact_id=7, template="x " * 200 + "{} is")], here / "long.jsonl")
    assert "fact 7: prompt of" in message(call("run", "--data", "long.jsonl"))
    assert not (here / "runs").exists()


def test_another_run_in_the_folder_is_refused(small):
    before = files(small.run)
    line = message(call("tune", "--methods", "finetune-1", "--facts", 1, "--folder", small.run))
    assert str(small.run) in line
    assert "an experiment, and this is a tuning" in line
    assert files(small.run) == before


def test_a_folder_with_something_else_in_it_is_refused(here):
    (here / "mine").mkdir()
    (here / "mine" / "thesis.txt").write_text("all of it")
    assert "thesis.txt" in message(call("run", "--facts", 1, "--out", "mine"))
    assert (here / "mine" / "thesis.txt").read_text() == "all of it"
    assert len(list((here / "mine").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 4, 9])
def test_a_full_disk_is_named_and_loses_nothing(small, here, monkeypatch, no_analysis, n):
    sync, count = os.fsync, [0]

    def full(descriptor):
        count[0] += 1
        if count[0] >= n:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        line = message(call("run", "--config", small.config, "--facts", 7, "--out", "full"))
    assert "No space left on device" in line
    assert "full" in line
    kept = files(here / "full" / "edits") | files(here / "full" / "traces")
    assert not list((here / "full").rglob("*.tmp"))
    assert call("run", "--config", small.config, "--facts", 7, "--out", "full").status == 0
    assert kept.items() <= files(here / "full").items()
    assert len(without_controls(loc_edit.load_run("full").edits)) == 14


@pytest.mark.slow
def test_a_run_in_which_every_edit_of_a_cell_failed_says_so_in_its_exit_status(here, monkeypatch, no_analysis):
    def fails(model, requests, layers, **more):
        raise EditFailed("it does not converge")

    real = EDITORS["finetune_free"]
    monkeypatch.setitem(EDITORS, "finetune_free", fails)
    options = ("--facts", 1, "--layers", 1, "--methods", "finetune_free-1", "finetune-1", "--out", "failed")
    options += ("--workers", 1)
    result = call("run", *options)
    assert result.status == 3
    assert "every edit has failed in 1 cell: Error injection, FT-1 free, layer 1 (again: --retry-failed)" in result.err
    assert "it does not converge" in result.out
    assert (here / "failed" / "edits").is_dir()
    monkeypatch.setitem(EDITORS, "finetune_free", real)
    assert call("run", *options).status == 3, "the rows are kept"
    assert call("run", *options, "--retry-failed").status == 0


def test_a_folder_that_cannot_be_made_is_named(here):
    (here / "file").write_text("")
    assert "file" in message(call("run", "--facts", 1, "--out", "file/run"))


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_ctrl_c_and_sigterm_leave_a_run_that_goes_on(small, tmp_path, no_analysis, sent):
    options = ("--chunk", "1", "--workers", "2", "--out", "stopped")
    command = [sys.executable, "-m", "loc_edit", "run", "--config", str(small.config), *options]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # whatever pytest was started under
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("stopped/edits/*.parquet"))) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + sent, err
    assert "; finished rows are kept" in err
    assert ("stopped by SIGTERM" in err) == (sent == signal.SIGTERM)
    assert "semaphore" not in err
    assert json.loads((tmp_path / "stopped" / "log.jsonl").read_text().splitlines()[-1])["how"] == "stopped"
    assert "Traceback" not in err + out
    kept = files(tmp_path / "stopped" / "edits")
    assert 2 <= len(kept) < 24
    result = call("run", "--config", small.config, "--chunk", 1, "--out", tmp_path / "stopped")
    assert result.status == 0, result.err
    assert kept.items() <= files(tmp_path / "stopped" / "edits").items()
    stopped, whole = (loc_edit.load_run(path).edits for path in (tmp_path / "stopped", small.run))
    columns = ["layer", "fact_id", "rewrite", "paraphrase", "neighborhood"]
    pd.testing.assert_frame_equal(stopped[columns], whole[columns], rtol=2e-4, atol=1e-5)


@pytest.mark.slow
def test_facts_are_planted_and_the_planted_model_is_studied(here):
    planted = call("plant", "--layers", 1, 4, "--facts", 3, "--kept", 3, "--steps", 120, "--folder", "planted")
    assert planted.status == 0, planted.err
    recall = pd.read_csv(here / "planted" / "recall.csv")
    assert recall.groupby("group")["says"].mean().loc[["1", "4"]].min() == 1
    assert recall.query("group == '1'")["says_without_1"].mean() < 1
    options = ("--edit", "planted/edit.safetensors", "--data", "planted/facts.jsonl", "--methods", "finetune-1")
    more = ("--windows", 1, "--layers", 1, 4, "--localizers", "causal_tracing", "zero_ablation", "--out", "study")
    studied = call("run", *options, *more)
    assert studied.status == 0, studied.err
    run, proven = loc_edit.load_run(here / "study"), recall[recall["proven"]]
    assert len(proven)
    assert loc_edit.planted_in(run) == dict(
        zip(proven["fact_id"], proven["group"].map(lambda own: [int(own)]), strict=True)
    )
    assert set(run.traces["fact_id"]) == set(proven["fact_id"])
    accuracy = pd.read_csv(here / "study" / "tables" / "planted_accuracy.csv")
    assert accuracy.query("localizer == 'zero_ablation' and group == 'all'")["found"].item() >= 0.5
    assert (here / "study" / "figures" / "planted_edits.png").exists()
    assert (here / "study" / "tables" / "planted_gain.csv").exists()
    assert "layers '1-4'" in message(call("plant", "--layers", "1-4"))
    assert "expected a saved edit" in message(call("run", "--edit", "nothing.safetensors"))


def test_a_warning_that_several_tables_give_is_printed_once():
    record = logging.makeLogRecord({"msg": "%d facts have no tracing fraction", "args": (2,)})
    only = _NewOnly()
    assert [only.filter(record), only.filter(record)] == [True, False]
