"""Effect sizes against fits by statsmodels and slow loops, and their intervals against exact ones and the truth."""

import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import statsmodels.formula.api as smf
from synthetic import dependent_rows

from loc_edit.analysis.regression import folds as folds_module
from loc_edit.analysis.regression.choices import gain_at_peak
from loc_edit.analysis.regression.effect_sizes import SIZES, common_slope, effect_sizes, shares, within_facts
from loc_edit.analysis.regression.folds import chosen_by_others, out_of_sample, splits
from loc_edit.analysis.regression.intervals import FEWEST_UNITS, jackknife_covariance, share_interval
from loc_edit.analysis.regression.ols import fit
from loc_edit.analysis.regression.profiles import Profiles, Resampling, Sums, explained


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def holey():
    """Rows with missing and infinite outcomes and a fact without tracing effects."""
    frame = dependent_rows(30, 5, slope=0.2, rng=3)
    frame.loc[frame.sample(12, random_state=0).index, "rewrite"] = np.nan
    frame.loc[7, "rewrite"] = np.inf
    frame.loc[frame["fact_id"] == 4, "trace"] = np.nan
    return frame


def finite(frame):
    return frame.replace(np.inf, np.nan).dropna()


def test_sums_give_the_r2_of_statsmodels(holey):
    layer, added = explained(Profiles.of(holey).sums().sum(0))
    fitted = fit(finite(holey))
    np.testing.assert_allclose([layer, added], [fitted.r2_layer, fitted.r2_added], atol=1e-12)


def test_weighted_sums_give_the_r2_of_weighted_least_squares(holey):
    facts = np.sort(finite(holey)["fact_id"].unique())
    weights = np.bincount(np.random.default_rng(0).integers(0, len(facts), len(facts)), minlength=len(facts))
    layer, added = explained(np.tensordot(weights.astype(float), Profiles.of(holey).sums(), axes=1))
    rows = finite(holey).assign(weight=lambda f: f["fact_id"].map(dict(zip(facts, weights, strict=True))))
    rows = rows[rows["weight"] > 0]
    by_layer = smf.wls("rewrite ~ C(layer)", rows, weights=rows["weight"]).fit()
    both = smf.wls("rewrite ~ C(layer) * trace", rows, weights=rows["weight"]).fit()
    np.testing.assert_allclose([layer, layer + added], [by_layer.rsquared, both.rsquared], atol=1e-12)


def test_the_sums_without_a_unit_are_those_of_the_rows_without_it():
    frame = dependent_rows(24, 5, slope=0.2, rng=3).assign(relation=lambda f: 10 + f["fact_id"] % 12)
    profiles = Profiles.of(frame)
    sums = profiles.sums(profiles.units())
    assert len(sums) == 12
    left_out = Sums.of(sums.sum(0) - sums)
    for relation in (0, 7):
        rows = frame[frame["relation"] != 10 + relation]
        by_layer, both = (smf.ols(f"rewrite ~ {right}", rows).fit() for right in ("C(layer)", "C(layer) * trace"))
        np.testing.assert_allclose(left_out.rest[relation], by_layer.ssr)
        np.testing.assert_allclose((left_out.signal[relation] ** 2).sum(), by_layer.ssr - both.ssr)
        slope = smf.ols("rewrite ~ C(layer) + trace", rows).fit().params["trace"]
        np.testing.assert_allclose(left_out.pooled[relation] / left_out.scale[relation], slope)


def test_within_facts_is_the_regression_with_fixed_effects_of_layer_and_fact():
    frame = dependent_rows(25, 5, slope=0.3, rng=2)
    fitted = smf.ols("rewrite ~ C(layer) + C(fact_id) + trace", frame).fit()
    t, df = fitted.tvalues["trace"], fitted.df_resid
    share, r = within_facts(Profiles.of(frame))
    assert r.middle == pytest.approx(np.sign(t) * np.sqrt(t**2 / (t**2 + df)))
    assert r.low < r.middle < r.high
    assert share.low < share.middle < share.high
    easy = frame.assign(rewrite=lambda f: f["rewrite"] + 3 * f["fact_id"], trace=lambda f: f["trace"] - f["fact_id"])
    assert within_facts(Profiles.of(easy))[1].middle == pytest.approx(r.middle)
    assert within_facts(Profiles.of(easy.assign(rewrite=-easy["rewrite"])))[1].middle == pytest.approx(-r.middle)


def test_a_profile_that_all_facts_share_says_nothing_within_a_fact():
    frame = dependent_rows(30, 4, slope=0.2, rng=1)
    shared = frame.assign(trace=frame["layer"] / 7.0)
    for interval in within_facts(Profiles.of(shared)):
        assert np.isnan([interval.middle, interval.low, interval.high]).all()
    assert all(np.isfinite(interval.middle) for interval in within_facts(Profiles.of(frame)))


