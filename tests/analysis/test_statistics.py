"""The table of statistics: the paper's numbers beside the rest, Holm's correction, poor rows, and the choices."""

import warnings
from itertools import product

import numpy as np
import pandas as pd
import pytest
from synthetic import dependent_rows, edit_rows, holm_by_hand, regression_rows, trace_rows

from loc_edit.analysis.regression.ols import fits
from loc_edit.analysis.regression.other_models import MODELS
from loc_edit.analysis.regression.paper import resampled_tables
from loc_edit.analysis.regression.statistics import SHUFFLES, sensitivity, statistics
from loc_edit.analysis.regression.verdict import localization_informs_editing
from loc_edit.analysis.tables.rows import StudyRows
from loc_edit.analysis.tables.summaries import holm, layer_correlations


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def family(n, **more):
    """Rows of several problems, all without an effect."""
    names = [f"problem {i}" for i in range(n)]
    return pd.concat([dependent_rows(20, 3, rng=i).assign(problem=name, **more) for i, name in enumerate(names)])


@pytest.mark.slow
def test_holm_by_hand():
    np.testing.assert_allclose(holm(pd.Series([0.01, np.nan, 0.04, 0.03])), [0.03, np.nan, 0.06, 0.06])
    p = np.random.default_rng(0).uniform(0, 0.2, 12)
    np.testing.assert_allclose(holm(pd.Series(p)), holm_by_hand(p))


@pytest.mark.slow
def test_every_p_that_a_table_prints_is_corrected_over_its_rows():
    frame = family(5)
    table = statistics(frame, draws=30)
    columns = [name for name in table if (name == "p" or name.startswith("p_")) and not name.endswith("_holm")]
    assert set(columns) == {
        "p", "p_permutation", "p_within_relations", "p_clustered", "p_within", "p_gain", "p_slope",
    }  # fmt: skip
    for name in set(columns) - {"p_within_relations"}:
        np.testing.assert_allclose(table[f"{name}_holm"], holm_by_hand(table[name]), err_msg=name)
    correlations = layer_correlations(frame)
    assert len(correlations) == 15
    np.testing.assert_allclose(correlations["p_holm"], holm_by_hand(correlations["p"]))


@pytest.mark.slow
def test_statistics_hold_the_papers_numbers_and_the_rest():
    frame = pd.concat([regression_rows(r2_added=0.1), regression_rows(r2_added=0.0, method="memit", window=5)])
    table = statistics(frame, draws=100)
    pd.testing.assert_frame_equal(table[fits(frame).columns.tolist()], fits(frame))
    assert (table["added_low"] <= table["added_corrected"]).all()
    assert (table["added_corrected"] <= table["added_high"]).all()
    pd.testing.assert_frame_equal(table, statistics(frame, draws=100))
    assert (
        table[["p_permutation", "gain_low"]] != statistics(frame, draws=100, seed=1)[["p_permutation", "gain_low"]]
    ).any(axis=None)


@pytest.mark.slow
def test_a_large_family_has_as_many_permutations_as_holm_needs():
    frame = pd.concat([regression_rows(r2_added=0.3, n_facts=20), *(family(12, rewrite=np.nan),)])
    frame = frame.assign(
        rewrite=frame["rewrite"].fillna(frame["layer"] + np.random.default_rng(0).normal(size=len(frame)))
    )
    table = statistics(frame, draws=10)
    assert table["p_permutation"].min() == pytest.approx(1 / (1 + SHUFFLES * 13))
    assert table["p_permutation_holm"].min() < 0.05


@pytest.mark.slow
def test_the_unit_and_what_is_missing_are_named():
    frame = dependent_rows(24, 3, rng=0)
    (row,) = statistics(frame.assign(relation=frame["fact_id"] % 12), draws=20).to_dict("records")
    assert (row["unit"], row["n_relations"], row["dependence_note"]) == ("relation", 12, "")
    (row,) = statistics(frame.assign(relation=frame["fact_id"] % 3), draws=20).to_dict("records")
    assert (row["unit"], row["n_relations"]) == ("fact", 3)
    assert row["dependence_note"] == "relations: expected at least 10, got 3; the units are facts"
    (row,) = statistics(frame[frame["fact_id"] < 8], draws=20).to_dict("records")
    assert row["dependence_note"] == "clustered test: expected at least 10 facts or relations"
    assert np.isnan(row["p_clustered"])


@pytest.mark.slow
@pytest.mark.parametrize("relations", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda f: f[f["layer"] == 0],
        lambda f: f.assign(rewrite=1.0),
        lambda f: f.assign(trace=0.3),
        lambda f: f.assign(rewrite=np.nan),
        lambda f: f.assign(trace=np.nan),
        lambda f: f[f["fact_id"] == 0],
        lambda f: f[f["fact_id"] < 2],
        lambda f: f[f["fact_id"] < 4],
        lambda f: f.assign(trace=f["layer"] * 0.1),
        lambda f: f.assign(rewrite=f["trace"] + f["layer"]),
        lambda f: f.assign(rewrite=f["fact_id"]),
        lambda f: f.assign(rewrite=f["rewrite"].where(f["fact_id"] > 3, np.inf)),
    ],
)
def test_poor_rows_never_crash(change, relations):
    frame = dependent_rows(22, 4, rng=0)
    frame = frame.assign(relation=frame["fact_id"] % 11) if relations else frame
    table = localization_informs_editing(change(frame), draws=20)
    assert len(table) == 1
    assert isinstance(table["verdict"][0], str)


