"""Localizers in the regression: a planted effect is found, none where there is none, and peaks are compared."""

import numpy as np
import pandas as pd
import pytest
from synthetic import dependent_rows, edit_rows, holm_by_hand, regression_rows, trace_rows

import loc_edit
from loc_edit.analysis.analyze import analyze
from loc_edit.analysis.comparisons import comparisons
from loc_edit.analysis.figures.localizers import plot_localizer_choices, plot_localizer_matrix
from loc_edit.analysis.figures.paper import FIGURES
from loc_edit.analysis.regression.localizers import localizer_matrix
from loc_edit.analysis.regression.ols import fits
from loc_edit.analysis.regression.statistics import sensitivity
from loc_edit.analysis.run import Run, load_run
from loc_edit.analysis.tables.localized import localizers_in, of_localizer
from loc_edit.analysis.tables.rows import RowsMissing, StudyRows, join_by_localizer
from loc_edit.analysis.tables.summaries import mean_effects


def several(n_facts=8, windows=(5,), names=("causal_tracing", "attribution", "random")):
    """Trace rows of several localizers, and edits of their facts."""
    parts = [
        trace_rows(n_facts=n_facts, n_layers=4, windows=windows, seed=i).assign(localizer=name, metric="probability")
        for i, name in enumerate(names)
    ]
    shape = ["fact_id", "layer", "pos", "subject_begin", "subject_end", "p_clean", "p_corrupted"]
    first = parts[0]
    parts = [
        first,
        *(
            first.assign(localizer=p["localizer"].iloc[0], p_restored=_other(first, i))
            for i, p in enumerate(parts)
            if i
        ),
    ]
    traces = pd.concat(parts, ignore_index=True)
    assert not traces[shape].isna().any(axis=None)
    return traces, edit_rows(first)