def test_covariates_are_taken_off_as_in_a_regression_with_them():
    rng = np.random.default_rng(0)
    frame = dependent_rows(30, 4, slope=0.2, rng=1)
    frame["prompt_length"] = rng.integers(5, 9, 30)[frame["fact_id"]]
    frame["rewrite"] += 0.3 * frame["prompt_length"] * frame["layer"]
    profiles = Profiles.of(frame)
    rest = Sums.of(profiles.without([profiles.prompt_length]).sums().sum(0))
    without = smf.ols("rewrite ~ C(layer) * prompt_length", frame).fit()
    with_trace = smf.ols("rewrite ~ C(layer) * prompt_length + C(layer) * trace", frame).fit()
    np.testing.assert_allclose((rest.signal**2).sum() / rest.rest, 1 - with_trace.ssr / without.ssr)


def test_the_slope_and_its_error_are_those_of_refits_without_each_fact():
    frame = dependent_rows(15, 4, slope=0.2, rng=2)
    slopes = [
        smf.ols("rewrite ~ C(layer) + trace", frame[frame["fact_id"] != fact]).fit().params["trace"]
        for fact in range(15)
    ]
    error = np.sqrt(14 / 15 * np.sum((np.asarray(slopes) - np.mean(slopes)) ** 2))
    slope = common_slope(Profiles.of(frame))
    assert slope.middle == pytest.approx(smf.ols("rewrite ~ C(layer) + trace", frame).fit().params["trace"])
    assert (slope.high - slope.low) / 2 == pytest.approx(scipy.stats.t.ppf(0.975, 14) * error)
    assert slope.p == pytest.approx(2 * scipy.stats.t.sf(abs(slope.middle) / error, 14))


def test_the_interval_of_a_share_is_the_noncentral_one_where_errors_are_normal_and_alike():
    rng = np.random.default_rng(0)
    q, units, error = 5, 2000, 0.01
    deviations = np.linalg.qr(rng.normal(size=(units, q)))[0]
    deviations -= deviations.mean(0)
    left_out = deviations @ np.linalg.inv(np.linalg.cholesky(jackknife_covariance(deviations))).T * error
    np.testing.assert_allclose(jackknife_covariance(left_out), error**2 * np.eye(q), atol=1e-9)
    for share in (0.0004, 0.002):
        vector = np.sqrt(share / q) * np.ones(q)
        found = share_interval(vector, vector + left_out)

        def below(truth, observed=share):
            return scipy.stats.ncx2.cdf(observed / error**2, q, truth / error**2)

        for end, tail in ((found.low, 0.975), (found.middle, 0.5), (found.high, 0.025)):
            assert end == 0 or below(end) == pytest.approx(tail, abs=0.02)
            assert end > 0 or below(1e-9) <= tail + 0.02


def test_an_interval_needs_the_fewest_units():
    draws = np.random.default_rng(0)
    for n in (FEWEST_UNITS - 1, FEWEST_UNITS, FEWEST_UNITS + 1):
        interval = share_interval(np.array([0.5]), 0.5 + 0.1 * draws.standard_normal((n, 1)), 0.95)
        assert np.isfinite(interval.low) == np.isfinite(interval.high) == (n >= FEWEST_UNITS)


@pytest.mark.parametrize("middle", [0.3, 0.9])
def test_a_share_never_leaves_0_to_1(middle):
    rng = np.random.default_rng(0)
    found = share_interval(np.array([np.sqrt(middle)]), np.sqrt(middle) + 0.02 * rng.normal(size=(15, 1)))
    assert 0 <= found.low < found.middle < found.high <= 1


def test_cross_validation_is_the_loop_over_folds(holey, monkeypatch):
    monkeypatch.setattr(folds_module, "REPEATS", 2)
    rows = finite(holey)
    facts = np.sort(rows["fact_id"].unique())
    saved = 0.0
    for fold in splits(np.arange(len(facts)), seed=5):
        places = rows["fact_id"].map(dict(zip(facts, fold, strict=True)))
        for held_out in range(10):
            train, test = rows[places != held_out], rows[places == held_out]
            for formula, sign in (("rewrite ~ C(layer)", 1), ("rewrite ~ C(layer) * trace", -1)):
                fitted = smf.ols(formula, train).fit()
                saved += sign * ((test["rewrite"] - fitted.predict(test)) ** 2).sum()
    total = ((rows["rewrite"] - rows["rewrite"].mean()) ** 2).sum()
    found = out_of_sample(Profiles.of(holey), Resampling(seed=5))
    assert found == pytest.approx(saved / 2 / total)
    assert out_of_sample(Profiles.of(holey), Resampling(seed=6)) != pytest.approx(found)


