"""The fast part of the simulation study: intervals cover, p-values keep their level, and the script writes its page."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytestmark = pytest.mark.slow
SCRIPTS = Path(__file__).parents[2] / "scripts"
DATA_SETS = 80


@pytest.fixture(scope="module")
def simulation():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        import simulate_statistics

        yield simulate_statistics
        sys.modules.pop("simulate_statistics")


@pytest.fixture(scope="module")
def table(simulation):
    conditions = [(20, 0, "none"), (20, 0, "medium"), (40, 20, "at the margin")]
    rows = [
        {"n_facts": n, "n_relations": relations, "effect": effect}
        | simulation.measure(simulation.Condition(n, relations, effect), seed, draws=99)
        for n, relations, effect in conditions
        for seed in range(DATA_SETS)
    ]
    return simulation.summarize(pd.DataFrame(rows))


@pytest.mark.parametrize("name", ["added", "partial", "within", "within_r", "gain", "slope"])
def test_each_end_of_an_interval_misses_seldom(table, name):
    cells = table[table["statistic"] == name]
    assert len(cells) == 3
    assert cells[["below", "above"]].mean().max() <= 5  # percent; 2.5 is nominal
    assert cells[["below", "above"]].max(axis=None) <= 9


def test_without_an_effect_the_interval_reaches_0_and_does_not_say_more(table):
    cells = table[(table["effect"] == "none") & table["statistic"].isin(["added", "partial", "within"])]
    assert (cells["above"] <= 7).all()
    assert (cells["below"] == 0).all()
    assert (cells["mean"] < 0.05).all()


def test_p_values_keep_their_level_without_an_effect_and_find_one(table):
    p = table.pivot(index="effect", columns="statistic", values="p_below_05")
    honest = ["p_permutation", "p_clustered", "p_within", "p_slope"]
    assert (p.loc["none", honest] <= 13).all()  # percent, of 80 data sets
    assert (p.loc["medium", ["p_permutation", "p_clustered"]] >= 40).all()


def test_the_study_continues_and_writes_table_and_figure(simulation, tmp_path, monkeypatch):
    monkeypatch.setattr(simulation, "conditions", lambda: [simulation.Condition(10, 0, "none")])
    monkeypatch.setattr(simulation, "MANY", 2000)
    for n in ("2", "3"):
        place = ["--rows", str(tmp_path / "rows.csv"), "--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["simulate_statistics", "--data-sets", n, "--draws", "9", *place])
        simulation.main()
        rows = pd.read_csv(tmp_path / "rows.csv")
        assert rows["seed"].tolist() == list(range(int(n)))
    written = pd.read_csv(tmp_path / "simulation.csv")
    assert set(written["data_sets"]) == {3}
    assert np.isfinite(written.loc[written["statistic"] == "partial", "above"]).all()
    assert (tmp_path / "simulation.png").exists()
