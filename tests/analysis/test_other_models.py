"""Other models find what is there, and say why they have no number."""

import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from synthetic import dependent_rows

from loc_edit.analysis.regression.other_models import MODELS, other_models


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def lines(frame, *models):
    return other_models(frame, models=models or None, draws=99).set_index("model")


@pytest.mark.slow
def test_each_model_is_a_line_with_a_number_or_a_reason():
    frame = dependent_rows(200, slope=0.1, shared=0.6, rng=5).assign(relation=lambda f: f["fact_id"] % 20)
    frame = frame.assign(prompt_length=5 + frame["fact_id"] % 3, rewrite=lambda f: f["rewrite"] / 10 + 0.4)
    found = lines(frame)
    assert list(found.index) == list(MODELS)
    assert (found["reason"] == "").all()
    assert found["p"].notna().all()
    for name in ("prompt length", "relation", "random intercepts", "random slopes", "fractional logit"):
        assert found.loc[name, "slope_low"] < 0.01 < found.loc[name, "slope_high"], name
        assert found.loc[name, "p"] < 0.05, name
    assert found.loc["random intercepts", "fact_share"] == pytest.approx(0.6, abs=0.1)
    assert found.loc["curves", "p"] > 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a variance below .01 is called a boundary
        fitted = smf.mixedlm("rewrite ~ C(layer) + trace", frame, groups=frame["fact_id"]).fit()
    assert found.loc["random intercepts", "slope"] == pytest.approx(fitted.params["trace"], rel=1e-3)


@pytest.mark.slow
def test_small_scores_do_not_hide_the_variance_between_facts():
    frame = dependent_rows(60, slope=0.1, shared=0.6, rng=5)
    found = lines(frame.assign(rewrite=frame["rewrite"] / 1000), "random intercepts").loc["random intercepts"]
    assert found["fact_share"] > 0.4
    assert found["reason"] == ""
    alike = lines(dependent_rows(60, shared=0.0, rng=6), "random intercepts").loc["random intercepts"]
    assert alike["fact_share"] < 0.05


@pytest.mark.slow
def test_a_by_product_of_the_prompts_length_is_taken_off():
    frame = dependent_rows(120, rng=0)
    length = np.random.default_rng(1).integers(4, 12, 120)[frame["fact_id"]]
    frame = frame.assign(prompt_length=length, trace=frame["trace"] + length, rewrite=frame["rewrite"] + 0.3 * length)
    found = lines(frame, "random intercepts", "prompt length")
    assert found.loc["random intercepts", "p"] < 1e-3
    assert found.loc["prompt length", "p"] > 0.01
    assert found.loc["prompt length", "partial_low"] < 0.01


@pytest.mark.parametrize(
    ("lengths", "reason"), [((7, 7), "the prompts' lengths are"), ((7, 8), ""), ((7, np.nan), "the")]
)
def test_prompts_of_one_length_tell_nothing_of_their_length(lengths, reason):
    frame = dependent_rows(40, rng=0)
    found = lines(frame.assign(prompt_length=np.array(lengths)[frame["fact_id"] % 2]), "prompt length")
    assert found.loc["prompt length", "reason"].startswith(reason)
    assert np.isfinite(found.loc["prompt length", "p"]) == (reason == "")


@pytest.mark.slow
def test_what_relations_share_is_taken_off():
    rng = np.random.default_rng(2)
    frame = dependent_rows(120, rng=0).assign(relation=lambda f: f["fact_id"] % 12)
    shared = rng.normal(size=12)[frame["relation"]]
    found = lines(
        frame.assign(trace=frame["trace"] + 3 * shared, rewrite=frame["rewrite"] + shared),
        "random intercepts",
        "relation",
    )
    assert found.loc["random intercepts", "p"] < 1e-3
    assert found.loc["relation", "p"] > 0.01


@pytest.mark.slow
def test_curves_find_what_no_line_finds():
    rng = np.random.default_rng(0)
    frame = dependent_rows(200, 4, shared=0.3, rng=rng)
    bent = frame.assign(rewrite=frame["rewrite"] + 0.3 * (frame["trace"] ** 2 - 1))
    found = lines(bent, "curves").loc["curves"]
    assert found["p"] == pytest.approx(0.01)
    assert found["partial"] > 0.3
    peak = frame.groupby("fact_id")["trace"].transform("idxmax").map(frame["layer"])
    assert lines(frame.assign(rewrite=frame["rewrite"] + 0.3 * peak), "curves").loc["curves", "p"] == pytest.approx(
        0.01
    )


@pytest.mark.slow
def test_without_an_effect_the_p_of_curves_is_uniform():
    frames = [dependent_rows(60, 3, rng=seed).assign(problem=f"problem {seed}") for seed in range(30)]
    p = lines(pd.concat(frames), "curves")["p"]
    assert (p < 0.05).mean() <= 0.15
    assert 0.35 < p.mean() < 0.65


def test_scores_at_the_ceiling_have_a_fractional_model():
    frame = dependent_rows(150, slope=0.3, rng=3)
    frame = frame.assign(rewrite=np.clip(frame["rewrite"], 0, 1))
    found = lines(frame, "fractional logit").loc["fractional logit"]
    assert found["slope"] > 0.05
    assert found["p"] < 1e-3
    outside = lines(frame.assign(rewrite=frame["rewrite"] + 0.5), "fractional logit").loc["fractional logit"]
    assert outside["reason"] == "a score lies outside 0 to 1"


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [lambda f: f[f["layer"] == 0], lambda f: f.assign(rewrite=1.0), lambda f: f.assign(trace=np.nan)]
    + [lambda f, n=n: f[f["fact_id"] < n] for n in (1, 2, 3, 6)],
)
def test_poor_rows_give_reasons(change):
    found = lines(change(dependent_rows(12, 4, rng=0).assign(relation=lambda f: f["fact_id"] % 2)))
    assert (found["p"].notna() | (found["reason"] != "")).all()
