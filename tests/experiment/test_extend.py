"""A run that is given more to do computes just that, and one whose settings change never mixes its rows."""

import json
import tomllib
from dataclasses import replace
from functools import cached_property
from itertools import pairwise

import pandas as pd
import pytest
from runs import assert_same_rows, edited, files, rows

import loc_edit
from loc_edit.analysis.run import load_run
from loc_edit.analysis.status import run_progress
from loc_edit.experiment.schedule import missing_tasks
from loc_edit.experiment.setup import Setup
from loc_edit.experiment.study import UneditedCell
from loc_edit.facts.loading import save_facts
from loc_edit.facts.sampling import sample_by_relation
from loc_edit.names import PROBLEMS
from loc_edit.store.folder import RunMismatch


def of_kind(computed, kind):
    return [call for call in computed if call[0] == kind]


@pytest.fixture
def many(tmp_path, facts):
    """A file of twelve facts, in three relations of four."""
    more = [replace(fact, fact_id=4 * n + fact.fact_id, relation=str(n)) for n in range(3) for fact in facts]
    save_facts(more, tmp_path / "many.jsonl")
    return {"data": str(tmp_path / "many.jsonl")}


# More of everything


@pytest.mark.parametrize(
    ("before", "after", "traces", "edits"),
    [
        ({"facts": 4}, {"facts": 8}, 2, 4),
        ({"facts": 4}, {"facts": None}, 4, 8),
        ({"layers": (1,)}, {"layers": (0, 1)}, 0, 6),
        ({"methods": ("rome",)}, {"methods": ("finetune-1", "rome", "memit-2")}, 0, 24),
        ({}, {"problems": ("fact_forcing", "error_injection")}, 0, 12),
    ],
    ids=["facts", "all facts", "layers", "methods", "problems"],
)
@pytest.mark.slow
def test_an_extended_run_computes_what_is_new_and_equals_one_of_that_size(
    lab, many, tmp_path, computed, before, after, traces, edits
):
    small = lab(**many, **before).run()
    n_small = len(edited(small))
    computed.clear()
    extended = lab(**many, **before | after).run()
    assert (len(of_kind(computed, "traces")), len(of_kind(computed, "edits"))) == (traces, edits)
    assert len(edited(extended)) > n_small
    whole = lab(**many, **before | after, out=str(tmp_path / "whole")).run()
    assert_same_rows(extended, whole)
    frames = [run.frame().drop(columns="seconds") for run in (extended, whole)]
    pd.testing.assert_frame_equal(*frames, check_exact=True)


def test_facts_that_fill_half_a_chunk_are_kept_and_agree_to_rounding(lab, many, tmp_path, computed):
    lab(**many, facts=3, chunk=4).run()
    computed.clear()
    extended = lab(**many, facts=8, chunk=4).run()
    seen = sorted(fact for _, some, _ in of_kind(computed, "traces") for fact in some)
    assert len(seen) == 5
    whole = lab(**many, facts=8, chunk=4, out=str(tmp_path / "whole")).run()
    assert_same_rows(extended, whole, rtol=2e-4, atol=1e-5)


