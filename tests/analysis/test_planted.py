"""Grading where the truth is known: the peak of a localizer, and the diagonal of planted and edited layer."""

import numpy as np
import pandas as pd
import pytest

import loc_edit
from loc_edit.analysis.figures.leaderboard import plot_leaderboard
from loc_edit.analysis.figures.planted import plot_planted_accuracy, plot_planted_edits

LAYERS = 4
PLANTED = {fact: [fact % LAYERS] for fact in range(24)} | {24: [0, 3], 25: [0, 3]}


def traces(peak, localizer="mine", window=1):
    """One position; the effect is largest at `peak(fact)`."""
    return pd.DataFrame(
        {
            "fact_id": fact, "localizer": localizer, "layer": layer, "pos": 0, "window": window, "site": "mlp_out",
            "metric": "probability", "p_restored": 0.9 if layer in peak(fact) else 0.2, "p_clean": 1.0,
            "p_corrupted": 0.1, "subject_begin": 0, "subject_end": 1,
        }
        for fact in PLANTED
        for layer in range(LAYERS)
    )  # fmt: skip


def edits(diagonal, seed=0):
    """Scores with a mean for each layer and fact, a little noise, and `diagonal` more where the fact was learned."""
    draws = np.random.default_rng(seed)
    of_layer, of_fact = draws.uniform(0.2, 0.6, LAYERS), draws.uniform(-0.1, 0.1, len(PLANTED))
    return pd.DataFrame(
        {
            "problem": "fact_erasure", "method": "rome", "window": 1, "layer": layer, "fact_id": fact, "status": "done",
            "rewrite": of_layer[layer] + of_fact[fact] + 0.02 * draws.normal() + diagonal * (layer in PLANTED[fact]),
        }
        for fact in PLANTED
        for layer in range(LAYERS)
    )  # fmt: skip


def of_all(table):
    return table[table["group"] == "all"].set_index(["localizer", "window"])


def test_a_localizer_is_right_where_it_peaks_at_a_layer_that_learned_the_fact():
    right, wrong = traces(lambda fact: PLANTED[fact]), traces(lambda fact: [(PLANTED[fact][0] + 2) % 4], "other", 3)
    table = loc_edit.planted_accuracy(pd.concat([right, wrong]), PLANTED)
    found = of_all(table)
    assert found.loc["mine", 1]["found"] == 1
    assert found.loc["other", 3]["found"] == 0
    assert found.loc["other", 3]["distance"] == pytest.approx((24 * 2 + 2 * 1) / 26)
    assert found["n"].eq(26).all()
    assert found["chance"].iloc[0] == pytest.approx((24 / 4 + 2 / 2) / 26)
    assert set(table["group"]) == {"0", "1", "2", "3", "0+3", "all"}
    assert found.loc["mine", 1]["low"] == pytest.approx(1 / (1 + 1.96**2 / 26), abs=1e-3)  # Wilson's, at 26 of 26
    assert plot_planted_accuracy(table).axes


def test_layers_that_tie_share_the_peak_and_other_facts_do_not_count():
    flat = traces(lambda fact: range(LAYERS))
    some = {fact: layers for fact, layers in PLANTED.items() if fact < 8}
    found = of_all(loc_edit.planted_accuracy(flat, some))
    assert found["found"].iloc[0] == pytest.approx(1 / LAYERS) == found["chance"].iloc[0]
    assert found["n"].iloc[0] == 8


def test_the_gain_of_the_diagonal_is_found_and_not_made_of_layers_or_facts():
    gained = loc_edit.planted_gain(edits(0.1), PLANTED).iloc[0]
    assert gained["gain"] == pytest.approx(0.1, abs=0.02)
    assert gained["low"] < 0.1 < gained["high"]
    assert gained["p"] < 1e-4
    nothing = loc_edit.planted_gain(edits(0.0), PLANTED).iloc[0]
    assert nothing["low"] < 0 < nothing["high"]


def test_the_square_has_the_mean_of_each_group_at_each_layer():
    rows = edits(0.1)
    table = loc_edit.planted_edits(rows, PLANTED)
    cell = table.query("group == '0+3' and layer == 3").iloc[0]
    expected = rows.query("fact_id >= 24 and layer == 3")["rewrite"].mean()
    assert (cell["mean"], cell["n"], cell["planted"]) == (pytest.approx(expected), 2, True)
    assert table["planted"].sum() == LAYERS + 2
    assert plot_planted_edits(table).axes
    failed = rows.assign(status="failed")
    with pytest.raises(ValueError, match="no planted fact has a finished edit"):
        loc_edit.planted_edits(failed, PLANTED)


def test_the_leaderboard_shows_what_is_found_and_what_it_is_worth():
    rows = pd.DataFrame(
        {"localizer": name, "planted": found, "planted_low": found - 0.1, "planted_high": found + 0.1, "chance": 0.1}
        | {"gain": gain, "gain_of_oracle": 0.04, "gain_of_any_layer": -0.2}
        for name, found, gain in (("attribution", 0.8, -0.03), ("random", 0.1, -0.2))
    )
    finds, gains = plot_leaderboard(rows).axes
    assert [label.get_text() for label in finds.get_yticklabels()] == ["Attribution", "Random (control)"]
    np.testing.assert_allclose(finds.collections[1].get_offsets()[:, 0], [0.8, 0.1])
    np.testing.assert_allclose(gains.collections[0].get_offsets()[:, 0], [-3, -20])
    with pytest.raises(ValueError, match="plot_leaderboard: no column gain"):
        plot_leaderboard(rows.drop(columns="gain"))
