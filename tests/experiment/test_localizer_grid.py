"""Localisers in the grid: rows are those of `localize`, runs resume and grow by them, and no frame mixes them."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from runs import assert_same_rows, edited

import loc_edit
from loc_edit.analysis.run import load_run
from loc_edit.analysis.status import run_progress
from loc_edit.experiment.config import BadConfig, ExperimentConfig
from loc_edit.experiment.study import trace_cells
from loc_edit.facts.loading import save_facts
from loc_edit.localization.references import references
from loc_edit.localization.registry import EFFECTS, grid_options
from loc_edit.names import LOCALIZERS, TRACING
from loc_edit.store.shards import write_shard

NAMES = tuple(LOCALIZERS)
SOME = (TRACING, "attribution", "resample_ablation", "direct")


@pytest.fixture
def many(tmp_path, facts):
    """A file of twelve facts: each subject in three templates, one relation."""
    more = [
        replace(fact, fact_id=4 * n + i, relation="one", subject=f"{fact.subject}{' Old' * n}")
        for n in range(3)
        for i, fact in enumerate(facts)
    ]
    save_facts(more, tmp_path / "many.jsonl")
    return more, str(tmp_path / "many.jsonl")


def of(run, localizer):
    found = run.traces
    return found[found["localizer"] == localizer].reset_index(drop=True)


def traced(computed):
    return [what for kind, _, what in computed if kind == "traces"]


def test_every_localizer_of_the_vocabulary_has_a_function():
    assert tuple(EFFECTS) == tuple(LOCALIZERS)


def test_the_other_localisers_may_have_windows_of_their_own(lab):
    options = {"localizers": (TRACING, "direct", "random"), "facts": 1}
    pairs = [(one.localizer, one.window) for one in trace_cells(lab(**options, windows=(1, 2)).setup)]
    assert pairs == [(name, window) for name in options["localizers"] for window in (1, 2)]
    pairs = [
        (one.localizer, one.window) for one in trace_cells(lab(**options, windows=(1, 2), localizer_windows=(2,)).setup)
    ]
    assert pairs == [(TRACING, 1), (TRACING, 2), ("direct", 2), ("random", 2)]


@pytest.mark.slow
def test_rows_are_what_localize_gives_one_at_a_time(lab, tiny, many):
    facts, data = many
    run = lab(data=data, facts=5, localizers=("all",), windows=(1, 2), problems=("error_injection",)).run()
    assert set(run.traces["localizer"]) == set(NAMES)
    chosen = [fact for fact in facts if fact.fact_id in set(run.traces["fact_id"])]
    for fact in chosen:
        prompt = loc_edit.encode(tiny, fact)
        noise = loc_edit.subject_noise(tiny, prompt, scale=1.5, samples=2)
        for name in NAMES:
            options = grid_options(name, tiny, fact, facts)
            for window in (1, 2):
                found = loc_edit.localize(
                    tiny, prompt, fact.target_true, noise=noise, localizer=name, window=window, **options
                )
                mine = run.traces.query("fact_id == @fact.fact_id and localizer == @name and window == @window")
                assert set(mine["metric"]) == {found.metric}
                np.testing.assert_allclose(mine["p_restored"], found.p_restored.flatten(), rtol=1e-4, atol=1e-6)
                assert mine["p_clean"].iloc[0] == pytest.approx(found.p_clean, rel=1e-4)


def test_rows_do_not_depend_on_the_company(lab, many, tmp_path):
    _, data = many
    options = {"data": data, "localizers": SOME}
    few = lab(**options, facts=2, out=str(tmp_path / "few")).run()
    more = lab(**options, facts=6, chunk=3, out=str(tmp_path / "more")).run()
    for name in SOME[1:]:
        kept = of(more, name)
        kept = kept[kept["fact_id"].isin(set(few.traces["fact_id"]))].reset_index(drop=True)
        pd.testing.assert_frame_equal(of(few, name), kept, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_run_grows_by_localizers_and_resumes(lab, tmp_path, computed):
    first = lab().run()
    kept, names = first.traces, {path.name for path in (tmp_path / "run/traces").iterdir()}
    computed.clear()
    grown = lab(localizers=(TRACING, "attribution", "zero_ablation")).run()
    assert traced(computed) == ["attribution, window 1", "zero_ablation, window 1"] * 2
    assert {kind for kind, *_ in computed} == {"traces"}
    assert names < {path.name for path in (tmp_path / "run/traces").iterdir()}
    pd.testing.assert_frame_equal(of(grown, TRACING), kept)
    whole = lab(localizers=(TRACING, "attribution", "zero_ablation"), out=str(tmp_path / "whole")).run()
    assert_same_rows(grown, whole)
    found = run_progress(grown)
    assert found.traces["localizer"].tolist() == [TRACING, "attribution", "zero_ablation"]
    assert found.remaining == 0
    computed.clear()
    at_work = lab(localizers=(*SOME, "random")).rows()
    next(at_work)
    at_work.close()
    assert run_progress(load_run(tmp_path / "run")).remaining > 0
    lab(localizers=(*SOME, "random")).run()
    assert len(traced(computed)) == len(set(map(str, computed))) == 2 * 3
    with grown.create(grown.path, *(lambda r: (r.config, r.provenance, r.selection))(load_run(grown.path))) as opened:
        assert opened.compact() > 0
        assert set(opened.traces["localizer"]) == {*SOME, "random"}


@pytest.mark.slow
def test_plan_counts_localizers(lab):
    one, all_of_them = lab().plan(), lab(localizers="all").plan()
    assert all_of_them.traces == one.traces * len(NAMES)
    assert all_of_them.work > one.work
    assert all_of_them.disk > one.disk


def test_what_a_localizer_depends_on_is_in_its_cell(lab, many, tmp_path, facts):
    _, data = many
    other = str(tmp_path / "other.jsonl")
    save_facts(many[0][:-1], other)
    experiments = [lab(localizers=SOME, data=path) for path in (data, other)]
    names = [[cell.name(one.setup) for cell in trace_cells(one.setup)] for one in experiments]
    same = [a == b for a, b in zip(*names, strict=True)]
    assert dict(zip(SOME, same, strict=True)) == {name: name != "resample_ablation" for name in SOME}
    assert len(set(names[0])) == len(SOME)


def test_reference_prompts_are_drawn_for_each_fact_by_itself(tiny, many):
    facts, _ = many
    found = references(tiny, facts[0], facts, most=4)
    assert [p.text for p in found] == [p.text for p in references(tiny, facts[0], facts, most=4)]
    assert len(found) == 4
    assert all(p.subject_text != facts[0].subject for p in found)
    assert [p.text for p in found] != [p.text for p in references(tiny, facts[0], facts, most=4, seed=1)]
    with pytest.raises(ValueError, match="fact 0: none of 1 facts has another subject"):
        references(tiny, facts[0], facts[:1])


def test_a_folder_of_the_schema_before_is_read_as_causal_tracing_and_goes_on(lab, tmp_path, computed):
    run = lab().run()
    new = run.traces
    folder = tmp_path / "run"
    for path in list((folder / "traces").glob("*.parquet")):
        table = pq.read_table(path, partitioning=None)
        metadata = {**table.schema.metadata, b"loc_edit.schema_version": b"2"}
        path.unlink()
        _write_old(table.drop_columns("localizer").replace_schema_metadata(metadata), path)
    config = (folder / "config.toml").read_text()
    assert 'localizers = [\n    "causal_tracing",\n]\n' in config
    config = re.sub("^checksum = .*\n", "", config, flags=re.MULTILINE)
    (folder / "config.toml").write_text(config.replace('localizers = [\n    "causal_tracing",\n]\n', ""))
    selection = json.loads((folder / "selection.json").read_text())
    del selection["checksum"]
    selection["traces"] = {cell: {"window": 1} for cell in selection["traces"]}
    (folder / "selection.json").write_text(json.dumps(selection))
    old = load_run(folder)
    assert "localizer" not in next(iter(old.shards("traces"))).schema.names
    pd.testing.assert_frame_equal(old.traces, new)
    assert len(old.frame()) == len(edited(run))
    assert run_progress(old).remaining == 0
    computed.clear()
    lab().run()
    assert computed == []
    grown = lab(localizers=(TRACING, "attribution")).run()
    assert set(traced(computed)) == {"attribution, window 1"}
    assert set(grown.traces["localizer"]) == {TRACING, "attribution"}


def _write_old(table, path):
    import hashlib

    import pyarrow as pa

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    data = sink.getvalue().to_pybytes()
    key = path.name.split(".")[0]
    (path.parent / f"{key}.{hashlib.sha256(data).hexdigest()[:16]}.parquet").write_bytes(data)


def test_frames_never_mix_localizers(lab):
    run = lab(localizers=(*SOME, "random")).run()
    plain = run.frame()
    for name in (*SOME, "random"):
        frame = run.frame(localizer=name)
        assert len(frame) == len(plain) == len(edited(run))
        assert (name == TRACING) == frame["trace"].equals(plain["trace"])
    with pytest.raises(ValueError, match="no traces of localizer 'zero_ablation'; there are"):
        run.frame(localizer="zero_ablation")


# Corruption by other rules


@pytest.mark.slow
def test_other_noise_in_the_grid(lab, many, tmp_path):
    _, data = many
    for noise in ("u0.2", "us3", "m1"):
        problems = ("error_injection", "tracing_reversal")
        run = lab(noise=noise, data=data, facts=3, problems=problems, out=str(tmp_path / noise)).run()
        assert run.traces["p_restored"].notna().all()
        assert set(run.edits["problem"]) == set(problems)
        assert "sigma" not in run.config
        assert run.config["corruption"]["noise"] in ("uniform", "covariance")


@pytest.mark.slow
def test_facts_without_a_subject_to_swap_are_counted_and_not_dropped(lab, tiny, many, caplog):
    facts, data = many
    fits = replace(facts[1], fact_id=50, subject="Anna Norway")
    save_facts([*facts, fits], data)
    run = lab(noise="swap", data=data, facts=None, problems=("error_injection", "tracing_reversal")).run()
    assert set(run.traces["fact_id"]) == {fact.fact_id for fact in [*facts, fits]}
    lost = set(run.traces.loc[run.traces["p_corrupted"].isna(), "fact_id"])
    assert {1, 50} & lost == set()
    assert 0 < len(lost) < len(facts)
    assert any("no other subject" in record.message for record in caplog.records)
    frame = run.frame()
    assert frame["trace"].isna().groupby(frame["fact_id"]).all().sum() >= len(lost)
    skipped = run.edits.query("problem == 'tracing_reversal' and status == 'skipped'")
    assert lost <= set(skipped["fact_id"])
    assert skipped["reason"].str.contains("no other subject").any()


def test_no_false_object_no_direct_attribution(lab, facts, tmp_path):
    save_facts([replace(facts[0], target_new=None), *facts[1:]], tmp_path / "some.jsonl")
    config = {"data": str(tmp_path / "some.jsonl"), "localizers": (TRACING, "direct"), "problems": ("fact_erasure",)}
    run = lab(**config).run()
    found = of(run, "direct")
    assert set(found["metric"]) == {"logit_difference"}
    assert found.loc[found["fact_id"] == 0, "p_restored"].isna().all()
    assert found.loc[found["fact_id"] == 1, "p_restored"].notna().all()


# Configuration


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"localizers": ["atribution"]}, "localizer 'atribution': did you mean 'attribution'?"),
        ({"localizers": ["random", "random"]}, "twice"),
        ({"localizers": [], "problems": []}, "expected something to compute"),
        (
            {"localizers": ["direct"], "site": "resid_post", "windows": [1]},
            "'direct' looks at site mlp_out or attn_out",
        ),
        ({"noise": "swap", "problems": ["fact_forcing"]}, "fact_forcing draws fresh Gaussian noise"),
        ({"noise": "us3", "problems": ["fact_forcing"]}, "fact_forcing draws fresh Gaussian noise"),
    ],
)
def test_bad_names_and_combinations_are_refused(values, words):
    with pytest.raises(BadConfig, match=words.replace("?", r"\?")):
        ExperimentConfig.from_values(values)


def test_all_means_all(tmp_path):
    path = tmp_path / "all.toml"
    path.write_text('localizers = "all"\n')
    assert ExperimentConfig.from_toml(path).localizers == NAMES
    assert ExperimentConfig(localizers=("all",)).localizers == NAMES


def test_the_commands_take_localizers(lab, tmp_path, capsys):
    from loc_edit.cli.main import main

    lab(localizers=(TRACING, "attribution")).run()
    assert main(["status", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "traces     window 1: 4 of 4 facts" in said
    assert "traces     attribution, window 1: 4 of 4 facts" in said
    assert main(["plan", "--localizers", "atribution"]) == 1
    assert "did you mean 'attribution'" in capsys.readouterr().err


def test_a_row_without_the_column_is_of_causal_tracing(tmp_path):
    row = {"fact_id": 0, "site": "mlp_out", "window": 1, "layer": 0, "pos": 0, "p_restored": math.nan}
    shard = write_shard(tmp_path, "traces", "one", [row])
    assert pq.read_table(shard.path, partitioning=None)["localizer"].to_pylist() == [TRACING]
