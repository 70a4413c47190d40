"""The paper's figures by name: the numbers of each, its drawing, and all of them at once."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from loc_edit.analysis.figures import choices, editing, explained, localization
from loc_edit.analysis.regression.choices import layer_choices
from loc_edit.analysis.regression.ols import fits
from loc_edit.analysis.tables.rows import Rows, RowsMissing, by_layer, effects
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

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PaperFigure:
    """A figure of the paper: `data` makes its numbers or raises `RowsMissing`, `draw` draws them."""

    title: str
    data: Callable[[Rows], pd.DataFrame]
    draw: Callable[[pd.DataFrame], Figure]


SCORES = ("rewrite", "paraphrase", "neighborhood")
AT_SUBJECT = "at the last subject token"
WIDE = 10  # the window of Figures 12 and 13


def _peaks(rows: Rows) -> pd.DataFrame:
    layers = by_layer(rows.traces, rows.window, rows.site)
    return argmax_histogram(layers).assign(window=rows.window)


def _peaks_of_all_windows(rows: Rows) -> pd.DataFrame:
    windows = sorted(rows.traces["window"].unique()) if len(rows.traces) else []
    if len(windows) < 2:
        raise RowsMissing(f"traces of several windows are needed; there are {[int(w) for w in windows]}")
    return pd.concat([_peaks(replace(rows, window=int(window))) for window in windows], ignore_index=True)


def _clearest_fact(rows: Rows) -> pd.DataFrame:
    """The cells of the fact with the largest effect."""
    cells = effects(rows.traces, rows.window, rows.site)
    cells = cells[~cells["degenerate"]]
    if cells.empty:
        raise RowsMissing("every traced fact is degenerate")
    fact = cells.nlargest(1, "effect")["fact_id"].iloc[0]
    return cells[cells["fact_id"] == fact].reset_index(drop=True)


def _chosen(frame: pd.DataFrame, method: str, problem: str, window: int) -> pd.DataFrame:
    here = (frame["method"] == method) & (frame["problem"] == problem) & (frame["window"] == window)
    rows = frame[here & frame["rewrite"].notna()]
    if rows.empty:
        label = method_label(method, window)
        raise RowsMissing(f"no finished edits of {label}, {problem_label(problem).lower()}")
    return rows


def _rome(frame: pd.DataFrame) -> pd.DataFrame:
    return _chosen(frame, "rome", "error_injection", 1)


def _best_layer(rows: Rows) -> pd.DataFrame:
    """ROME at the layer where its mean rewrite score is highest."""
    frame = _rome(rows.joined())
    best = frame.groupby("layer")["rewrite"].mean().idxmax()
    return fit_points(frame[frame["layer"] == best])


def _magnitudes(rows: Rows) -> pd.DataFrame:
    frame = _rome(rows.joined(regressor="last_subject"))
    frame = frame.assign(magnitude=magnitudes(frame))
    return fit_points(frame, "magnitude", "trace_absolute")


def _scores(rows: Rows, outcomes: Sequence[str]) -> pd.DataFrame:
    edits = rows.edits
    known = [name for name in outcomes if name in edits and edits[name].notna().any()]
    if len(edits) == 0 or not known:
        raise RowsMissing(f"no {' or '.join(outcomes)} scores in the edit rows")
    return pd.concat([mean_scores(edits, known), control_scores(edits, known)], ignore_index=True)


def _second_model(rows: Rows) -> pd.DataFrame:
    raise RowsMissing("the rows of a second model are needed (second=)")


FIGURES: dict[str, PaperFigure] = {
    "figure_1": PaperFigure("layer with the largest tracing effect", _peaks, localization.peak_layers),
    "figure_2": PaperFigure("tracing effects of one fact", _clearest_fact, localization.heatmap),
    "figure_4": PaperFigure("rewrite score against tracing effect, ROME's best layer", _best_layer, editing.scatter),
    "figure_6": PaperFigure(
        "variance explained by layer and tracing effect", lambda rows: fits(rows.joined()), explained.r2_bars
    ),
    "figure_7": PaperFigure("scores against edited layer", lambda rows: _scores(rows, SCORES), editing.scores_by_layer),
    "figure_8": PaperFigure(
        "essence against edited layer", lambda rows: _scores(rows, ["essence"]), editing.scores_by_layer
    ),
    "figure_9": PaperFigure(
        "overall score against edited layer", lambda rows: _scores(rows, ["overall"]), editing.scores_by_layer
    ),
    "figure_10": PaperFigure(
        "mean tracing effect for each window",
        lambda rows: mean_effects(rows.traces, rows.site),
        localization.mean_effect,
    ),
    "figure_11": PaperFigure(
        "layer with the largest tracing effect, each window", _peaks_of_all_windows, localization.peak_layers
    ),
    "figure_12": PaperFigure(
        "variance explained, tracing window 10", lambda rows: fits(rows.joined(WIDE)), explained.r2_bars
    ),
    "figure_13": PaperFigure("variance explained, second model", _second_model, explained.r2_bars),
    "figure_14": PaperFigure(
        "change in probability against absolute effect at the last subject token",
        _magnitudes,
        lambda data: editing.scatter(data, "magnitude", "trace_absolute", AT_SUBJECT),
    ),
    "figure_15": PaperFigure(
        "rewrite score against tracing effect, every layer",
        lambda rows: fit_points(_rome(rows.joined())),
        editing.scatter,
    ),
    "figure_16": PaperFigure(
        "rewrite score against the effect at the last subject token",
        lambda rows: fit_points(_rome(rows.joined(regressor="last_subject"))),
        lambda data: editing.scatter(data, where=AT_SUBJECT),
    ),
    "figure_17": PaperFigure(
        "rewrite score against tracing effect, fact forcing with FT-5",
        lambda rows: fit_points(_chosen(rows.joined(), "finetune", "fact_forcing", 5)),
        editing.scatter,
    ),
    "layer_choice": PaperFigure(
        "where to edit: what each choice of the layer is worth",
        lambda rows: layer_choices(rows.joined()),
        choices.layer_choice,
    ),
}


def draw_all(
    traces: pd.DataFrame,
    edits: pd.DataFrame,
    folder: Path | str,
    *,
    window: int | None = None,
    second: tuple[pd.DataFrame, pd.DataFrame] | None = None,
) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Draw every figure of the paper that the rows allow.

    Args:
        traces: trace rows.
        edits: edit rows.
        folder: where `<name>.pdf`, `.png` and `.csv` go.
        window: the restoration window of the main figures; by default the only one, or 5.
        second: trace rows and edit rows of a second model, for Figure 13.

    Returns:
        The paths written, by figure, and for the figures that could not be drawn, why not.
    """
    rows = Rows.of(traces, edits, window)
    wanted = dict(FIGURES)
    if second is not None:
        wanted["figure_13"] = replace(FIGURES["figure_13"], data=lambda _: fits(_wide_rows(*second)))
    written: dict[str, list[Path]] = {}
    missing: dict[str, str] = {}
    for name, figure in wanted.items():
        try:
            data = figure.data(rows)
        except RowsMissing as error:
            missing[name] = str(error)
            log.info("%s (%s) is not drawn: %s", name, figure.title, error)
            continue
        written[name] = save(figure.draw(data), data, folder, name)
    return written, missing


def _wide_rows(traces: pd.DataFrame, edits: pd.DataFrame) -> pd.DataFrame:
    """The regression's rows of the second model, at window 10 where it was traced so, as in the study."""
    has_wide = len(traces) > 0 and (traces["window"] == WIDE).any()
    return Rows.of(traces, edits, WIDE if has_wide else None).joined()
