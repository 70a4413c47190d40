"""`--json`: one document on standard output, with the numbers of the tables and the keys of docs/commands.md."""

import json
import math
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import call

import loc_edit
from loc_edit.cli import show
from loc_edit.cli.show import plain
from loc_edit.experiment.estimate import Plan

PAGE = (Path(__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")


def documented(title):
    """The keys of a row in the page's table of documents."""
    [row] = re.findall(rf"^\| `{title}` \| (.*) \|$", PAGE, re.MULTILINE)
    return set(re.findall(r"`(\w+)`", row))


def document(*args, status=0):
    result = call(*args, "--json")
    assert result.status == status, result.err
    return json.loads(result.out), result


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a skipped and a done edit."""
    folder = tmp_path_factory.mktemp("json") / "run"
    config = loc_edit.ExperimentConfig(
        facts=2, layers=(2,), methods=("finetune-1",), localizers=(), essence=False, out=str(folder)
    )
    loc_edit.Experiment(config).run(workers=1)
    return folder


def test_status_says_what_its_table_says(run):
    found, result = document("status", run)
    assert set(found) == documented("status")
    assert result.err == ""
    [row] = found["edits"]
    assert (row["done"], row["expected"], row["remaining"]) == (2, 2, 0)
    assert found["controls"] == {"done": 4, "expected": 4}
    assert found["run"] == str(run)
    assert found["rows_per_second"] is None, "one file gives no rate: NaN in the record, null here"
    assert f"{found['controls']['done']} of {found['controls']['expected']} rows" in call("status", run).out


@pytest.mark.slow
def test_plan_is_its_record(here):
    found, result = document(
        "plan", "--facts", 2, "--layers", 2, "--methods", "finetune-1", "--out", "planned", "--no-essence"
    )
    assert set(found) == documented("plan") == {field.name for field in fields(Plan)} | {"seconds", "memory", "out"}
    assert (found["facts"], found["edits"], found["out"]) == (2, 2, "planned")
    assert found["seconds"] == found["work"] / found["processes"]
    assert "probes" in result.err, "progress is elsewhere"


def test_trace_has_the_grid_that_it_saves(here):
    found, result = document("trace", "--fact", 1, "--samples", 2, "--folder", "traces")
    assert set(found) == documented("trace")
    drawn = pd.read_csv(here / "traces" / "trace_1.csv")
    grid = np.array(found["p_restored"])
    assert grid.shape == (8, len(found["tokens"]))
    np.testing.assert_allclose(drawn.sort_values(["layer", "pos"])["p_restored"], grid.ravel(), rtol=1e-5)
    assert "".join(found["tokens"][found["subject"]["begin"] : found["subject"]["end"]]).strip() == "The Louvre"
    assert "saved" in result.err
    assert [Path(path).suffix for path in found["files"]] == [".pdf", ".png", ".csv"]


@pytest.mark.slow
def test_edit_has_the_scores_that_it_prints(here):
    options = ("edit", "--fact", 1, "--layer", 2, "--method", "finetune-1")
    found, _ = document(*options, "--save", "edit.safetensors")
    assert set(found) == documented("edit")
    printed = call(*options).out
    for name, value in found["scores"].items():
        assert f"{name} {value:.3f}" in printed
    assert found["probabilities"][0]["kind"] == "rewrite"
    assert sum(entry["p"] for entry in found["next_tokens_before"]) <= 1
    assert Path(found["file"]).is_file()


def test_facts_are_the_facts(here):
    found, _ = document("facts", "-n", 3)
    assert set(found) == documented("facts")
    chosen = loc_edit.sample_by_relation(loc_edit.load_facts("builtin"), 3)
    assert {fact["fact_id"] for fact in found["facts"]} == {fact.fact_id for fact in chosen}
    assert (found["of"], found["file"]) == (737, None)
    saved, result = document("facts", "-n", 3, "--save", "three.jsonl")
    assert saved == {**found, "file": "three.jsonl"}
    assert "saved 3 facts" in result.err


def test_a_checked_file_of_facts_is_told_with_its_malformed_records(here):
    loc_edit.save_facts(loc_edit.load_facts("builtin")[:2], here / "facts.jsonl")
    with open(here / "facts.jsonl", "a") as file:
        file.write('{"subject": 3}\n')
    found, result = document("facts", "--data", "facts.jsonl", "--validate", status=1)
    assert set(found) == documented("facts --validate")
    assert found["counts"]["facts"] == 2
    assert len(found["malformed"]) == 1
    assert "1 of 3 records cannot be used" in result.err


def test_models_and_verify_have_their_keys(run, tmp_path, monkeypatch):
    monkeypatch.setenv("LOC_EDIT_CACHE", str(tmp_path))
    found, _ = document("models")
    assert set(found) == documented("models")
    assert found["models"][0]["name"] == "smollm2"
    assert found["models"][0]["folder"] is None
    findings, _ = document("verify", run)
    assert all(set(finding) == documented("verify") for finding in findings)


def test_an_error_leaves_no_document(here):
    result = call("status", "nowhere", "--json")
    assert (result.status, result.out) == (1, "")
    assert "no run at nowhere" in result.err


@pytest.mark.slow
def test_whatever_else_is_printed_goes_to_standard_error(here, monkeypatch):
    (here / "talks.py").write_text(
        "import loc_edit\n"
        "print('loaded')\n"
        "@loc_edit.localizer('talks')\n"
        "def talks(question):\n"
        "    print('asked')\n"
        "    return loc_edit.localize(question.model, question.prompt, question.target, noise=question.noise).effect\n"
    )
    monkeypatch.setattr(show, "_documents", [])
    found, result = document("trace", "--fact", 1, "--samples", 2, "--plugin", "talks.py", "--localizer", "talks")
    assert found["localizer"] == "talks"
    assert "loaded" in result.err
    assert "asked" in result.err


def test_numbers_that_json_does_not_know_are_null():
    frame = pd.DataFrame({"a": [1.5, math.nan], "b": [np.int64(2), 3]})
    values = {"nan": math.nan, "inf": -math.inf, 3: np.float32(0.5), "path": Path("x"), "frame": frame, "yes": True}
    assert plain(values) == {
        "nan": None,
        "inf": None,
        "3": 0.5,
        "path": "x",
        "frame": [{"a": 1.5, "b": 2}, {"a": None, "b": 3}],
        "yes": True,
    }