def test_windows_are_added(lab, tmp_path, computed):
    lab(windows=(1,)).run()
    kept = load_run(tmp_path / "run").traces
    computed.clear()
    extended = lab(windows=(1, 2)).run()
    assert [window for _, _, window in computed] == [2, 2]
    pd.testing.assert_frame_equal(extended.traces.query("window == 1").reset_index(drop=True), kept)
    whole = lab(windows=(1, 2), out=str(tmp_path / "whole")).run()
    assert_same_rows(extended, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.long
@pytest.mark.slow
def test_an_extension_that_is_stopped_goes_on_to_the_same_rows(lab, many, tmp_path):
    larger = {"facts": 8, "layers": (0, 1), "methods": ("rome", "finetune-2"), "problems": tuple(PROBLEMS)[:2]}
    whole = lab(**many, **larger, out=str(tmp_path / "whole")).run()
    for n_before in (1, 4):
        for n_after in (0, 3, 9):
            out = str(tmp_path / f"{n_before}-{n_after}")
            for options, n in (({"facts": 4, "layers": (1,)}, n_before), (larger, n_after)):
                at_work = lab(**many, **options, out=out).rows()
                for _ in range(n):
                    next(at_work)
                at_work.close()
            assert_same_rows(lab(**many, **larger, out=out).run(), whole)


def test_the_random_layer_is_drawn_among_the_present_ones(lab, tmp_path):
    lab(layers=(1,)).run()
    extended = lab(layers=(0, 1)).run()
    drawn = extended.edits[extended.edits["method"] == "random_layer_rome"]
    assert not drawn.duplicated("fact_id").any()
    assert set(drawn["layer"]) == {0, 1}
    assert len(extended.read("edits", cells="all").query("method == 'random_layer_rome'")) == 2 * len(drawn)


def test_another_chunk_size_computes_nothing_again(lab, computed):
    first = rows(lab(chunk=2).run())
    computed.clear()
    again = rows(lab(chunk=3).run())
    assert computed == []
    for left, right in zip(first, again, strict=True):
        pd.testing.assert_frame_equal(left, right)


@pytest.mark.slow
def test_a_compacted_run_goes_on_and_grows(lab, many, tmp_path, computed, capsys):
    from loc_edit.cli.main import main

    larger = {"facts": 8, "layers": (0, 1), "methods": ("rome", "finetune-2")}
    whole = lab(**many, **larger, out=str(tmp_path / "whole")).run()
    small = lab(**many, facts=4, layers=(1,), methods=("rome",)).run()
    assert main(["compact", str(tmp_path / "run")]) == 0
    assert "4 files fewer, 4 left" in capsys.readouterr().out
    found = run_progress(load_run(tmp_path / "run"))
    assert found.remaining == 0
    assert found.edits["units"].tolist() == found.edits["units_expected"].tolist()
    computed.clear()
    assert_same_rows(lab(**many, facts=4, layers=(1,), methods=("rome",)).run(), small)
    assert computed == []
    assert_same_rows(lab(**many, **larger).run(), whole)


# Other settings


@pytest.mark.parametrize(
    ("change", "traces", "edits"),
    [
        ({"settings": {"rome": {"steps": 4}, "finetune": {"steps": 3}}}, 0, 4),
        ({"noise": "2.0"}, 2, 4),
        ({"noise_samples": 3}, 2, 4),
        ({"corpus_tokens": 5}, 0, 4),
        ({"site": "attn_out"}, 2, 0),
        ({"essence": True}, 0, 8),
        ({"seed": 1}, 2, 8),
    ],
)
def test_a_changed_setting_makes_its_cells_new_while_the_others_stay(lab, computed, change, traces, edits):
    config = {"methods": ("rome", "finetune-1"), "layers": (1,), "problems": ("error_injection",)}
    noisy = {"methods": ("finetune-1",), "problems": ("error_injection", "fact_forcing"), "layers": (1,)}
    config = noisy if {"noise", "noise_samples"} & set(change) else config
    edits = 2 if config is noisy else edits // 2
    first = lab(**config).run()
    before = files(first.path)
    first_rows = rows(first)
    computed.clear()
    second = lab(**config | change).run()
    assert (len(of_kind(computed, "traces")), len(of_kind(computed, "edits"))) == (traces, edits)
    assert {k: v for k, v in before.items() if "edits" in k.parts or "traces" in k.parts}.items() <= files(
        second.path
    ).items()
    keys = ["problem", "method", "layer", "window", "fact_id"]
    assert not second.edits.duplicated(keys).any(), "rows of two settings are never mixed"
    assert len(second.edits) == len(first_rows[1])
    computed.clear()
    back = lab(**config).run()
    assert computed == []
    for left, right in zip(first_rows, rows(back), strict=True):
        pd.testing.assert_frame_equal(left, right[left.columns])
        assert set(left) == set(right), "in whatever order"


def test_rows_of_earlier_settings_can_be_read_by_name_and_their_configuration_too(lab, tmp_path):
    lab(layers=(1,)).run()
    run = lab(layers=(1,), settings={"rome": {"steps": 5}}).run()
    cells = run.cells("edits")
    romes = cells[cells["method"] == "rome"]
    assert romes["present"].tolist() == [True, False]
    assert [settings["steps"] for settings in romes["settings"]] == [5, 3]
    assert romes["rows"].tolist() == romes["facts"].tolist() == [4, 4]
    [earlier] = romes.loc[~romes["present"], "cell"]
    old = run.read("edits", cells=[earlier])
    assert set(old["cell"]) == {earlier}
    assert len(old) == 4
    assert earlier not in set(run.edits["cell"])
    assert run.kept() == 4 + 4  # and the random-layer control of those
    [kept] = (run.path / "history").glob("*-config.toml")
    assert tomllib.loads(kept.read_text())["settings"]["rome-1"]["error_injection"]["steps"] == 3
    assert run.config["settings"]["rome-1"]["error_injection"]["steps"] == 5


def test_a_fact_whose_content_changes_is_computed_again_and_the_old_row_left_out(lab, tmp_path, facts, computed):
    save_facts(facts, tmp_path / "my.jsonl")
    lab(data=str(tmp_path / "my.jsonl")).run()
    save_facts([facts[0], replace(facts[1], target_new="London"), *facts[2:]], tmp_path / "my.jsonl")
    computed.clear()
    run = lab(data=str(tmp_path / "my.jsonl")).run()
    assert {some for _, some, _ in computed} == {(1,)}
    assert run.edits.query("fact_id == 1 and method == 'rome'")["target"].unique().tolist() == ["London"]
    assert len(edited(run)) == 2 * len(facts)
    assert len(run.frame()) == 2 * len(facts)


def test_fewer_facts_are_fewer_rows(lab, many, computed):
    lab(**many, facts=8).run()
    computed.clear()
    run = lab(**many, facts=4).run()
    assert computed == []
    assert run.edits["fact_id"].nunique() == run.traces["fact_id"].nunique() == 4
    found = run_progress(run)
    assert (found.facts, found.remaining) == (4, 0)
    cells = load_run(run.path).read("edits", cells="all")
    assert found.kept == len(cells[cells["fact_id"].isin(set(cells["fact_id"]) - set(run.edits["fact_id"]))]) + len(
        run.read("traces", cells="all")
    ) - len(run.traces)


def test_a_run_on_other_facts_is_refused(lab, many, tmp_path, facts):
    run = lab().run()
    before = files(run.path)
    save_facts([replace(fact, target_true="London") for fact in facts], tmp_path / "other.jsonl")
    with pytest.raises(RunMismatch, match=r"other facts: .*facts\.jsonl.*other\.jsonl"):
        lab(data=str(tmp_path / "other.jsonl")).run()
    assert files(run.path) == before


def test_the_same_facts_in_another_file_are_the_same_run(lab, tmp_path, facts, computed):
    lab().run()
    computed.clear()
    save_facts(facts, tmp_path / "moved.jsonl")
    run = lab(data=str(tmp_path / "moved.jsonl")).run()
    assert computed == []
    assert run.config["data"].endswith("moved.jsonl")


def test_a_damaged_selection_is_named_and_made_anew(lab, tmp_path):
    lab().run()
    (tmp_path / "run" / "selection.json").write_text("{")
    with pytest.raises(ValueError, match=r"selection\.json is damaged"):
        load_run(tmp_path / "run")
    assert len(edited(lab().run())) == 8


@pytest.mark.slow
def test_a_plan_knows_what_is_there_and_computes_no_statistics(lab, many, monkeypatch, tmp_path):

    lab(**many, facts=4, layers=(1,)).run()
    refused = cached_property(lambda self: pytest.fail("key statistics are computed"))
    refused.__set_name__(Setup, "stats")
    monkeypatch.setattr(Setup, "stats", refused)
    before = files(tmp_path)
    plan = lab(**many, facts=8, workers=2).plan()
    assert (plan.traces, plan.traces_missing) == (8, 4)
    assert (plan.edits, plan.edits_missing) == (16, 12)
    assert plan.seconds == plan.statistics + plan.work / 2 > 0
    done = lab(**many, facts=4, layers=(1,)).plan()
    assert (done.traces_missing, done.edits_missing, done.work) == (0, 0, 0)
    assert files(tmp_path) == before


# What a cell's name holds


def test_chunks_of_more_facts_begin_with_those_of_fewer():
    everything = loc_edit.load_facts()
    for fewer, more in ((100, 200), (25, 300), (60, 737)):
        small, large = (sample_by_relation(everything, n) for n in (fewer, more))
        assert large[:fewer] == small


def test_only_missing_facts_are_a_task():
    cells = {name: UneditedCell(name) for name in "ab"}
    done = {"a": pd.Series([1, 1, 1, 0, 0, 1, 1], dtype=bool).to_numpy()}
    streams = missing_tasks(cells, 7, 3, done)
    assert [[(task.name, task.facts) for task in stream] for stream in streams] == [
        [("b", (0, 1, 2))],
        [("a", (3, 4)), ("b", (3, 4, 5))],
        [("b", (6,))],
    ]


def test_the_log_tells_of_every_start_and_shard(lab, tmp_path):
    lab(layers=(1,)).run()
    at_work = lab().rows()
    next(at_work)
    at_work.close()
    lab().run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    names = [line["event"] for line in lines]
    assert names == ["start", *["shard"] * 8, "end", "start", "shard", "end", "start", *["shard"] * 3, "end"]
    starts, ends = ([line for line in lines if line["event"] == name] for name in ("start", "end"))
    assert [end["how"] for end in ends] == ["finished", "left", "finished"]
    assert starts[0]["config"] != starts[1]["config"] == starts[2]["config"]
    assert [(start["found"], start["shards"]) for start in starts] == [(0, 8), (6, 10), (7, 10)]
    assert starts[0]["versions"]["torch"]
    shard = lines[1]
    assert shard["cell"] == "tracing, window 1"
    assert shard["seconds"] > 0
    assert shard["rows"] > 0
    assert all(line["time"] < later["time"] or line["elapsed"] <= later["elapsed"] for line, later in pairwise(lines))
