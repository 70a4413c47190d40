"""Statistics for dependent rows: resampling, clustering, the mixed model, and the verdict."""

import warnings
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import statsmodels.formula.api as smf
from synthetic import dependent_rows, edit_rows, regression_rows, trace_rows

from loc_edit.analysis.regression.dependence import clustered, fact_correlations, mixed_model, within_facts
from loc_edit.analysis.regression.ols import fit, fits
from loc_edit.analysis.regression.resampling import Profiles, Resampling, bootstrap_added, explained, permutation_p
from loc_edit.analysis.regression.statistics import holm, localization_informs_editing, sensitivity, statistics
from loc_edit.analysis.tables.rows import EffectDefinition, join


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def holey():
    """Rows with missing outcomes and a fact without tracing effects."""
    frame = dependent_rows(30, 5, slope=0.2, rng=3)
    frame.loc[frame.sample(12, random_state=0).index, "rewrite"] = np.nan
    frame.loc[frame["fact_id"] == 4, "trace"] = np.nan
    return frame


def test_sums_give_the_r2_of_statsmodels(holey):
    layer, added = explained(Profiles.of(holey).centered().sums().sum(0))
    found = fit(holey)
    np.testing.assert_allclose([layer, added], [found.r2_layer, found.r2_added], atol=1e-12)


def test_weighted_sums_give_the_r2_of_weighted_least_squares(holey):
    facts = np.sort(holey.dropna()["fact_id"].unique())
    weights = np.bincount(np.random.default_rng(0).integers(0, len(facts), len(facts)), minlength=len(facts))
    layer, added = explained(np.tensordot(weights.astype(float), Profiles.of(holey).centered().sums(), axes=1))
    rows = holey.dropna().assign(weight=lambda f: f["fact_id"].map(dict(zip(facts, weights, strict=True))))
    rows = rows[rows["weight"] > 0]
    by_layer = smf.wls("rewrite ~ C(layer)", rows, weights=rows["weight"]).fit()
    both = smf.wls("rewrite ~ C(layer) * trace", rows, weights=rows["weight"]).fit()
    np.testing.assert_allclose([layer, layer + added], [by_layer.rsquared, both.rsquared], atol=1e-12)


def test_the_permutation_statistic_is_the_refitted_one():
    frame = dependent_rows(4, 3, slope=0.5, rng=1)
    frame.loc[5, "rewrite"] = np.nan
    profiles = frame.pivot(index="fact_id", columns="layer", values="trace")
    refitted = []
    for order in permutations(range(4)):
        dealt = profiles.iloc[list(order)].set_axis(profiles.index).stack().rename("trace").reset_index()
        refitted.append(fit(frame.drop(columns="trace").merge(dealt, on=["fact_id", "layer"])).r2_added)
    expected = np.mean(np.asarray(refitted) >= refitted[0] - 1e-12)
    assert permutation_p(frame) == pytest.approx(expected)  # so few facts: every order is tried


def test_under_no_effect_the_permutation_p_is_uniform_and_the_naive_one_is_not():
    rng = np.random.default_rng(0)
    frames = [dependent_rows(shared=0.95, rng=rng) for _ in range(120)]
    dealt = [permutation_p(frame, resampling=Resampling(draws=99, seed=place)) for place, frame in enumerate(frames)]
    naive = [fit(frame).p for frame in frames]
    assert scipy.stats.kstest(dealt, "uniform").pvalue > 0.01
    assert np.mean(np.asarray(dealt) < 0.05) < 0.1
    # Each layer's slope is tested fairly, but the layers' slopes agree: small and large F are both too common.
    assert scipy.stats.kstest(naive, "uniform").pvalue < 1e-3
    assert np.mean(np.asarray(naive) < 0.05) > 0.1


@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_the_bootstrap_interval_covers_the_truth(slope):
    rng = np.random.default_rng(1)
    truth, _ = _added(dependent_rows(50_000, slope=slope, rng=rng))
    intervals = [
        bootstrap_added(dependent_rows(100, slope=slope, rng=rng), resampling=Resampling(draws=200, seed=s))
        for s in range(60)
    ]
    covered = [i["added_low"] <= truth + 1e-4 and truth <= i["added_high"] for i in intervals]
    assert np.mean(covered) >= 0.85
    corrected = np.mean([i["added_corrected"] for i in intervals])
    assert corrected == pytest.approx(truth, abs=0.006)


def _added(frame):
    layer, added = explained(Profiles.of(frame).centered().sums().sum(0))
    return float(added), float(layer)


def test_clustered_errors_equal_those_of_a_statsmodels_formula():
    frame = dependent_rows(slope=0.1, rng=2)
    found = clustered(frame)
    common = smf.ols("rewrite ~ C(layer) + trace", frame).fit(
        cov_type="cluster", cov_kwds={"groups": frame["fact_id"]}, use_t=True
    )
    np.testing.assert_allclose(found["slope"], common.params["trace"])
    np.testing.assert_allclose(found["slope_se"], common.bse["trace"])
    both = smf.ols("rewrite ~ C(layer) * trace", frame).fit(
        cov_type="cluster", cov_kwds={"groups": frame["fact_id"]}, use_t=True
    )
    slopes = [name for name in both.params.index if "trace" in name]
    assert len(slopes) == 6
    test = both.f_test(np.eye(len(both.params))[[list(both.params.index).index(name) for name in slopes]])
    np.testing.assert_allclose(found["p_clustered"], test.pvalue)


def test_clustering_widens_the_errors_of_dependent_rows():
    frame = dependent_rows(100, shared=0.9, rng=4)
    naive = smf.ols("rewrite ~ C(layer) + trace", frame).fit().bse["trace"]
    assert clustered(frame)["slope_se"] > 1.3 * naive


