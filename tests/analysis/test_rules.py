"""Rules that choose one layer: one that knows the scores goes all the way, and one that knows nothing goes nowhere."""

import numpy as np
import pandas as pd
import pytest

from loc_edit.analysis.regression.rules import PILOT, layer_rules, votes
from loc_edit.analysis.tables.rows import RowsMissing


def edits(n_facts=40, n_layers=4, best=2, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {"problem": "p", "method": "rome", "window": 1, "fact_id": fact, "layer": layer, "status": "done"}
        | {"rewrite": 0.5 + 0.3 * (layer == best) + rng.normal(0, 0.05)}
        for fact in range(n_facts)
        for layer in range(n_layers)
    )


def values(rows, value):
    return rows[["fact_id", "layer"]].assign(value=value)


def test_votes_say_how_sure_the_best_layer_is():
    rng = np.random.default_rng(0)
    clear = np.array([0.0, 1.0, 0.0]) + rng.normal(0, 0.1, (10, 3))
    np.testing.assert_allclose(votes(clear), [0, 1, 0])
    np.testing.assert_allclose(votes(np.ones((10, 4))), [0.25] * 4)  # ties share
    unsure = votes(rng.normal(0, 1, (10, 3)))
    assert unsure.sum() == pytest.approx(1)
    assert unsure.max() < 0.99


def test_a_rule_is_worth_what_its_layer_is_worth():
    rows = edits()
    rules = {
        "right": values(rows, (rows["layer"] == 2).astype(float)),
        "wrong": values(rows, (rows["layer"] == 0).astype(float)),
        "nothing": values(rows, 1.0),
        "by_problem": values(rows, (rows["layer"] == 2).astype(float)).assign(problem="another"),
    }
    table = layer_rules(rules, rows, facts=5, draws=50).set_index("rule")
    assert table.loc["right", "worth"] == pytest.approx(1)
    assert table.loc[PILOT, "worth"] == pytest.approx(1)
    assert table.loc["nothing", "worth"] == pytest.approx(0, abs=1e-9)
    assert table.loc["by_problem", "worth"] == pytest.approx(0, abs=1e-9)  # it says nothing of this problem
    assert table.loc["wrong", "worth"] == pytest.approx(-1 / 3, abs=0.1)  # the others' mean is (3 x .5 + .8) / 4
    assert table.loc["right", "layer"] == 2
    assert table.loc["right", "share"] == 1
    means = rows.groupby("layer")["rewrite"].mean()
    assert table.loc["right", "mean"] == pytest.approx(means[2], abs=0.01)
    assert table.loc["right", "mean"] == table.loc["right", "best"] < table.loc["right", "oracle"]


def test_a_pilot_is_judged_on_other_facts():
    rng = np.random.default_rng(0)
    noise = edits().assign(rewrite=lambda rows: rng.normal(0.5, 0.1, len(rows)))
    table = layer_rules({}, noise, facts=5, draws=200).set_index("rule")
    assert abs(table.loc[PILOT, "mean"] - table.loc[PILOT, "any"]) < 0.02
    assert table.loc[PILOT, "oracle"] > table.loc[PILOT, "mean"] + 0.05


def test_too_few_facts_are_refused():
    with pytest.raises(RowsMissing, match="expected more than 40 facts"):
        layer_rules({}, edits(), facts=40)
