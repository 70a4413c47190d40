"""The paper's tables and figures and the run's provenance, as plain values for the page's template."""

import base64
import io
from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
import tomli_w
from matplotlib.figure import Figure
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from loc_edit.analysis.comparisons import Comparison, comparisons, drawing_of
from loc_edit.analysis.figures.paper import FIGURES, PaperFigure
from loc_edit.analysis.regression.paper import TABLES
from loc_edit.analysis.regression.statistics import statistics
from loc_edit.analysis.run import Run
from loc_edit.analysis.status import grouped_reasons, reason_lines
from loc_edit.analysis.tables.paper import PaperTable, make_each, rounded
from loc_edit.analysis.tables.rows import RowsMissing, StudyRows, without_controls
from loc_edit.names import capitalized, method_label, problem_label
from loc_edit.views.style import SINGLE, styled

HEAVY = 150_000
"""The size in bytes of an SVG, such as one with thousands of points, above which a figure is drawn as PNG."""

BESIDE = [
    "problem", "method", "r2_layer_adjusted", "r2_both_adjusted", "added_corrected", "added_low", "added_high",
    "partial", "partial_low", "partial_high", "within_r", "within_r_low", "within_r_high", "out_of_sample",
    "out_of_sample_low", "out_of_sample_high", "gain", "gain_low", "gain_high", "p_holm", "p_clustered_holm",
    "p_permutation_holm", "p_within_relations_holm", "slope", "slope_low", "slope_high",
]  # fmt: skip
"""The columns of `statistics` that the report shows beside the naive tests of the paper's tables."""

Section = dict[str, Any]


def table_sections(rows: StudyRows, draws: int) -> tuple[list[Section], dict[str, str]]:
    """Makes every table of the paper that the rows allow.

    Args:
        rows: the rows of a run.
        draws: resamples and permutations of the table of statistics; 0 leaves the table out.

    Returns:
        `name, label, title, columns, cells` of each table, and the reason for each missing table by label.
    """
    title = "statistics of the rewrite score that allow for dependence"
    every = TABLES | {"statistics": PaperTable(title, partial(_statistics, draws=draws))}
    made, missing = make_each(every, lambda name, table: _table(name, table.title, table.build(rows)), ValueError)
    return list(made.values()), _labeled(missing)


def _statistics(rows: StudyRows, draws: int) -> pd.DataFrame:
    if not draws:
        raise RowsMissing("the statistics were left out (no draws)")
    table = statistics(rows.joined(), draws=draws)
    methods = [method_label(m, w) for m, w in zip(table["method"], table["window"], strict=True)]
    return table.assign(problem=table["problem"].map(problem_label), method=methods)[BESIDE]


def _table(name: str, title: str, built: pd.DataFrame) -> Section:
    shown = rounded(built)
    return {
        "name": name,
        "label": label(name),
        "title": _title(title),
        "columns": [(str(column), _is_number(values)) for column, values in built.items()],
        "cells": shown.to_numpy().tolist(),
    }


def figure_sections(rows: StudyRows) -> tuple[list[Section], dict[str, str]]:
    """Draws every figure of the paper that the rows allow.

    Returns:
        `name, label, title`, the `source` (a data address) and whether it is `wide`, for each figure; and the reason
        for each missing figure by label.
    """

    def make(name: str, figure: PaperFigure) -> Section:
        return _figure(name, figure.title, figure.draw(figure.build(rows)))

    made, missing = make_each(FIGURES, make, ValueError)
    return list(made.values()), _labeled(missing)


def comparison_sections(rows: StudyRows, draws: int, run: Run) -> tuple[list[Section], list[Section], dict[str, str]]:
    """Compares layers, localizers and edits in sequence, in tables and figures; or says why it cannot."""
    tables: list[Section] = []
    figures: list[Section] = []

    def make(name: str, part: Comparison) -> None:
        data = part.compute()
        if part.table:
            tables.append(_table(part.table, part.title, data))
        if draw := drawing_of(part.figure):
            figures.append(_figure(part.figure, part.title, draw(data)))

    parts = comparisons(rows, draws, run=run, in_sequence=run.sequences)
    _, missing = make_each({part.name: part for part in parts}, make, ValueError)
    return tables, figures, _labeled(missing)


def _labeled(missing: Mapping[str, str]) -> dict[str, str]:
    return {label(name): reason for name, reason in missing.items()}


def _figure(name: str, title: str, figure: Figure) -> Section:
    wide = figure.get_figwidth() > SINGLE  # then it takes the whole width of the page
    return {"name": name, "label": label(name), "title": _title(title), "source": inline(figure), "wide": wide}


def inline(figure: Figure) -> str:
    """Returns a figure as a data address: SVG, or PNG if the SVG is heavy; the same figure gives the same text.

    An image is shown in isolation: nothing in it can run or load anything.
    """
    with styled():
        drawn = _saved(figure, "svg", metadata={"Date": None, "Creator": None})
        if len(drawn) <= HEAVY:
            return f"data:image/svg+xml;base64,{base64.b64encode(drawn).decode()}"
        drawn = _saved(figure, "png", metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(drawn).decode()}"


def _saved(figure: Figure, ending: str, **options: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format=ending, **options)
    return out.getvalue()


def provenance(config: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved configuration as lines and as TOML, and the versions and the model's fingerprint."""
    return {
        "made_by": [(name, str(value)) for name, value in origin.items()],
        "config": [(name, _shown(value)) for name, value in config.items() if not isinstance(value, Mapping)],
        "toml": tomli_w.dumps(dict(config)),
    }


def reasons(rows: StudyRows) -> list[str]:
    """The reasons why edits were skipped or failed, one line per problem and status."""
    edits = without_controls(rows.edits)
    return reason_lines(grouped_reasons(edits)) if len(edits) else []


def label(name: str) -> str:
    """`figure_10` -> "Figure 10"."""
    return name.replace("_", " ").capitalize()


def _title(title: str) -> str:
    return capitalized(title.replace("R^2", "R\u00b2"))


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _is_number(column: Any) -> bool:
    return is_numeric_dtype(column) and not is_bool_dtype(column)
