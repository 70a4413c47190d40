"""The answer over models: effects side by side, pooled only where there are enough models."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from scipy import stats

from loc_edit.analysis.figures.forest import plot_forest
from loc_edit.analysis.regression import pooling
from loc_edit.analysis.regression.pooling import EFFECTS, POOLED, pool
from loc_edit.analysis.run import Run


class Fake(Run):
    """A run of a model whose effects are known."""

    config = None

    def __init__(self, model, mean, half=0.1):
        self.config, self.mean, self.half = {"model": model}, mean, half

    def frame(self, window):
        return self


@pytest.fixture(autouse=True)
def known_effects(monkeypatch):
    def statistics(run, outcome, **_):
        row = {"problem": "error_injection", "method": "rome", "window": 1, "n_facts": 10}
        for effect, column in EFFECTS.items():
            row |= {column: run.mean, f"{effect}_low": run.mean - run.half, f"{effect}_high": run.mean + run.half}
        return pd.DataFrame([row])

    monkeypatch.setattr(pooling, "statistics", statistics)


def of(table, effect="gain"):
    return table[(table["effect"] == effect) & (table["model"] == POOLED)].iloc[0]


def test_few_models_are_shown_and_not_pooled():
    table = pool([Fake("a", 0.1), Fake("a", 0.2), Fake("b", 0.3)])
    assert len(table) == len(EFFECTS) * 4
    row = of(table)
    assert np.isnan(row["mean"])
    assert row["models"] == 2
    assert row["reason"] == "expected at least 5 models, got 2: too few to tell how much models differ"
    shown = table[(table["effect"] == "gain") & (table["model"] != POOLED)]
    assert shown["mean"].tolist() == [0.1, 0.2, 0.3]
    assert shown["run"].tolist() == [0, 1, 2]


def test_models_that_agree_are_averaged():
    row = of(pool([Fake(name, 0.2) for name in "abcdef"]))
    assert row["mean"] == pytest.approx(0.2)
    assert row["tau"] == 0
    assert row["n_facts"] == 60


def test_models_that_differ_are_pooled_by_hand():
    means = [0.0, 0.1, 0.2, 0.4, 0.8]
    row = of(pool([Fake(str(i), mean, half=0.02) for i, mean in enumerate(means)]))
    # With equal variances the pooled mean is the plain mean, and its error the standard error of the five means.
    error = np.std(means, ddof=1) / np.sqrt(5)
    assert row["mean"] == pytest.approx(np.mean(means), abs=1e-6)
    assert row["high"] - row["mean"] == pytest.approx(stats.t.ppf(0.975, 4) * error, rel=1e-3)
    variance = (0.02 / stats.norm.ppf(0.975)) ** 2
    assert row["tau"] == pytest.approx(np.sqrt(np.var(means, ddof=1) - variance), rel=1e-3)
    wide = stats.t.ppf(0.975, 3) * np.sqrt(row["tau"] ** 2 + error**2)
    assert row["prediction_high"] - row["mean"] == pytest.approx(wide, rel=1e-3)
    assert row["i2"] > 0.9


def test_the_runs_of_one_model_count_as_one():
    runs = [Fake("a", 0.9) for _ in range(20)] + [Fake(name, 0.1, half=0.001) for name in "bcde"]
    row = of(pool(runs))
    assert row["models"] == 5
    assert row["mean"] == pytest.approx((0.9 + 4 * 0.1) / 5, abs=0.01)


def test_correlations_are_pooled_on_fishers_scale():
    means = [0.0, 0.5, 0.6, 0.7, 0.9]
    row = of(pool([Fake(str(i), mean, half=0.001) for i, mean in enumerate(means)]), "within_r")
    assert row["mean"] == pytest.approx(np.tanh(np.arctanh(means).mean()), abs=0.02)
    assert -1 < row["prediction_low"] < row["prediction_high"] < 1


def test_the_forest_shows_every_run_and_the_mean():
    table = pool([Fake(name, 0.1 * i) for i, name in enumerate("abcde")])
    axes = plot_forest(table).axes
    assert len(axes) == len(EFFECTS)
    points = [c.get_offsets()[:, 0] for c in axes[3].collections if isinstance(c, PathCollection)]
    np.testing.assert_allclose(sorted(np.concatenate(points)), [0, 0.1, 0.2, 0.2, 0.3, 0.4], atol=1e-6)
