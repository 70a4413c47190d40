"""The paper's tables and figures and the run's provenance, as plain values for the page's template."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import pandas as pd
import tomli_w
from matplotlib.figure import Figure

from loc_edit.analysis.analyze import compare_localizers
from loc_edit.analysis.figures.paper import FIGURES
from loc_edit.analysis.regression.paper import TABLES
from loc_edit.analysis.regression.statistics import statistics
from loc_edit.analysis.status import grouped_reasons, reason_lines
from loc_edit.analysis.tables.paper import rounded
from loc_edit.analysis.tables.rows import RowsMissing, StudyRows, without_controls
from loc_edit.names import method_label, problem_label
from loc_edit.views.style import styled

WIDE = 6.5
"""Inches of width from which a figure takes the whole page's."""
HEAVY = 150_000
"""A figure whose SVG has more bytes (one with thousands of points) is drawn as PNG."""


BESIDE = [
    "problem", "method", "r2_layer_adjusted", "r2_both_adjusted", "added_corrected", "added_low", "added_high",
    "p_holm", "p_clustered_holm", "p_permutation_holm", "slope", "slope_low", "slope_high", "mixed_slope", "mixed_low",
    "mixed_high", "r_fact_centered", "r_fact_centered_low", "r_fact_centered_high",
]  # fmt: skip
"""Of `regress.statistics`, what stands beside the naive tests of the paper's tables."""


def table_sections(rows: StudyRows, draws: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Every table of the paper that the rows allow (`name, title, columns, cells`), and why not the others.

    Args:
        rows: of a run.
        draws: resamples and permutations of the table of statistics; 0 leaves it out.
    """
    found: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    for name, table in TABLES.items():
        try:
            built = table.build(rows)
        except (RowsMissing, ValueError) as error:
            missing[label(name)] = str(error)
            continue
        found.append(_table(name, table.title, built))
    try:
        found += [
            _table("statistics", "statistics of the rewrite score that allow for dependence", _beside(rows, draws))
        ]
    except RowsMissing as error:
        missing[label("statistics")] = str(error)
    return found, missing


def _beside(rows: StudyRows, draws: int) -> pd.DataFrame:
    if not draws:
        raise RowsMissing("the statistics were left out (no draws)")
    found = statistics(rows.joined(), draws=draws)
    methods = [method_label(m, w) for m, w in zip(found["method"], found["window"], strict=True)]
    return found.assign(problem=found["problem"].map(problem_label), method=methods)[BESIDE]


def _table(name: str, title: str, built: pd.DataFrame) -> dict[str, Any]:
    shown = rounded(built)
    texts = [column for column in built if not _is_number(built[column])]
    return {
        "name": name,
        "label": label(name),
        "title": _sentence(title),
        "columns": [(str(column), column not in texts) for column in shown],
        "cells": shown.to_numpy().tolist(),
    }


def figure_sections(rows: StudyRows) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Every figure of the paper that the rows allow, and why not the others.

    Returns:
        `name, label, title`, the `source` (a data address) and whether it is `wide`; and reasons by label.
    """
    found: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    for name, figure in FIGURES.items():
        try:
            drawn = figure.draw(figure.build(rows))
            source = inline(drawn)
        except (RowsMissing, ValueError) as error:
            missing[label(name)] = str(error)
            continue
        about = {"name": name, "label": label(name), "title": _sentence(figure.title)}
        found.append({**about, "source": source, "wide": drawn.get_figwidth() > WIDE})
    return found, missing


def localizer_sections(
    rows: StudyRows, draws: int
) -> tuple[tuple[list[dict[str, Any]], list[dict[str, Any]]], dict[str, str]]:
    """The comparison of localisers as tables and figures, or why there is none."""
    try:
        compared = compare_localizers(rows, draws)
    except (RowsMissing, ValueError) as error:
        return ([], []), {label("localizer_matrix"): str(error)}
    made = [_table(one.table, one.title, one.data) for one in compared]
    drawn = []
    for one in compared:
        figure = one.draw(one.data)
        about = {"name": one.figure, "label": label(one.figure), "title": _sentence(one.title)}
        drawn.append({**about, "source": inline(figure), "wide": figure.get_figwidth() > WIDE})
    return (made, drawn), {}


def inline(figure: Figure) -> str:
    """A figure as a data address: SVG, or PNG where that would be heavy; the same figure gives the same text.

    An image is shown in isolation: nothing in it can run or load anything.
    """
    with styled():
        drawn = _saved(figure, "svg", metadata={"Date": None, "Creator": None})
        if len(drawn) <= HEAVY:
            return f"data:image/svg+xml;base64,{base64.b64encode(drawn).decode()}"
        drawn = _saved(figure, "png", metadata={"Software": None}, dpi=150)
    return f"data:image/png;base64,{base64.b64encode(drawn).decode()}"


def _saved(figure: Figure, ending: str, **options: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format=ending, **options)
    return out.getvalue()


def provenance(config: Mapping[str, Any], made_by: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved configuration as lines and as the TOML that it is, and the versions and the model's fingerprint."""
    scalars = [(name, _shown(value)) for name, value in config.items() if not isinstance(value, Mapping)]
    return {
        "made_by": [(name, str(value)) for name, value in made_by.items()],
        "config": scalars,
        "toml": tomli_w.dumps(dict(config)),
    }


def reasons(rows: StudyRows) -> list[str]:
    """Why edits were skipped or failed, a line per problem and status."""
    edits = without_controls(rows.edits)
    return reason_lines(grouped_reasons(edits)) if len(edits) else []


def label(name: str) -> str:
    """`figure_10` -> "Figure 10"."""
    return name.replace("_", " ").capitalize()


def _sentence(title: str) -> str:
    title = title.replace("R^2", "R\u00b2")
    return title[:1].upper() + title[1:]


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _is_number(column: Any) -> bool:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return is_numeric_dtype(column) and not is_bool_dtype(column)
