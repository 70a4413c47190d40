"""Where to edit, by hand."""

import numpy as np
import pandas as pd
import pytest
from synthetic import edit_rows, regression_rows, trace_rows

from loc_edit.analysis.figures.choices import plot_layer_choices
from loc_edit.analysis.regression.choices import layer_choices
from loc_edit.analysis.tables.rows import RowsMissing, join
from loc_edit.views.style import save


def frame_of(trace, score, **more):
    facts, layers = np.indices(np.shape(score))
    return pd.DataFrame(
        {"fact_id": facts.ravel(), "layer": layers.ravel(), "trace": np.ravel(trace), "rewrite": np.ravel(score)}
    ).assign(problem="error_injection", method="rome", window=1, **more)


def test_each_choice_by_hand():
    score = np.array([[0.9, 0.1, 0.2], [0.8, 0.3, 0.4], [0.7, 0.6, 1.0], [0.2, 0.5, 0.3]])
    trace = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 1]])  # the last: half of each
    choices = layer_choices(frame_of(trace, score)).set_index("choice")
    assert choices.loc["tracing peak", "mean"] == pytest.approx((0.1 + 0.8 + 1.0 + 0.4) / 4)
    assert choices.loc["one layer", "mean"] == pytest.approx((0.55 + 0.8 + 0.7 + 0.2) / 4)  # first: a tie
    assert choices.loc["any layer", "mean"] == pytest.approx(score.mean())
    assert choices.loc["oracle", "mean"] == pytest.approx((0.9 + 0.8 + 1.0 + 0.5) / 4)
    assert choices.loc["tracing peak", "share_best"] == pytest.approx((0 + 1 + 1 + 0.5) / 4)
    assert choices.loc["one layer", "share_best"] == pytest.approx((0.5 + 1) / 4)
    assert choices.loc["oracle", "share_best"] == 1
    assert choices.loc["one layer", "difference"] == 0
    assert choices.loc["tracing peak", "difference"] == pytest.approx((2.3 - 2.25) / 4)
    assert (choices["low"] <= choices["mean"] + 1e-12).all()
    assert (choices["high"] >= choices["mean"] - 1e-12).all()


def test_the_one_layer_is_chosen_without_the_fact_itself():
    score = np.array([[1.0, 0.0], [0.0, 0.1], [0.0, 0.1]])  # layer 0 is best on average, but not for the others
    choices = layer_choices(frame_of(np.zeros((3, 2)), score), draws=0).set_index("choice")
    assert choices.loc["one layer", "mean"] == pytest.approx((0.0 + 0.0 + 0.0) / 3)
    assert np.isnan(choices.loc["one layer", "low"])


def test_facts_without_a_number_at_some_layer_are_left_out():
    score = np.array([[0.9, 0.1], [0.8, np.nan], [0.7, 0.6], [0.6, 0.5]])
    choices = layer_choices(frame_of(np.ones((4, 2)), score), draws=50)
    assert set(choices["n"]) == {3}
    with pytest.raises(RowsMissing, match="no fact has a rewrite score"):
        layer_choices(frame_of(np.ones((2, 2)), [[np.nan, 1.0], [1.0, np.nan]]))


def test_where_tracing_knows_the_best_layer_it_beats_one_layer():
    rng = np.random.default_rng(0)
    score = rng.uniform(0, 1, (40, 5))
    knows = layer_choices(frame_of(score, score)).set_index("choice")
    assert knows.loc["tracing peak", "mean"] == knows.loc["oracle", "mean"]
    assert knows.loc["tracing peak", "difference_low"] > 0
    blind = layer_choices(frame_of(rng.uniform(size=score.shape), score)).set_index("choice")
    assert blind.loc["tracing peak", "difference_low"] < 0.1


def test_a_family_of_methods_is_drawn_without_controls(tmp_path):
    traces = trace_rows(n_facts=8)
    frame = join(edit_rows(traces), traces)
    choices = layer_choices(frame, draws=50)
    assert len(choices) == 2 * 4 * 4
    drawn = plot_layer_choices(choices)
    titles = [ax.get_title(loc="left") for ax in drawn.axes]
    assert titles == ["Error injection", "Fact forcing"]
    assert [label.get_text() for label in drawn.axes[0].get_yticklabels()] == ["FT-1", "FT-5", "ROME", "MEMIT"]
    assert len(save(drawn, choices, tmp_path, "layer_choice")) == 3
    with pytest.raises(ValueError, match="occur twice"):
        layer_choices(pd.concat([regression_rows(), regression_rows()]))