def test_the_layer_that_others_choose_is_the_loop_over_folds():
    rng = np.random.default_rng(0)
    score = np.round(rng.uniform(size=(14, 3)), 1)
    folds = splits(np.arange(14) // 2, seed=1)
    weights = np.stack([np.ones(14), rng.multinomial(14, np.full(14, 1 / 14))]).astype(float)
    means, choice = chosen_by_others(score, folds, weights)
    for w, found in zip(weights, means, strict=True):
        total = 0.0
        for fold in folds:
            for fact in range(14):
                others = fold != fold[fact]
                sums = (w[others, None] * score[others]).sum(0)
                total += w[fact] * score[fact, np.abs(sums - sums.max()) < 1e-9].mean() / len(folds)
        assert found == pytest.approx(total / w.sum())
    np.testing.assert_allclose(choice.sum(1), 1)
    assert (choice * score).sum(1).mean() == pytest.approx(means[0])


def test_a_good_localizer_gains_and_one_unit_is_a_relation():
    rng = np.random.default_rng(0)
    frame = dependent_rows(60, 4, rng=rng)
    peak = frame["trace"] == frame.groupby("fact_id")["trace"].transform("max")
    frame = frame.assign(rewrite=np.where(peak, 0.9, 0.8) + rng.normal(0, 0.02, len(frame)))
    gain = gain_at_peak(Profiles.of(frame), Resampling(300))
    assert gain.low < 0.075 < gain.high
    assert gain.low > 0.05
    for draws in (0, 1):
        alone = gain_at_peak(Profiles.of(frame), Resampling(draws))
        assert alone.middle == pytest.approx(gain.middle)
        assert np.isnan([alone.low, alone.high]).all()
    related = frame.assign(relation=frame["fact_id"] % 12)
    related["rewrite"] += 0.1 * (frame["layer"] == 0)  # so that the choice of the one layer is clear
    related["rewrite"] += 0.3 * rng.normal(size=12)[related["relation"]] * peak
    assert Profiles.of(related).units().max() == 11
    wide, narrow = (gain_at_peak(Profiles.of(f), Resampling(300)) for f in (related, related.drop(columns="relation")))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_facts_of_one_relation_do_not_tell_about_each_other():
    frame = dependent_rows(20, 4, rng=0)
    frame = frame.assign(rewrite=np.random.default_rng(0).normal(size=80), relation=frame["fact_id"])
    copies = pd.concat([frame.assign(fact_id=frame["fact_id"] + 100 * copy) for copy in range(3)])
    one, three = (Profiles.of(f) for f in (frame, copies))
    assert three.units().max() == 19
    assert gain_at_peak(three, Resampling(50)).columns("") == pytest.approx(
        gain_at_peak(one, Resampling(50)).columns("")
    )
    assert out_of_sample(three) == pytest.approx(out_of_sample(one))


def test_the_folds_of_the_one_layer_follow_the_seed():
    rng = np.random.default_rng(0)
    frame = dependent_rows(30, 4, rng=rng).assign(rewrite=rng.normal(size=120))  # no layer is best for all folds
    gains = [gain_at_peak(Profiles.of(frame), Resampling(10, seed=seed)).middle for seed in (0, 1, 0)]
    assert gains[0] == gains[2] != gains[1]


def test_few_relations_are_not_resampled_and_facts_without_one_are_alone():
    frame = dependent_rows(30, 3, rng=0)
    few = Profiles.of(frame.assign(relation=frame["fact_id"] % 5))
    assert few.units().max() == 29
    assert few.has_relations()
    unknown = Profiles.of(frame.assign(relation=""))
    assert len(np.unique(unknown.relation)) == 30
    assert not unknown.has_relations()


def test_all_five_sizes_have_intervals_and_the_seed_counts():
    profiles = Profiles.of(dependent_rows(40, slope=0.2, rng=1))
    found = effect_sizes(profiles, Resampling(100))
    assert set(found) == {*SIZES, "p_within", "p_gain"}
    for name in ("added", "partial", "within", "within_r", "out_of_sample", "gain"):
        middle = found[f"{name}_corrected" if name == "added" else name]
        assert found[f"{name}_low"] <= middle <= found[f"{name}_high"], name
    assert found == effect_sizes(profiles, Resampling(100))
    other = effect_sizes(profiles, Resampling(100, seed=1))
    assert other["gain_low"] != found["gain_low"]
    assert other["out_of_sample"] != found["out_of_sample"]


def test_where_the_layer_explains_nearly_all_the_partial_share_is_not_small():
    rng = np.random.default_rng(0)
    trace, noise = rng.normal(size=(80, 4)), rng.normal(size=(80, 4))
    score = 2 * np.arange(4) + 0.3 * trace + 0.15 * noise
    facts, layers = np.indices(score.shape)
    frame = pd.DataFrame({"fact_id": facts.ravel(), "layer": layers.ravel(), "trace": trace.ravel()})
    added, partial = shares(Profiles.of(frame.assign(rewrite=score.ravel())))
    assert added.high < 0.05
    assert partial.low > 0.6
