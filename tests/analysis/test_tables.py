"""Effects by hand, joined rows, summaries, and the paper's tables in three file formats."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from synthetic import edit_rows, regression_rows, trace_rows

from loc_edit.analysis.regression.ols import fits
from loc_edit.analysis.regression.paper import write_tables
from loc_edit.analysis.tables.paper import beside_paper, paper_numbers, with_paper_layers, write_table
from loc_edit.analysis.tables.rows import EffectDefinition, RowsMissing, StudyRows, by_layer, cell_effects, join
from loc_edit.analysis.tables.summaries import (
    argmax_histogram,
    concentrated_facts,
    control_scores,
    layer_correlations,
    magnitudes,
    mean_effects,
    mean_scores,
)
from loc_edit.names import OWN_SCORES

PAPER_TABLES = Path(__file__).parents[2] / ".." / "shared" / "data" / "paper_tables.csv"


def one_fact(**changes):
    """Two layers x three positions, subject at position 1: every number can be worked out by hand."""
    rows = pd.DataFrame(
        {
            "fact_id": 7,
            "layer": [0, 0, 0, 1, 1, 1],
            "pos": [0, 1, 2, 0, 1, 2],
            "window": 5,
            "site": "mlp_out",
            "p_restored": [0.2, 0.6, 0.1, 0.2, 0.15, 0.05],
            "p_clean": 1.0,
            "p_corrupted": 0.2,
            "subject_begin": 1,
            "subject_end": 2,
        }
    )
    return rows.assign(**changes)


def test_effect_and_fraction_by_hand():
    cells = cell_effects(one_fact(), EffectDefinition(5))
    np.testing.assert_allclose(cells["effect"], [0, 0.4, -0.1, 0, -0.05, -0.15], atol=1e-12)
    np.testing.assert_allclose(cells["fraction"], [0, 0.5, -0.125, 0, -0.0625, -0.1875], atol=1e-12)


def test_denominator_max_uses_the_best_restored_run():
    rows = one_fact(p_clean=0.4)
    np.testing.assert_allclose(cell_effects(rows, EffectDefinition(5))["fraction"].max(), 2.0)
    np.testing.assert_allclose(cell_effects(rows, EffectDefinition(5, denominator="max"))["fraction"].max(), 1.0)


def test_the_best_restored_run_is_one_for_all_layers_of_a_fact():
    rows = pd.concat([one_fact(p_clean=0.4), one_fact(fact_id=8, p_clean=0.3)])
    cells = cell_effects(rows, EffectDefinition(5, denominator="max"))
    expected = (rows["p_restored"] - 0.2) / (0.6 - 0.2)  # of layer 0, also for layer 1, whose best is .2
    np.testing.assert_allclose(cells["fraction"], expected, atol=1e-12)


def test_a_layer_does_not_count_what_lies_before_the_subject():
    rows = one_fact(p_restored=[0.9, 0.6, 0.1, 0.8, 0.15, 0.3])
    layers = by_layer(rows)
    np.testing.assert_allclose(layers["trace"], [0.5, 0.125])
    np.testing.assert_allclose(layers["trace_absolute"], [0.4, 0.1], atol=1e-12)


def test_what_is_known_of_a_fact_comes_along():
    traces = trace_rows(n_facts=5)
    joined = join(edit_rows(traces).assign(prompt_length=0), traces)
    for fact, rows in joined.groupby("fact_id"):
        assert set(rows["relation"]) == {f"relation {fact % 3}"}
        assert set(rows["prompt_length"]) == {traces.loc[traces["fact_id"] == fact, "pos"].max() + 1}
    assert "relation" not in by_layer(traces.drop(columns="relation"))


def test_regressor_max_is_floored_and_ignores_the_prefix():
    layers = by_layer(one_fact())
    np.testing.assert_allclose(layers["trace"], [0.5, 0.0])
    np.testing.assert_allclose(layers["trace_absolute"], [0.4, 0.0], atol=1e-12)


def test_last_subject_is_not_floored():
    layers = by_layer(one_fact(), EffectDefinition(regressor="last_subject"))
    np.testing.assert_allclose(layers["trace"], [0.5, -0.0625])


def test_degenerate_facts_become_nan_and_are_counted(caplog):
    rows = pd.concat([one_fact(), one_fact(fact_id=8, p_clean=0.2 + 5e-7)])
    cells = cell_effects(rows, EffectDefinition(5))
    assert cells["degenerate"].sum() == 6
    assert cells.loc[cells["fact_id"] == 8, "fraction"].isna().all()
    assert cells.attrs["n_degenerate"] == 1
    assert "1 facts have no tracing fraction" in caplog.text
    layers = by_layer(rows)
    assert layers["trace"].isna().sum() == 2
    assert layers["trace_absolute"].notna().all()


def test_the_window_is_the_only_one_or_5_or_must_be_given(caplog):
    traces = trace_rows(windows=(1, 5))
    assert set(cell_effects(traces)["window"]) == {5}
    assert "taking window 5" in caplog.text
    assert set(cell_effects(traces[traces["window"] == 1])["window"]) == {1}
    with pytest.raises(RowsMissing, match=r"window 3 .*there are \[1, 5\]"):
        cell_effects(traces, EffectDefinition(3))
    with pytest.raises(RowsMissing, match="say which one"):
        cell_effects(traces.assign(window=traces["window"] + 1))
    with pytest.raises(RowsMissing, match="no traces at site 'attn_out'"):
        cell_effects(traces, EffectDefinition(5, "attn_out"))


def test_traces_of_several_metrics_are_not_mixed():
    rows = pd.concat([one_fact(metric="probability"), one_fact(metric="log_probability")])
    with pytest.raises(ValueError, match=r"several metrics \(log_probability, probability\): keep one"):
        cell_effects(rows)


def test_join_gives_each_edit_the_effect_of_its_fact_at_its_layer():
    traces = trace_rows(n_facts=5)
    edits = edit_rows(traces, layers=(1, 3))
    joined = join(edits, traces)
    assert not (joined["method"] == "none").any()
    assert len(joined) == (edits["method"] != "none").sum()
    effects = by_layer(traces).set_index(["fact_id", "layer"])["trace"]
    for row in joined.itertuples():
        assert row.trace == effects[row.fact_id, row.layer]


def test_join_names_edits_without_a_trace():
    traces = trace_rows(n_facts=5)
    edits = edit_rows(traces)
    less = traces[~((traces["fact_id"] == 3) & (traces["layer"] == 2))]
    with pytest.raises(RowsMissing, match=r"1 edited cells have no trace: \(fact_id 3, layer 2\)"):
        join(edits, less)
    skipped = edits.assign(
        status=np.where((edits["fact_id"] == 3) & (edits["layer"] == 2), "skipped", "done"),
    )
    assert join(skipped, less)["trace"].isna().sum() == 8


def test_join_refuses_rows_that_occur_twice():
    traces = trace_rows(n_facts=3)
    edits = edit_rows(traces)
    with pytest.raises(ValueError, match=r"edit rows: 1 rows occur twice: \(problem error_injection, method finetune"):
        join(pd.concat([edits, edits.head(1)]), traces)
    with pytest.raises(ValueError, match="trace rows: 1 rows occur twice"):
        join(edits, pd.concat([traces, traces.head(1)]))


def test_join_names_missing_rows_and_columns():
    traces = trace_rows(n_facts=3)
    with pytest.raises(ValueError, match="edit rows: no column rewrite"):
        join(edit_rows(traces).drop(columns="rewrite"), traces)
    with pytest.raises(RowsMissing, match="no edit rows"):
        join(edit_rows(traces).query("method == 'none'"), traces)
    with pytest.raises(ValueError, match="trace rows: no column p_clean"):
        cell_effects(traces.drop(columns="p_clean"))
    with pytest.raises((ValueError, TypeError), match="denominator"):
        cell_effects(traces, EffectDefinition(denominator="noised"))


def test_layer_correlations_are_pearsons_with_fishers_interval():
    frame = regression_rows(n_facts=40)
    frame.loc[[0, 4], "rewrite"] = np.nan  # two facts at layer 0
    table = layer_correlations(frame).set_index("layer")
    cell = frame[(frame["layer"] == 0)].dropna()
    r = np.corrcoef(cell["trace"], cell["rewrite"])[0, 1]
    half = 1.959963984540054 / np.sqrt(len(cell) - 3)
    assert table.loc[0, "n"] == 38
    assert table.loc[0, "n_dropped"] == 2
    np.testing.assert_allclose(table.loc[0, "r"], r)
    np.testing.assert_allclose(
        table.loc[0, ["low", "high"]].astype(float),
        np.tanh(np.arctanh(r) + half * np.array([-1, 1])),
        rtol=1e-6,
    )
    np.testing.assert_allclose(table.loc[0, "p"], scipy.stats.pearsonr(cell["trace"], cell["rewrite"]).pvalue)
    assert (table["reason"] == "").all()


def test_layer_correlations_give_a_reason_where_undefined():
    frame = regression_rows(n_facts=10)
    frame.loc[frame["layer"] == 2, "rewrite"] = 1.0
    frame.loc[frame["layer"] == 4, "trace"] = 0.0
    frame.loc[(frame["layer"] == 6) & (frame["fact_id"] > 1), "trace"] = np.nan
    table = layer_correlations(frame).set_index("layer")
    assert table["r"].isna().tolist() == [False, True, True, True]
    assert table["reason"].tolist() == [
        "",
        "rewrite is constant",
        "trace is constant",
        "fewer than three rows",
    ]


def test_mean_scores_by_hand():
    frame = regression_rows(n_facts=3, layers=(0, 1))
    frame["rewrite"] = [0.0, 1.0, 0.5, np.nan, 1.0, 1.0]
    means = mean_scores(frame, ["rewrite"]).set_index("layer")
    np.testing.assert_allclose(means["mean"], [0.5, 1.0])
    assert means["n"].tolist() == [3, 2]
    assert means["n_dropped"].tolist() == [0, 1]
    np.testing.assert_allclose(means.loc[0, "high"] - 0.5, 4.302653 * 0.5 / np.sqrt(3), rtol=1e-6)


def test_argmax_histogram_counts_facts():
    layers = pd.DataFrame(
        {
            "fact_id": [1, 1, 2, 2, 3, 3, 4, 4],
            "layer": [0, 1] * 4,
            "trace": [0.1, 0.3, 0.2, 0.4, 0, 0, np.nan, np.nan],
        }
    )
    assert argmax_histogram(layers)["facts"].tolist() == [0, 2]
    assert argmax_histogram(layers)["share"].tolist() == [0, 1]


def test_layers_in_paper_tables_count_from_one():
    table = with_paper_layers(layer_correlations(regression_rows()))
    assert table["Layer (from 1)"].tolist() == [1, 3, 5, 7]


def test_tables_are_written_in_three_forms(tmp_path):
    table = pd.DataFrame({"Problem": ["a|b & c"], "R^2": [0.123456789], "p": [3.2e-12], "n": [80], "F": [np.nan]})
    paths = write_table(table, tmp_path / "tables", "table_1")
    assert [path.name for path in paths] == ["table_1.csv", "table_1.tex", "table_1.md"]
    assert pd.read_csv(paths[0])["R^2"].item() == 0.123456789
    assert r"a|b \& c" in paths[1].read_text()
    assert paths[2].read_text().splitlines()[2] == r"| a\|b & c | 0.123 | 3e-12 | 80 | - |"


def test_concentrated_facts_by_hand():
    profiles = {
        1: [0.5, 0.25, 0.24, 0, 0, 0],
        2: [1, 0.6, 0.6, 0.6, 0.6, 0],
        3: [1, 0.5, 0.5, 0.5, 0.49, 0],
        4: [0] * 6,
    }
    layers = pd.DataFrame(
        [(fact, layer, value) for fact, row in profiles.items() for layer, value in enumerate(row)],
        columns=["fact_id", "layer", "trace"],
    )
    assert concentrated_facts(layers).tolist() == [1, 3]


def test_mean_effects_are_over_all_cells():
    means = mean_effects(pd.concat([one_fact(), one_fact(window=1, p_restored=0.3)]))
    assert means[["window", "layer", "n"]].to_numpy().tolist() == [[1, 0, 3], [1, 1, 3], [5, 0, 3], [5, 1, 3]]
    np.testing.assert_allclose(means["effect"], [0.1, 0.1, 0.1, -0.2 / 3])


def test_magnitudes_point_in_the_direction_of_the_objective():
    edits = pd.DataFrame(
        {
            "problem": ["error_injection", "fact_erasure", "error_injection", "hers"],
            "objective": ["raise", "lower", "raise", "lower"],
            "rewrite_before": [[0.1], np.array([0.9]), None, [0.5]],
            "rewrite_after": [[0.7], np.array([0.2]), None, [0.1]],
        }
    )
    np.testing.assert_allclose(magnitudes(edits), [0.6, 0.7, np.nan, 0.4])
    np.testing.assert_allclose(magnitudes(edits.drop(columns="objective")), [0.6, 0.7, np.nan, -0.4])  # old rows
    with pytest.raises(RowsMissing, match="no raw probabilities"):
        magnitudes(edits[["problem"]])


def test_our_numbers_stand_beside_the_studys():
    fitted = fits(regression_rows(r2_layer=0.8, r2_added=0.05))
    row = beside_paper(fitted).iloc[0]
    assert (row["r2_layer"].round(6), row["r2_layer_paper"], row["r2_both_paper"]) == (0.8, 0.947, 0.948)
    with pytest.raises(RowsMissing, match="none of these fits"):
        beside_paper(fitted.assign(method="emmet"))
    assert (row["r2_added_paper"], row["p_paper"]) == (0.001, "<1e-4")


def test_the_studys_numbers_are_complete_and_add_up():
    known = paper_numbers()
    rows = known.groupby(["table", "outcome", "facts"]).size().to_dict()
    assert rows == {
        ("Table 2", "rewrite", "concentrated"): 1,
        ("Table 3", "rewrite", "all"): 20,
        ("Table 4", "paraphrase", "all"): 20,
        ("Table 5", "neighborhood", "all"): 20,
        ("Table 6", "overall", "all"): 20,
    }
    assert not known.duplicated(["problem", "method", "window", "outcome", "facts"]).any()
    np.testing.assert_allclose(known["r2_both"] - known["r2_layer"], known["r2_added"], atol=1.001e-3)
    assert known.drop(columns="p").notna().all(axis=None)
    printed = known.loc[known["facts"] == "all", "p"]  # Table 2 prints none
    assert (printed.str.removeprefix("<").astype(float) <= 1).all()


def test_the_studys_numbers_are_those_of_the_paper():
    if not PAPER_TABLES.is_file():
        pytest.skip("no ../shared/data beside the project: the paper's tables are not there to compare with")
    printed = pd.read_csv(PAPER_TABLES)
    key = ["table", "problem", "method", "window"]
    both = paper_numbers().merge(printed, on=key, suffixes=("", "_printed"), how="left")
    assert len(both) == len(printed) - 1  # Table 1 repeats a row of Table 3
    for name in ("r2_layer", "r2_trace", "r2_both"):
        np.testing.assert_array_equal(both[name], both[f"{name}_printed"])
    of_all = both[both["facts"] == "all"]
    np.testing.assert_array_equal(of_all["r2_added"], of_all["diff"])
    np.testing.assert_array_equal(of_all["p"].str.removeprefix("<").astype(float), of_all["p_value"])
    np.testing.assert_array_equal(of_all["p"].str.startswith("<"), of_all["p_relation"] == "<")


@pytest.mark.slow
def test_every_table_of_the_paper_is_written(tmp_path):
    traces = trace_rows(n_facts=8)
    edits = edit_rows(traces, methods=(("rome", 1), ("finetune", 5)), problems=("error_injection",))
    written, missing = write_tables(StudyRows.of(traces, edits), tmp_path, draws=50, compare_paper=True)
    assert not missing
    assert set(pd.read_csv(tmp_path / "statistics.csv")["outcome"]) == set(OWN_SCORES)
    assert {f"table_{n}" for n in range(1, 7)} | {"statistics", "verdict", "compare_paper"} < set(written)
    subset = concentrated_facts(by_layer(traces))
    assert 0 < len(subset) < 8
    table_2 = pd.read_csv(tmp_path / "table_2.csv")
    frame = join(edits, traces)
    np.testing.assert_allclose(table_2["Both"], fits(frame[frame["fact_id"].isin(subset)])["r2_both"])
    written, missing = write_tables(StudyRows.of(traces, edits.drop(columns="overall")), tmp_path, draws=0)
    assert missing == {"table_6": "no overall scores in the edit rows"}
    written, missing = write_tables(StudyRows.of(pd.DataFrame(), pd.DataFrame()), tmp_path)
    assert not written


def test_controls_have_means_of_their_own():
    edits = edit_rows(trace_rows(n_facts=5), layers=(1, 3), controls=True)
    some = edits[(edits["method"] == "rome") & (edits["layer"] == edits["layer"].max())]
    drawn = some.assign(method="random_layer_rome")
    found = control_scores(pd.concat([edits, drawn]), ["rewrite"])
    assert set(found["method"]) == {"none", "random_layer_rome"}
    assert set(found["layer"]) == {-1}
    assert (found.loc[found["method"] == "none", "mean"] == 0).all()
    means = found[found["method"] == "random_layer_rome"].set_index("problem")["mean"]
    for problem, rows in some.groupby("problem"):
        assert means[problem] == pytest.approx(rows["rewrite"].mean())
    assert not set(mean_scores(pd.concat([edits, drawn]))["method"]) & {"none", "random_layer_rome"}
