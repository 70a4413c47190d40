"""Lists the paper's figures by name, with the numbers and the drawing of each, and draws all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from loc_edit.analysis.figures.editing import scatter, scores_by_layer
from loc_edit.analysis.figures.explained import r2_bars
from loc_edit.analysis.figures.localization import fact_heatmap, mean_effect, peak_layers
from loc_edit.analysis.regression.ols import fits
from loc_edit.analysis.regression.statistics import with_holm
from loc_edit.analysis.tables.paper import PaperTable, make_each
from loc_edit.analysis.tables.rows import EffectDefinition, RowsMissing, StudyRows, cell_effects
from loc_edit.analysis.tables.summaries import (
    argmax_histogram,
    control_scores,
    fit_points,
    magnitudes,
    mean_effects,
    mean_scores,
)
from loc_edit.names import method_label, problem_label
from loc_edit.views.style import save


@dataclass(frozen=True)
class PaperFigure(PaperTable):
    """A figure of the paper: `build` makes its numbers or raises `RowsMissing`, `draw` draws them."""

    draw: Callable[[pd.DataFrame], Figure]


AT_SUBJECT = "at the last subject token"
WIDE = 10  # the window of Figures 12 and 13


def _peaks(rows: StudyRows) -> pd.DataFrame:
    return argmax_histogram(rows.by_layer()).assign(window=rows.window)


def _peaks_of_all_windows(rows: StudyRows) -> pd.DataFrame:
    windows = sorted(int(window) for window in rows.traces["window"].unique()) if len(rows.traces) else []
    if len(windows) < 2:
        raise RowsMissing(f"traces of several windows are needed; there are {windows}")
    return pd.concat([_peaks(replace(rows, window=window)) for window in windows], ignore_index=True)


def _clearest_fact(rows: StudyRows) -> pd.DataFrame:
    """The cells of the fact with the largest effect."""
    cells = cell_effects(rows.traces, EffectDefinition(rows.window, rows.site))
    cells = cells[~cells["degenerate"]]
    if cells.empty:
        raise RowsMissing("every traced fact is degenerate")
    fact = cells.nlargest(1, "effect")["fact_id"].iloc[0]
    return cells[cells["fact_id"] == fact].reset_index(drop=True)


def _finished_edits(frame: pd.DataFrame, method: str, window: int, problem: str) -> pd.DataFrame:
    chosen = (frame["method"] == method) & (frame["problem"] == problem) & (frame["window"] == window)
    rows = frame[chosen & frame["rewrite"].notna()]
    if rows.empty:
        raise RowsMissing(f"no finished edits of {method_label(method, window)}, {problem_label(problem).lower()}")
    return rows


def _rome(frame: pd.DataFrame) -> pd.DataFrame:
    return _finished_edits(frame, "rome", 1, "error_injection")


def _best_layer(rows: StudyRows) -> pd.DataFrame:
    """ROME at the layer where its mean rewrite score is highest."""
    frame = _rome(rows.joined())
    best = frame.groupby("layer")["rewrite"].mean().idxmax()
    return fit_points(frame[frame["layer"] == best])


def _magnitudes(rows: StudyRows) -> pd.DataFrame:
    frame = _rome(rows.joined(regressor="last_subject"))
    return fit_points(frame.assign(magnitude=magnitudes(frame)), "magnitude", "trace_absolute")


def _scores(rows: StudyRows, outcomes: Sequence[str]) -> pd.DataFrame:
    edits = rows.edits
    scored = [name for name in outcomes if name in edits and edits[name].notna().any()]
    if not scored:
        raise RowsMissing(f"no {' or '.join(outcomes)} scores in the edit rows")
    return pd.concat([mean_scores(edits, scored), control_scores(edits, scored)], ignore_index=True)


def _second_model(rows: StudyRows) -> pd.DataFrame:
    raise RowsMissing("the rows of a second model are needed (second=)")


FIGURES: dict[str, PaperFigure] = {
    "figure_1": PaperFigure("layer with the largest tracing effect", _peaks, peak_layers),
    "figure_2": PaperFigure("tracing effects of one fact", _clearest_fact, fact_heatmap),
    "figure_4": PaperFigure("rewrite score against tracing effect, ROME's best layer", _best_layer, scatter),
    "figure_6": PaperFigure(
        "variance explained by layer and tracing effect", lambda rows: with_holm(fits(rows.joined())), r2_bars
    ),
    "figure_7": PaperFigure(
        "scores against edited layer",
        lambda rows: _scores(rows, ["rewrite", "paraphrase", "neighborhood"]),
        scores_by_layer,
    ),
    "figure_8": PaperFigure("essence against edited layer", lambda rows: _scores(rows, ["essence"]), scores_by_layer),
    "figure_9": PaperFigure(
        "overall score against edited layer", lambda rows: _scores(rows, ["overall"]), scores_by_layer
    ),
    "figure_10": PaperFigure(
        "mean tracing effect for each window", lambda rows: mean_effects(rows.traces, rows.site), mean_effect
    ),
    "figure_11": PaperFigure("layer with the largest tracing effect, each window", _peaks_of_all_windows, peak_layers),
    "figure_12": PaperFigure(
        "variance explained, tracing window 10", lambda rows: with_holm(fits(rows.joined(WIDE))), r2_bars
    ),
    "figure_13": PaperFigure("variance explained, second model", _second_model, r2_bars),
    "figure_14": PaperFigure(
        "change in probability against absolute effect at the last subject token",
        _magnitudes,
        lambda data: scatter(data, "magnitude", "trace_absolute", AT_SUBJECT),
    ),
    "figure_15": PaperFigure(
        "rewrite score against tracing effect, every layer", lambda rows: fit_points(_rome(rows.joined())), scatter
    ),
    "figure_16": PaperFigure(
        "rewrite score against the effect at the last subject token",
        lambda rows: fit_points(_rome(rows.joined(regressor="last_subject"))),
        lambda data: scatter(data, where=AT_SUBJECT),
    ),
    "figure_17": PaperFigure(
        "rewrite score against tracing effect, fact forcing with FT-5",
        lambda rows: fit_points(_finished_edits(rows.joined(), "finetune", 5, "fact_forcing")),
        scatter,
    ),
}


def draw_all(
    rows: StudyRows, folder: Path | str, *, second: tuple[pd.DataFrame, pd.DataFrame] | None = None
) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Draws every figure of the paper that the rows allow.

    Args:
        rows: of a run.
        folder: where `<name>.pdf`, `.png` and `.csv` go.
        second: trace rows and edit rows of a second model, for Figure 13.

    Returns:
        The paths written, by figure, and for figures that cannot be drawn, the reason.
    """

    def draw(name: str, figure: PaperFigure) -> list[Path]:
        data = figure.build(rows)
        return save(figure.draw(data), data, folder, name)

    figures = dict(FIGURES)
    if second is not None:
        figures["figure_13"] = replace(FIGURES["figure_13"], build=lambda _: with_holm(fits(_wide_rows(*second))))
    return make_each(figures, draw)


def _wide_rows(traces: pd.DataFrame, edits: pd.DataFrame) -> pd.DataFrame:
    """The regression's rows of the second model, at window 10 where that was traced, as in the study."""
    has_wide = len(traces) > 0 and (traces["window"] == WIDE).any()
    return StudyRows.of(traces, edits, WIDE if has_wide else None).joined()