def _other(traces, seed):
    draws = np.random.default_rng(seed).uniform(0, 1, len(traces))
    return traces["p_corrupted"] + draws * (traces["p_clean"] - traces["p_corrupted"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    traces, edits = several()
    folder = tmp_path_factory.mktemp("run") / "run"
    config = {"data": "d", "facts": 8, "problems": ["error_injection", "fact_forcing"]}
    with Run.create(folder, config, {"model_fingerprint": "a"}) as writer:
        writer.write("traces", "all", traces.assign(cell=traces["localizer"]))
        writer.write("edits", "all", edits.assign(cell="e"))
    return load_run(folder)


@pytest.mark.slow
def test_a_planted_added_r2_is_recovered():
    planted = regression_rows(n_facts=300, r2_added=0.2)
    nothing = planted.assign(trace=regression_rows(n_facts=300, seed=1)["trace"])
    found = loc_edit.localizer_matrix({"causal_tracing": nothing, "attribution": planted}, draws=300)
    found = found.set_index("localizer")
    assert found.loc["attribution", "r2_added"] == pytest.approx(0.2, abs=1e-6)
    assert found.loc["attribution", "added_low"] < 0.2 < found.loc["attribution", "added_high"] + 0.02
    assert found.loc["attribution", "added_corrected"] == pytest.approx(0.2, abs=0.02)
    assert found.loc["attribution", "p_permutation_holm"] < 0.01
    assert found.loc["causal_tracing", "added_corrected"] < 0.01
    assert found.loc["causal_tracing", "p_permutation"] > 0.01
    assert (found["n"] == 1200).all()


@pytest.mark.slow
def test_under_no_effect_p_is_uniform_and_holm_holds_the_family():
    rng = np.random.default_rng(3)
    frames = {f"localizer {i}": dependent_rows(rng=rng) for i in range(60)}
    found = loc_edit.localizer_matrix(frames, draws=200)
    assert 0.3 < found["p_permutation"].mean() < 0.7
    assert 0.02 < (found["p_permutation"] < 0.2).mean() < 0.4
    assert (found["p_permutation_holm"] < 0.05).sum() <= 1


@pytest.mark.slow
def test_holm_is_over_the_whole_matrix():
    frames = {name: regression_rows(n_facts=20, seed=i, r2_added=0.05) for i, name in enumerate("abcd")}
    found = localizer_matrix(frames, draws=200)
    alone = localizer_matrix({"a": frames["a"]}, draws=200)
    assert found["p_permutation"].iloc[0] == alone["p_permutation"].iloc[0]
    np.testing.assert_allclose(found["p_permutation_holm"], holm_by_hand(found["p_permutation"]))
    assert (found["p_permutation_holm"] > found["p_permutation"]).any()


@pytest.mark.slow
def test_what_a_localizer_owes_to_prompt_length_or_the_control_is_taken_off():
    frame = dependent_rows(80, 4, slope=0.3, rng=0)
    length = np.random.default_rng(1).integers(4, 12, 80)[frame["fact_id"]]
    frame = frame.assign(rewrite=frame["rewrite"] + 0.2 * length, prompt_length=length)
    noise = np.random.default_rng(5).normal(0, 0.5, len(frame))
    by_length = frame.assign(trace=length + np.random.default_rng(7).normal(0, 0.5, len(frame)))
    frames = {"causal_tracing": frame, "attribution": by_length, "random": by_length.assign(trace=length + noise)}
    found = localizer_matrix(frames, draws=50).set_index("localizer")
    assert (found["partial_low"] > 0).all()
    assert (found["beyond_controls_low"] > 0).to_dict() == {
        "causal_tracing": True, "attribution": False, "random": False,
    }  # fmt: skip
    alone = localizer_matrix({"causal_tracing": frame.drop(columns="prompt_length")}, draws=50)
    np.testing.assert_allclose(alone["beyond_controls"], alone["partial"])


def test_one_layer_has_no_number_and_says_why():
    frame = regression_rows(n_facts=20, seed=1, r2_added=0.05)
    (row,) = localizer_matrix({"a": frame[frame["layer"] == 2]}, draws=50).to_dict("records")
    assert row["reason"]
    assert np.isnan([row[name] for name in ("r2_added", "added_corrected", "p_permutation")]).all()


def test_windows_never_mix_and_unfinished_localizers_are_left_out(caplog):
    traces, edits = several(windows=(1, 5))
    attribution = traces["localizer"] == "attribution"
    other_window = traces[~attribution | (traces["window"] == 1)]
    assert set(join_by_localizer(edits, other_window)) == {"causal_tracing", "random"}
    assert "a localizer is left out: attribution: no traces with window 5" in caplog.text
    lacks_a_fact = traces[~attribution | (traces["fact_id"] != 3)]
    assert set(StudyRows.of(lacks_a_fact, edits).joined_by_localizer()) == {"causal_tracing", "random"}
    alone = traces[~traces["localizer"].isin(["random"]) & (~attribution | (traces["window"] == 1))]
    with pytest.raises(RowsMissing, match="attribution: no traces with window 5"):
        StudyRows.of(alone, edits).joined_by_localizer()


def test_choices_of_each_localizer_on_rows_by_hand():
    score = np.array([[0.9, 0.1, 0.2], [0.1, 0.8, 0.2], [0.7, 0.6, 0.1], [0.8, 0.1, 0.1]])

    def frame(trace):
        facts, layers = np.indices(score.shape)
        columns = {"fact_id": facts.ravel(), "layer": layers.ravel(), "rewrite": score.ravel(), "trace": trace.ravel()}
        return pd.DataFrame(columns).assign(problem="error_injection", method="rome", window=1, status="done")

    knows, never = score, np.tile([0.0, 0.0, 1.0], (4, 1))
    found = loc_edit.localizer_choices({"attribution": frame(knows), "direct": frame(never)}, draws=0)
    means = found.pivot(index="localizer", columns="choice", values="mean")
    assert means.loc["attribution", "peak"] == means.loc["attribution", "oracle"] == pytest.approx(0.8)
    assert means.loc["direct", "peak"] == pytest.approx(0.15)
    assert means["one layer"].nunique() == means["any layer"].nunique() == means["oracle"].nunique() == 1
    assert means.loc["direct", "one layer"] == pytest.approx(np.mean([0.9, 0.1, 0.7, 0.8]))


@pytest.mark.slow
def test_a_run_gives_the_matrix_of_its_own_frames(run):
    found = loc_edit.localizer_matrix(run, draws=20)
    assert list(dict.fromkeys(found["localizer"])) == ["causal_tracing", "attribution", "random"]
    assert len(found) == 3 * 2 * 4
    for name in ("causal_tracing", "attribution", "random"):
        fitted = fits(run.frame(localizer=name))
        rows_of_localizer = found[found["localizer"] == name].reset_index(drop=True)
        np.testing.assert_allclose(rows_of_localizer["r2_added"], fitted["r2_added"])
    assert found["r2_added"].nunique() == len(found)
    assert set(loc_edit.localizer_choices(run, draws=0)["choice"]) == {"peak", "one layer", "any layer", "oracle"}


@pytest.mark.slow
def test_tables_and_figures_of_causal_tracing_do_not_see_the_others(run):
    alone = of_localizer(run.traces)
    rows, plain = StudyRows.of(run.traces, run.edits), StudyRows.of(alone, run.edits)
    pd.testing.assert_frame_equal(rows.joined(), plain.joined())
    pd.testing.assert_frame_equal(mean_effects(run.traces), mean_effects(alone))
    pd.testing.assert_frame_equal(sensitivity(run.edits, run.traces), sensitivity(run.edits, alone))
    for name in ("figure_1", "figure_2", "figure_6"):
        pd.testing.assert_frame_equal(FIGURES[name].build(rows), FIGURES[name].build(plain))


@pytest.mark.slow
def test_analyze_compares_localizers_or_says_why_not(run, tmp_path, monkeypatch):
    monkeypatch.setattr("loc_edit.analysis.analyze.draw_all", lambda *_, **__: ({}, {}))
    monkeypatch.setattr("loc_edit.analysis.analyze.write_tables", lambda *_, **__: ({}, {}))
    found = analyze(run, tmp_path, draws=20)
    assert {path.name for path in found.written["localizer_matrix"]} == {
        f"localizer_matrix.{ending}" for ending in ("csv", "tex", "md", "pdf", "png")
    }
    assert all(path.exists() for path in found.written["localizer_choice"])
    assert (tmp_path / "tables/localizer_choices.csv").exists()
    assert "no draws" in analyze(run, tmp_path, draws=0).missing["localizer_matrix"]
    alone = StudyRows.of(of_localizer(run.traces), run.edits)
    compared = {comparison.table: comparison for comparison in comparisons(alone)}
    for name in ("localizer_matrix", "localizer_choices"):
        with pytest.raises(RowsMissing, match=r"there are \['causal_tracing'\]"):
            compared[name].compute()


@pytest.mark.slow
def test_a_run_without_causal_tracing_is_analyzed_as_far_as_it_goes(run, tmp_path, monkeypatch):
    traces = run.traces[run.traces["localizer"] == "attribution"]
    with Run.create(tmp_path / "run", run.config, {"model_fingerprint": "a"}) as writer:
        writer.write("traces", "all", traces)
        writer.write("edits", "all", run.edits)
    monkeypatch.setattr(
        "loc_edit.analysis.figures.paper.save", lambda figure, data, folder, name: [folder / f"{name}.png"]
    )
    found = analyze(load_run(tmp_path / "run"), tmp_path, draws=20)
    assert found.fits.empty
    assert not found.scores.empty
    assert "localizer_matrix" in found.written
    assert {"table_3", "figure_1"} <= set(found.missing)


@pytest.mark.slow
def test_figures_of_the_study_name_every_localizer_and_method(run):
    matrix = loc_edit.localizer_matrix(run, draws=20)
    injection, forcing, _ = plot_localizer_matrix(matrix).axes
    labels = [text.get_text() for text in injection.get_yticklabels()]
    assert labels == ["Causal Tracing", "Attribution", "Random (control)"]
    for ax, problem in ((injection, "error_injection"), (forcing, "fact_forcing")):
        assert [text.get_text() for text in ax.get_xticklabels()] == ["FT-1", "FT-5", "ROME", "MEMIT"]
        texts = [text.get_text().rstrip("*") for text in ax.texts]
        for value in matrix.loc[matrix["problem"] == problem, "added_corrected"]:
            assert (f"{100 * value:.{1 if value < 0.0995 else 0}f}" if value else "0") in texts
    choices = loc_edit.localizer_choices(run, draws=20)
    axes = plot_localizer_choices(choices).axes
    assert [ax.get_title(loc="left") for ax in axes] == ["Error injection", "Fact forcing"]
    rows = [*labels, "Best layer of each fact (oracle)", "Any layer"]
    assert [text.get_text() for text in axes[0].get_yticklabels()] == rows
    (rome,) = (part for part in axes[0].collections if part.get_label() == "ROME")
    drawn = {rows[round(y)]: x for x, y in rome.get_offsets()}
    chosen = choices[(choices["problem"] == "error_injection") & (choices["method"] == "rome")]
    known = chosen.set_index(["choice", "localizer"])["difference"]
    assert drawn["Attribution"] == pytest.approx(100 * known["peak", "attribution"])
    assert drawn["Any layer"] == pytest.approx(100 * known["any layer", "causal_tracing"])


@pytest.mark.slow
def test_the_report_shows_the_study(run, tmp_path):
    page = loc_edit.write_report(run, tmp_path / "page.html", draws=20).read_text()
    assert "What each localizer adds to the R\u00b2 of the layer" in page
    assert "attribution, 5 (mlp_out)" in page


def test_rows_without_a_localizer_are_causal_tracing_s():
    old = pd.DataFrame({"fact_id": [0, 1], "window": [5, 5]})
    pd.testing.assert_frame_equal(of_localizer(old), old)
    assert of_localizer(old, "attribution").empty
    assert localizers_in(old) == ["causal_tracing"]
    assert localizers_in(old.head(0)) == []
    several = old.assign(localizer=["mine", "attribution"])
    assert of_localizer(several, "mine")["fact_id"].tolist() == [0]
    assert of_localizer(several).empty
    assert localizers_in(several) == ["attribution", "mine"]
