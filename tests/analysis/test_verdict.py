"""The verdict speaks of each question, and never says no where one of them says otherwise."""

from html import escape

import numpy as np
import pandas as pd
import pytest
from synthetic import dependent_rows, regression_rows

from loc_edit.analysis.regression.effect_sizes import SIZES
from loc_edit.analysis.regression.statistics import statistics
from loc_edit.analysis.regression.verdict import FEWEST, QUESTIONS, localization_informs_editing, verdicts


def row(**numbers):
    """A row of `statistics` in which nothing matters for certain, with some numbers changed."""
    plain = dict.fromkeys(SIZES, 0.0) | {
        "problem": "error_injection", "method": "rome", "window": 1, "outcome": "rewrite", "n_facts": 100,
        "unit": "fact", "reason": "", "r2_layer": 0.95, "r2_added": 0.01, "added_high": 0.02, "partial_high": 0.02,
        "within_high": 0.01, "gain_low": -0.02, "gain_high": 0.01,
    }  # fmt: skip
    plain |= dict.fromkeys(("p_permutation", "p_within", "p_gain"), 0.5)
    plain |= numbers
    return plain | {f"{name}_holm": plain.get(f"{name}_holm", plain[name]) for name in plain if name.startswith("p_")}


def verdict_of(**numbers):
    (found,) = verdicts(pd.DataFrame([row(**numbers)])).to_dict("records")
    return found


YES = {
    "where_to_edit": {"gain": 0.05, "gain_low": 0.034, "gain_high": 0.065, "p_gain": 0.001},
    "how_well": {"partial": 0.3, "partial_low": 0.1, "partial_high": 0.5, "p_permutation": 0.001},
    "within_fact": {"within": 0.3, "within_low": 0.1, "within_high": 0.5, "within_r": 0.5, "p_within": 0.001},
}


def test_no_is_said_only_where_every_question_says_no():
    assert verdict_of()["answer"] == "no"
    for name, numbers in YES.items():
        found = verdict_of(**numbers)
        assert found[name] == "yes"
        assert [found[other] for other in QUESTIONS if other != name] == ["no", "no"]
        assert found["answer"] == "in part"
    assert verdict_of(**YES["where_to_edit"], **YES["how_well"], **YES["within_fact"])["answer"] == "yes"
    assert verdict_of(partial_high=0.06)["answer"] == "unclear"
    assert verdict_of(gain_high=0.03)["answer"] == "unclear"


@pytest.mark.parametrize("name", list(YES))
def test_yes_needs_the_corrected_p(name):
    p = QUESTIONS[name].p
    numbers = YES[name] | {p.removesuffix("_holm"): 0.03}
    assert verdict_of(**numbers, **{p: 0.04})[name] == "yes"
    assert verdict_of(**numbers, **{p: 0.06})[name] == "unclear"
    assert verdict_of(**numbers, **{p: 0.06})["answer"] == "unclear"


def test_a_fact_that_is_edited_worse_where_tracing_peaks_is_no_yes():
    found = verdict_of(**YES["within_fact"] | {"within_r": -0.5})
    assert (found["within_fact"], found["answer"]) == ("unclear", "unclear")


def test_margins_can_be_set_and_unknown_ones_are_refused():
    table = pd.DataFrame([row(partial_high=0.06, within_high=0.2)])
    assert verdicts(table)["answer"].tolist() == ["unclear"]
    assert verdicts(table, margins={"how_well": 0.1, "within_fact": 0.3})["answer"].tolist() == ["no"]
    with pytest.raises(ValueError, match="margins meaningful: expected where_to_edit, how_well, within_fact"):
        verdicts(table, margins={"meaningful": 0.05})
    for question in QUESTIONS.values():
        assert question.margin > 0
        assert len(question.reason) > 20


@pytest.mark.slow
@pytest.mark.parametrize("n_facts", [FEWEST - 1, FEWEST])
def test_too_few_facts_have_numbers_and_no_verdict(n_facts):
    frame = regression_rows(r2_layer=0.5, r2_added=0.3, n_facts=n_facts)
    (found,) = localization_informs_editing(frame, draws=100).to_dict("records")
    few = n_facts < FEWEST
    assert (found["answer"] == "cannot say") == few
    assert (f"cannot say (too few facts: expected at least {FEWEST}, got {FEWEST - 1})" in found["verdict"]) == few
    assert found["r2_added"] > 0.2
    assert np.isfinite(found["partial_high"])


@pytest.mark.slow
def test_the_verdict_follows_the_rows():
    none = dependent_rows(300, 4, rng=0)
    none = none.assign(rewrite=none["rewrite"] / 100 + none["layer"], method="memit", window=5)
    one = regression_rows(problem="fact_erasure").query("fact_id == 0")
    table = localization_informs_editing(
        pd.concat([regression_rows(r2_layer=0.5, r2_added=0.3, n_facts=80), none, one]), draws=100
    )
    assert table["how_well"].tolist() == ["yes", "no", "cannot say"]
    assert table["answer"].tolist()[1:] == ["no", "cannot say"]
    assert "the layer explains 50.0% of the variance" in table["verdict"][0]
    assert table["verdict"][0].startswith("ROME, error injection: in part; ")
    assert "no more than chance would" in table["verdict"][1]
    assert table["verdict"][2] == "ROME, fact erasure: cannot say (too few rows for the layers)."


@pytest.mark.slow
def test_where_the_layer_explains_nearly_all_no_is_not_arithmetic():
    """Tracing explains most of what the layer leaves, and its peak is worth points: the added R^2 is small."""
    rng = np.random.default_rng(0)
    facts, layers = np.indices((150, 8))
    trace = rng.uniform(0, 1, facts.shape)
    score = np.where(layers < 6, 0.85, 0.05) + 0.09 * (trace - 0.5) + rng.normal(0, 0.012, facts.shape)
    trace[:, 6:] *= 0.3  # so that it peaks at a layer that can be edited
    frame = pd.DataFrame({"fact_id": facts.ravel(), "layer": layers.ravel(), "trace": trace.ravel()})
    frame = frame.assign(rewrite=score.ravel(), problem="error_injection", method="rome", window=1, status="done")
    (numbers,) = statistics(frame, draws=100).to_dict("records")
    assert numbers["r2_layer"] > 0.94
    assert numbers["added_high"] < 0.05
    assert numbers["partial"] > 0.6
    (found,) = localization_informs_editing(frame, draws=100).to_dict("records")
    assert [found[name] for name in QUESTIONS] == ["yes", "yes", "yes"]
    assert found["answer"] == "yes"


def test_a_notebook_shows_each_sentence_in_full_and_a_part_of_the_table_as_pandas_does():
    table = verdicts(pd.DataFrame([row(), row(method="<b>")]))
    html = table._repr_html_()
    for sentence in table["verdict"]:
        assert escape(sentence) in html
    assert "<b>" not in html
    assert "where to edit" in html
    assert "dataframe" in table[["problem", "answer"]]._repr_html_()