def test_the_mixed_model_finds_slope_and_share_of_the_facts():
    frame = dependent_rows(200, slope=0.1, shared=0.6, rng=5)
    found = mixed_model(frame)
    assert found["mixed_low"] < 0.1 < found["mixed_high"]
    assert found["fact_share"] == pytest.approx(0.6, abs=0.1)
    assert found["mixed_note"] == ""


def test_within_fact_correlations_by_hand():
    frame = pd.DataFrame(
        {
            "fact_id": np.repeat([0, 1, 2, 3], 3),
            "layer": [0, 1, 2] * 4,
            "trace": [0, 1, 2, 0, 1, 2, 0, 2, 1, 1, 1, 1],
            "rewrite": [1, 2, 3, 3, 2, 1, 1, 2, 3, 1, 2, 3],
        }
    )
    r = fact_correlations(frame).set_index("fact_id")["r"]
    np.testing.assert_allclose(r, [1, -1, 0.5, np.nan])
    found = within_facts(frame)
    assert found["r_fact"] == pytest.approx(0.5 / 3)
    assert found["r_fact_n"] == 3
    by_fact = fact_correlations(frame)["r"]
    low, high = by_fact.mean() - 4.302653 * by_fact.sem(), by_fact.mean() + 4.302653 * by_fact.sem()  # t(2)
    assert (found["r_fact_low"], found["r_fact_high"]) == pytest.approx((low, high), rel=1e-5)
    shared = regression_rows(n_facts=30, r2_layer=0.9, r2_added=0.0)
    assert abs(within_facts(shared)["r_fact_centered"]) < 0.2


def test_holm_by_hand():
    found = holm(pd.Series([0.01, np.nan, 0.04, 0.03]))
    np.testing.assert_allclose(found, [0.03, np.nan, 0.06, 0.06])


def test_statistics_hold_the_papers_numbers_and_the_rest():
    frame = pd.concat([regression_rows(r2_added=0.1), regression_rows(r2_added=0.0, method="memit", window=5)])
    table = statistics(frame, draws=100)
    pd.testing.assert_frame_equal(table[fits(frame).columns.tolist()], fits(frame))
    assert (table["added_low"] <= table["added_corrected"]).all()
    assert (table["added_corrected"] <= table["added_high"]).all()
    assert (table["p_permutation_holm"] >= table["p_permutation"]).all()
    again = statistics(frame, draws=100)
    pd.testing.assert_frame_equal(table, again)


def test_the_verdict_follows_the_rows():
    yes = regression_rows(r2_layer=0.5, r2_added=0.3, n_facts=80)
    no = regression_rows(r2_layer=0.9, r2_added=0.0, n_facts=80, method="memit", window=5)
    one = regression_rows(problem="fact_erasure").query("fact_id == 0")
    table = localization_informs_editing(pd.concat([yes, no, one]), draws=100)
    assert table[["method", "answer"]].to_numpy().tolist() == [["rome", "yes"], ["memit", "no"], ["rome", "cannot say"]]
    assert table["verdict"][0].startswith("ROME, error injection: yes; the layer explains 50.0% of the variance")
    assert "no more than chance would" in table["verdict"][1]
    assert table["verdict"][2] == "ROME, fact erasure: cannot say (too few rows for the layers)."


def test_a_layer_without_effect_has_no_part_in_the_clustered_test():
    frame = dependent_rows(40, 4, rng=1)
    last = frame["layer"] == frame["layer"].max()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of statsmodels: the covariance has no full rank
        noise = 1e-8 * np.random.default_rng(0).random(len(frame))
        found = clustered(frame.assign(rewrite=frame["rewrite"].where(~last, noise)))
    without_layer = clustered(frame[~last])
    assert found["p_clustered"] == pytest.approx(without_layer["p_clustered"], rel=0.05)  # except a small-sample factor
    assert found["f_clustered"] != pytest.approx(clustered(frame)["f_clustered"], rel=0.05)


@pytest.mark.parametrize("n_facts", [9, 10])
def test_nine_facts_are_too_few_for_a_verdict(n_facts):
    frame = regression_rows(r2_layer=0.5, r2_added=0.3, n_facts=n_facts)
    (row,) = localization_informs_editing(frame, draws=100).to_dict("records")
    assert (row["answer"] == "cannot say") == (n_facts < 10)
    assert ("cannot say (too few facts: expected at least 10, got 9)" in row["verdict"]) == (n_facts < 10)
    assert row["r2_added"] > 0.2  # the numbers are there all the same


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
    ],
)
def test_poor_rows_never_crash(change):
    table = localization_informs_editing(change(dependent_rows(12, 4, rng=0)), draws=50)
    assert len(table) == 1
    assert isinstance(table["verdict"][0], str)


def test_rows_of_one_cell_twice_are_refused():
    frame = regression_rows(n_facts=5)
    with pytest.raises(ValueError, match="rows of the regression: 20 rows occur twice"):
        statistics(pd.concat([frame, frame]))


def test_sensitivity_goes_through_the_choices():
    traces = trace_rows(n_facts=8, windows=(1, 5), sites=("mlp_out", "attn_out"))
    edits = edit_rows(traces, problems=("error_injection",), methods=(("rome", 1),))
    table = sensitivity(edits, traces)
    choices = ["site", "trace_window", "denominator", "regressor"]
    assert len(table) == len(table[choices].drop_duplicates()) == 16
    one = table.set_index(choices).loc[("attn_out", 1, "max", "last_subject")]
    frame = join(edits, traces, EffectDefinition(1, "attn_out", "last_subject", "max"))
    assert one["r2_both"] == fit(frame).r2_both