@pytest.mark.slow
def test_an_infinite_score_counts_as_dropped_and_changes_nothing_else():
    frame = dependent_rows(30, 4, slope=0.1, rng=0)
    rows = frame.assign(rewrite=frame["rewrite"].where(frame.index != 5, np.inf))
    infinite = statistics(rows, draws=20)
    pd.testing.assert_frame_equal(infinite, statistics(rows.replace(np.inf, np.nan), draws=20))
    (infinite,) = infinite.to_dict("records")
    assert (infinite["n_dropped"], infinite["n"]) == (1, 119)
    assert np.isfinite(
        [infinite[name] for name in ("r2_added", "added_high", "partial", "gain", "p_permutation")]
    ).all()


def test_rows_of_one_cell_twice_are_refused():
    frame = regression_rows(n_facts=5)
    with pytest.raises(ValueError, match="rows of the regression: 20 rows occur twice"):
        statistics(pd.concat([frame, frame]))


def r2_by_hand(x, y, layer):
    """R^2 of the layers' means, and of a line per layer, by least squares on indicator columns."""
    indicators = (layer[:, None] == np.unique(layer)).astype(float)
    shares = []
    for design in (indicators, np.hstack([indicators, indicators * x[:, None]])):
        rest = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
        shares.append(1 - rest @ rest / ((y - y.mean()) @ (y - y.mean())))
    return shares


@pytest.mark.slow
def test_every_line_of_sensitivity_by_hand():
    traces = trace_rows(n_facts=8, n_layers=4, windows=(1, 5), sites=("mlp_out", "attn_out"))
    edits = edit_rows(traces, problems=("error_injection",), methods=(("rome", 1),), controls=False)
    edits = edits.sort_values(["fact_id", "layer"])
    table = sensitivity(edits, traces).set_index(["site", "trace_window", "denominator", "regressor"])
    assert len(table) == len(table.index.drop_duplicates()) == 16
    np.testing.assert_allclose(table["p_holm"], holm_by_hand(table["p"]))
    y, layer = edits["rewrite"].to_numpy(), edits["layer"].to_numpy()
    for site, window, denominator, regressor in product(
        ("mlp_out", "attn_out"), (1, 5), ("clean", "max"), ("max", "last_subject")
    ):
        x = []
        for fact, at in zip(edits["fact_id"], layer, strict=True):
            cells = traces[(traces["fact_id"] == fact) & (traces["site"] == site) & (traces["window"] == window)]
            low, top = cells["p_corrupted"].iloc[0], cells["p_clean"].iloc[0]
            if denominator == "max":
                top = max(top, cells["p_restored"].max())
            own = cells[cells["layer"] == at]
            if regressor == "max":
                own = own[own["pos"] >= own["subject_begin"]]
                x.append(max(0.0, (own["p_restored"].max() - low) / (top - low)))
            else:
                x.append(
                    float((own.loc[own["pos"] == own["subject_end"] - 1, "p_restored"].iloc[0] - low) / (top - low))
                )
        line = table.loc[(site, window, denominator, regressor)]
        np.testing.assert_allclose([line["r2_layer"], line["r2_both"]], r2_by_hand(np.asarray(x), y, layer), atol=1e-10)


@pytest.fixture(scope="module")
def few_rows():
    traces = trace_rows(n_facts=12, n_layers=3, windows=(5,))
    return StudyRows.of(traces, edit_rows(traces, problems=("error_injection",), methods=(("rome", 1),)))


@pytest.mark.slow
def test_statistics_and_verdict_are_of_every_score(few_rows):
    tables = resampled_tables(10)
    scores = ["rewrite", "paraphrase", "neighborhood", "overall", "essence"]
    for name in ("statistics", "verdict"):
        assert tables[name].build(few_rows)["outcome"].tolist() == scores


@pytest.mark.slow
def test_resampled_tables_heed_draws_and_seed(few_rows):
    other_scores = ["paraphrase", "neighborhood", "overall", "essence"]
    rows = StudyRows(few_rows.traces, few_rows.edits.drop(columns=other_scores), 5)
    first, *others = [
        resampled_tables(draws, seed)["statistics"].build(rows)["gain_low"]
        for draws, seed in ((30, 0), (31, 0), (30, 1))
    ]
    for other in others:
        assert (other != first).all()


@pytest.mark.slow
def test_other_models_stand_in_the_table_of_sensitivity(few_rows):
    table = resampled_tables(10)["sensitivity"].build(few_rows)
    assert list(table["model"].unique()) == ["line per layer", *MODELS]
