"""The figures show the numbers of their frames: bars, lines, points, tokens, and why some cannot be drawn."""

import warnings
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from synthetic import edit_rows, trace_rows

from loc_edit.analysis.comparisons import drawing_of, further_scores, write_comparisons
from loc_edit.analysis.figures.editing import scatter, scores_by_layer
from loc_edit.analysis.figures.explained import r2_bars
from loc_edit.analysis.figures.localization import fact_heatmap, peak_layers
from loc_edit.analysis.figures.paper import FIGURES, draw_all
from loc_edit.analysis.regression.ols import fit, fits
from loc_edit.analysis.tables.rows import EffectDefinition, StudyRows, by_layer, cell_effects, join
from loc_edit.analysis.tables.summaries import argmax_histogram, fit_points, mean_scores
from loc_edit.views.style import save


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def traces():
    return trace_rows(n_facts=10, n_layers=5, windows=(1, 5))


@pytest.fixture(scope="module")
def edits(traces):
    return edit_rows(traces)


def test_save_writes_the_drawn_numbers_and_the_same_bytes_each_time(tmp_path, traces):
    data = argmax_histogram(by_layer(traces, EffectDefinition(5))).assign(window=5)
    first = save(peak_layers(data), data, tmp_path / "a", "peaks")
    second = save(peak_layers(data), data, tmp_path / "b", "peaks")
    assert [path.name for path in first] == ["peaks.pdf", "peaks.png", "peaks.csv"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    pd.testing.assert_frame_equal(pd.read_csv(first[2]), data)


def test_bars_of_the_histogram_are_the_counts(traces):
    data = pd.concat(
        [argmax_histogram(by_layer(traces, EffectDefinition(window))).assign(window=window) for window in (1, 5)]
    )
    figure = peak_layers(data)
    heights = [patch.get_height() for ax in figure.axes for patch in ax.patches]
    assert heights == data["facts"].tolist()


def test_heatmap_has_tokens_down_layers_across_and_zero_in_the_middle(traces):
    cells = cell_effects(traces, EffectDefinition(5))
    one = cells[cells["fact_id"] == 4]
    ax = fact_heatmap(one).axes[0]
    (image,) = ax.images
    expected = one.pivot(index="pos", columns="layer", values="effect")
    np.testing.assert_array_equal(image.get_array(), expected)
    assert image.norm.vmin == -image.norm.vmax
    starred = [text.get_text().endswith("*") for text in ax.get_yticklabels()]
    subject = one.drop_duplicates("pos").sort_values("pos")
    assert (
        starred == ((subject["pos"] >= subject["subject_begin"]) & (subject["pos"] < subject["subject_end"])).tolist()
    )
    assert any(starred)


def test_heatmap_shows_any_token(tmp_path, traces):
    cells = cell_effects(traces, EffectDefinition(5))
    one = cells[cells["fact_id"] == 4].copy()
    odd = ["$x^$", "\n", "\U0001f99c", "</script>", "\u05d0", " ", "\\"]
    one["token"] = [odd[pos % len(odd)] for pos in one["pos"]]
    figure = fact_heatmap(one)
    save(figure, one, tmp_path, "odd")
    assert figure.axes[0].get_yticklabels()[0].get_text().startswith("$x^$")


def test_heatmap_names_the_metric(traces):
    cells = cell_effects(traces.assign(metric="logit_difference"), EffectDefinition(5))
    figure = fact_heatmap(cells[cells["fact_id"] == 4])
    assert figure.axes[1].get_ylabel() == "Effect on logit difference"
    assert figure.get_suptitle().startswith("logit difference: clean")


def test_scatter_draws_every_point_with_the_line_through_them(traces, edits):
    frame = join(edits, traces, EffectDefinition(5)).query("method == 'rome' and problem == 'error_injection'")
    points = fit_points(frame)
    axes = scatter(points).axes
    assert len(axes) == 5
    for layer, ax in enumerate(axes):
        cell = points[points["layer"] == layer]
        np.testing.assert_array_equal(ax.collections[0].get_offsets(), cell[["trace", "rewrite"]])
        slope, intercept = np.polyfit(cell["trace"], cell["rewrite"], 1)
        (line,) = ax.lines
        np.testing.assert_allclose(line.get_ydata(), intercept + slope * np.asarray(line.get_xdata()))
        assert f"{cell['r'].iloc[0]:.2f}".replace("-", "\u2212") in ax.get_title(loc="right")


def test_r2_bars_come_in_pairs(traces, edits):
    data = fits(join(edits, traces, EffectDefinition(5)))
    ax = r2_bars(data).axes[0]
    heights = [patch.get_height() for patch in ax.patches]
    np.testing.assert_array_equal(heights, data[["r2_layer", "r2_both"]].to_numpy().ravel())


def test_scores_by_layer_draws_a_line_per_method(traces, edits):
    means = mean_scores(edits, ["rewrite", "paraphrase", "neighborhood"])
    axes = scores_by_layer(means).axes
    assert len(axes) == 6
    assert [len(ax.lines) for ax in axes] == [4] * 6
    assert {line.get_label() for line in axes[0].lines} == {"ROME", "MEMIT", "FT-1", "FT-5"}


@pytest.fixture
def quick_files(monkeypatch):
    """Draw in full, and write one small file instead of three."""

    def quick(figure, data, folder, name):
        figure.savefig(folder / f"{name}.png", dpi=40)
        return [folder / f"{name}.png"]

    monkeypatch.setattr("loc_edit.analysis.figures.paper.save", quick)


@pytest.mark.slow
def test_a_figure_that_cannot_be_drawn_says_why(tmp_path, traces, edits, quick_files):
    written, missing = draw_all(StudyRows.of(traces, edits[edits["method"] == "memit"]), tmp_path)
    assert {"figure_1", "figure_2", "figure_6"} <= set(written)
    assert missing["figure_4"] == "no finished edits of ROME, error injection"
    written, missing = draw_all(StudyRows.of(pd.DataFrame(), pd.DataFrame()), tmp_path)
    assert not written
    assert set(missing) == set(FIGURES)
    assert missing["figure_1"] == "there are no trace rows"
    assert missing["figure_7"] == "no rewrite or paraphrase or neighborhood scores in the edit rows"


@pytest.mark.parametrize(("name", "window"), [("figure_6", 5), ("figure_12", 10)])
def test_the_p_values_of_a_figure_are_corrected_over_its_bars(traces, edits, name, window):
    of_window = traces[traces["window"] == 5].assign(window=window)
    drawn = FIGURES[name].build(StudyRows.of(of_window, edits))
    smallest = drawn["p"].argmin()
    assert drawn["p_holm"][smallest] == pytest.approx(min(1.0, len(drawn) * drawn["p"][smallest]))
    assert (drawn["p_holm"] >= drawn["p"]).all()


@pytest.mark.slow
def test_one_fact_at_one_layer_is_drawn(tmp_path, quick_files):
    traces = trace_rows(n_facts=1, n_layers=1)
    edits = edit_rows(traces, problems=("error_injection",), methods=(("rome", 1),))
    written, _ = draw_all(StudyRows.of(traces, edits), tmp_path)
    assert {"figure_1", "figure_2", "figure_4", "figure_6"} <= set(written)


def test_the_users_matplotlib_settings_neither_matter_nor_change(tmp_path, traces):
    data = argmax_histogram(by_layer(traces, EffectDefinition(5))).assign(window=5)
    plain = save(peak_layers(data), data, tmp_path, "plain")
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.dpi": 50}):
        before = dict(mpl.rcParams)
        mine = save(peak_layers(data), data, tmp_path, "mine")
        assert dict(mpl.rcParams) == before
    assert plain[1].read_bytes() == mine[1].read_bytes()


@pytest.mark.slow
def test_every_figure_but_the_second_models_comes_from_a_full_run(tmp_path, quick_files):
    traces = trace_rows(n_facts=8, n_layers=3, windows=(1, 5, 10))
    written, missing = draw_all(StudyRows.of(traces, edit_rows(traces)), tmp_path)
    numbers = [1, 2, 4, *range(6, 18)]
    assert set(written) == {f"figure_{n}" for n in numbers if n != 13}
    assert missing == {"figure_13": "the rows of a second model are needed (second=)"}
    assert all(path.stat().st_size for paths in written.values() for path in paths)


def test_the_second_model_is_drawn_at_window_10(tmp_path, traces, edits, monkeypatch):
    wide = trace_rows(n_facts=6, n_layers=4, windows=(5, 10), seed=1)
    more = edit_rows(wide, problems=("error_injection",), methods=(("rome", 1),))
    only = {"figure_13": FIGURES["figure_13"]}
    monkeypatch.setattr("loc_edit.analysis.figures.paper.FIGURES", only)
    written, missing = draw_all(StudyRows.of(traces, edits), tmp_path, second=(wide, more))
    assert not missing
    drawn = pd.read_csv(written["figure_13"][2])
    assert drawn["r2_both"].item() == fit(join(more, wide, EffectDefinition(10))).r2_both


def test_magnitudes_are_drawn_against_the_absolute_effect(traces, edits):
    data = FIGURES["figure_14"].build(StudyRows.of(traces, edits))
    rome = edits.query("method == 'rome' and problem == 'error_injection'").set_index(["layer", "fact_id"])
    moved = rome["rewrite_after"].map(lambda v: v[0]) - rome["rewrite_before"].map(lambda v: v[0])
    np.testing.assert_allclose(data.set_index(["layer", "fact_id"])["magnitude"], moved.sort_index())
    cells = cell_effects(traces, EffectDefinition(5))
    last = cells[cells["pos"] == cells["subject_end"] - 1].set_index(["layer", "fact_id"])["effect"].sort_index()
    np.testing.assert_allclose(data.set_index(["layer", "fact_id"])["trace_absolute"], last)


def test_numbers_on_the_layer_axis_do_not_touch():
    for layers in (range(8), range(28), (0, 4, 5, 8, 12, 16, 20, 24, 27), range(80), (3,)):
        data = pd.DataFrame({"window": 5, "layer": list(layers), "facts": 1})
        figure = peak_layers(data)
        figure.draw_without_rendering()
        boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
        assert len(boxes) >= min(len(data), 4)
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


@pytest.mark.slow
def test_further_scores_have_a_figure_for_each_scorer_and_problem(edits, tmp_path, quick_files):
    shares = {"generation_rewrite": 0.5, "generation_paraphrase_anywhere": 0.25, "movement_to_edit": 1.0}
    scored = edits.assign(**shares, generation_entropy=-0.1, survival_int8=np.nan)
    problems = sorted(scored["problem"].unique())
    assert problems
    made = {part.figure: part for part in further_scores(scored)}
    assert sorted(made) == [
        f"scores_{scorer}_{problem}" for scorer in ("generation", "movement") for problem in problems
    ]
    data = made[f"scores_generation_{problems[0]}"].compute()
    assert set(data["problem"]) == {problems[0]}
    assert dict(zip(data["outcome"], data["mean"], strict=True)) == {name: shares[name] for name in list(shares)[:2]}
    figure = drawing_of(f"scores_generation_{problems[0]}")(data)
    assert [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes[:2]] == ["Rewrite", "Paraphrase anywhere"]
    written, missing = write_comparisons(list(made.values()), tmp_path, tmp_path)
    assert sorted(written) == sorted(made)
    assert missing == {}
    assert further_scores(edits) == []
