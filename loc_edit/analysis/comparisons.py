"""Compares ways to choose the layer, and localizers, in tables and figures: what goes beyond the paper's own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from loc_edit.analysis.figures.choices import plot_layer_choices
from loc_edit.analysis.figures.editing import scores_by_layer
from loc_edit.analysis.figures.localizers import plot_localizer_choices, plot_localizer_matrix
from loc_edit.analysis.figures.planted import plot_planted_accuracy, plot_planted_edits
from loc_edit.analysis.figures.sequences import plot_sequences
from loc_edit.analysis.regression.choices import layer_choices
from loc_edit.analysis.regression.localizers import localizer_choices, localizer_matrix
from loc_edit.analysis.regression.planted import Planted, planted_accuracy, planted_edits, planted_gain, planted_in
from loc_edit.analysis.run import Run
from loc_edit.analysis.tables.paper import make_each, write_table
from loc_edit.analysis.tables.rows import RowsMissing, StudyRows, without_controls
from loc_edit.analysis.tables.sequences import sequences
from loc_edit.analysis.tables.summaries import mean_scores
from loc_edit.names import SCORES, scores_of
from loc_edit.views.style import save


@dataclass(frozen=True)
class Comparison:
    """A comparison of layers or localizers: a table, and the figure of it.

    Attributes:
        title: what it shows.
        table: the table's name; empty if the figure's numbers are enough.
        compute: the rows of both; raises `RowsMissing`.
        figure: the figure's name in `DRAWINGS`, if there is one.
    """

    title: str
    table: str
    compute: Callable[[], pd.DataFrame]
    figure: str = ""

    @property
    def name(self) -> str:
        """The figure's name, or without one the table's."""
        return self.figure or self.table


DRAWINGS: dict[str, Callable[[pd.DataFrame], Figure]] = {
    "layer_choice": plot_layer_choices,
    "localizer_matrix": plot_localizer_matrix,
    "localizer_choice": plot_localizer_choices,
    "planted_accuracy": plot_planted_accuracy,
    "planted_edits": plot_planted_edits,
    "sequences": plot_sequences,
    "scores": scores_by_layer,
}
"""What draws each figure of a comparison; more of a name can follow, as in `scores_generation`."""


def drawing_of(
    figure: str, drawings: Mapping[str, Callable[[pd.DataFrame], Figure]] = DRAWINGS
) -> Callable[[pd.DataFrame], Figure] | None:
    """What draws the figure of that name; `None` if there is nothing."""
    return drawings.get(figure) or drawings.get(figure.partition("_")[0])


def comparisons(
    rows: StudyRows,
    draws: int = 2000,
    seed: int = 0,
    run: Run | None = None,
    in_sequence: pd.DataFrame | None = None,
) -> list[Comparison]:
    """What each way to choose the layer is worth; and of each localizer, what it adds to the layer, and its peak.

    Args:
        rows: of a run.
        draws: resamples and permutations.
        seed: of the resampling.
        run: if its model has planted facts: whether localizers find the layers that learned them, and whether edits
            work there.
        in_sequence: rows of edits in sequence, if there are any: what many edits leave of one model.
    """

    def matrix() -> pd.DataFrame:
        frames = rows.joined_by_localizer()
        if not draws:
            raise RowsMissing("the comparison of localizers was left out (no draws)")
        return localizer_matrix(frames, draws=draws, seed=seed)

    def peaks() -> pd.DataFrame:
        return localizer_choices(rows.joined_by_localizer(), draws=draws, seed=seed)

    def choices() -> pd.DataFrame:
        return layer_choices(rows.joined(), draws=draws, seed=seed)

    added = "what each localizer adds to the R^2 of the layer"
    where = "where to edit, by each localizer"
    made = [
        Comparison("where to edit", "layer_choices", choices, "layer_choice"),
        Comparison(added, "localizer_matrix", matrix, "localizer_matrix"),
        Comparison(where, "localizer_choices", peaks, "localizer_choice"),
    ]
    made += further_scores(rows.edits)
    if run and run.config.get("planted"):
        made += planted_comparisons(rows.localized, rows.edits, planted_in(run))
    if in_sequence is not None and len(in_sequence):
        made += sequence_comparisons(in_sequence)
    return made


def further_scores(edits: pd.DataFrame) -> list[Comparison]:
    """Scores beside the study's by edited layer, those between 0 and 1: a figure for each scorer and problem."""
    made = []
    for problem, rows in without_controls(edits).groupby("problem", sort=False):
        for scorer in dict.fromkeys(known.scorer for known in SCORES.values() if known.scorer):
            shares = [name for name in scores_of(scorer) if (SCORES[name].low, SCORES[name].high) == (0.0, 1.0)]
            if found := [name for name in shares if name in rows and rows[name].notna().any()]:
                name = f"scores_{scorer}_{problem}"
                made.append(Comparison(f"{scorer} by edited layer", "", partial(mean_scores, rows, found), name))
    return made


def sequence_comparisons(rows: pd.DataFrame) -> list[Comparison]:
    """What many edits leave of one model."""
    title = "many edits in one model"
    return [Comparison(title, "sequences", partial(sequences, rows), "sequences")]


def planted_comparisons(traces: pd.DataFrame, edits: pd.DataFrame, planted: Planted) -> list[Comparison]:
    """Whether localizers find the layers that learned planted facts, and whether edits work better there."""
    found, by_layer = partial(planted_accuracy, traces, planted), partial(planted_edits, edits, planted)
    title = "how often localizers find the layer that learned a fact"
    return [
        Comparison(title, "planted_accuracy", found, "planted_accuracy"),
        Comparison("edits by planted and edited layer", "planted_edits", by_layer, "planted_edits"),
        Comparison(
            "how much better edits are at the layer that learned the fact",
            "planted_gain",
            partial(planted_gain, edits, planted),
        ),
    ]


def write_comparisons(
    wanted: Sequence[Comparison], tables: Path, figures: Path
) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Write the table and the figure of each comparison.

    Args:
        wanted: what to write.
        tables: the folder of the tables.
        figures: the folder of the figures.

    Returns:
        The files by table or figure; and why one could not be made.
    """
    written: dict[str, list[Path]] = {}

    def write(name: str, comparison: Comparison) -> None:
        data = comparison.compute()
        if comparison.table:
            written[comparison.table] = write_table(data, tables, comparison.table)
        if draw := drawing_of(comparison.figure):
            drawn = save(draw(data), data, figures, comparison.figure)
            written[comparison.figure] = [*written.get(comparison.figure, []), *drawn]

    _, missing = make_each({part.name: part for part in wanted}, write)
    return written, missing
