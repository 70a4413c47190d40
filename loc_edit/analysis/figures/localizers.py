"""Draws localizers side by side: the R^2 that each adds to the layer's, and the score of editing at its peak."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from loc_edit.analysis.tables.localized import localizers_in
from loc_edit.analysis.tables.rows import method_labels, methods_in, require
from loc_edit.names import TRACING, capitalized, method_label, problem_label, score_label
from loc_edit.views.style import (
    BLACK,
    DOUBLE,
    GRAY,
    SINGLE,
    Figure,
    legend,
    matrix,
    panels,
    series,
    styled,
)

COLUMNS = ["localizer", "problem", "method", "window", "outcome"]
CERTAIN = 0.05
"""A permutation p, corrected over the matrix, below which a cell is starred."""
LEAST_TOP = 5.0
"""The colors reach at least this far, in percent, so that a matrix without any effect looks empty."""
CELL = 0.2
"""The width in inches of a cell over which its number fits."""
OTHERS = {"oracle": "Best layer of each fact (oracle)", "any layer": "Any layer"}
"""The other choices of a layer, below the localizers."""


def plot_localizer_matrix(data: pd.DataFrame) -> Figure:
    """The added R^2 of each localizer (rows) for each problem and method (columns), in points of variance.

    Args:
        data: the rows of `localizer_matrix`.
    """
    require(data, [*COLUMNS, "added_corrected", "p_permutation_holm"], "plot_localizer_matrix")
    names, problems, methods = localizers_in(data), list(data["problem"].unique()), methods_in(data)
    top = max(LEAST_TOP, float(100 * data["added_corrected"].max()))
    width = SINGLE if len(problems) == 1 and len(methods) <= 6 else DOUBLE
    fitting = max(1, int((width - 2) / (CELL * len(methods))))  # problems side by side, as far as their numbers fit
    columns, height = min(len(problems), fitting), 0.2 * len(names) + 0.4
    with styled():
        figure, axes = panels(
            len(problems), columns=columns, width=width, height=height, around=0.8, sharex=True, sharey=True
        )
        for ax, problem in zip(axes, problems, strict=True):
            rows = data[data["problem"] == problem]
            added = 100 * _cells(rows, "added_corrected", names, methods)
            p = _cells(rows, "p_permutation_holm", names, methods)
            texts = [[_cell(*cell) for cell in zip(*row, strict=True)] for row in zip(added, p, strict=True)]
            image = matrix(ax, added, texts, top)
            ax.set_yticks(range(len(names)), [localizer_label(name) for name in names])
            ax.set_xticks(range(len(methods)), [method_label(method, window) for method, window in methods])
            ax.tick_params(axis="x", labelrotation=90)
            ax.set_title(problem_label(problem).replace(" ", "\n" if columns > 3 else " ", 1))
        bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.2 / width, aspect=3 * len(names))
        bar.set_label(f"Added R\u00b2 (% of the variance)\n* p < {CERTAIN:g} (permutation, Holm)")
        bar.outline.set_visible(False)
    return figure


def plot_localizer_choices(data: pd.DataFrame) -> Figure:
    """The score of editing at each localizer's peak minus the score of one layer; a panel per problem.

    Args:
        data: the rows of `localizer_choices`; the other choices are computed from the facts of the first localizer.
    """
    require(data, [*COLUMNS, "choice", "difference", "difference_low", "difference_high"], "plot_localizer_choices")
    names, problems = localizers_in(data), list(data["problem"].unique())
    data = data.assign(label=method_labels(data))
    with styled():
        styles = series(data["label"])
        step = max(0.07, 0.2 / len(styles))  # inches from method to method
        height = (len(names) + len(OTHERS)) * (len(styles) + 0.5) * step
        figure, axes = panels(len(problems), columns=5, height=height, around=1.1, sharex=True, sharey=True)
        for ax, problem in zip(axes, problems, strict=True):
            _draw_choices(ax, data[data["problem"] == problem], names, styles)
            ax.set_title(problem_label(problem).replace(" ", "\n" if len(problems) > 3 else " ", 1))
        handles = axes[0].get_legend_handles_labels()[0]
        legend(figure, axes, handles)
        outcome, gap = score_label(data["outcome"].iloc[0], with_range=False), "\n" if len(problems) == 1 else " "
        figure.supxlabel(f"{outcome} minus that of one layer for all facts{gap}(percentage points)")
    return figure


def localizer_label(name: str) -> str:
    """`severed_mlp` -> "Severed MLP"."""
    words = {"mlp": "MLP", "attn": "attention", "direct": "direct logit attribution", "random": "random (control)"}
    words["relp"] = "RelP"
    if name == TRACING:
        return "Causal Tracing"
    return capitalized(" ".join(words.get(word, word) for word in name.split("_")))


def _draw_choices(ax: Axes, rows: pd.DataFrame, names: list[str], styles: dict[str, dict[str, Any]]) -> None:
    """Draws one problem: each method's differences at the localizers' peaks, and under a line at other choices."""
    places = {name: place for place, name in enumerate([*names, *OTHERS])}
    others = rows[rows["choice"].isin(list(OTHERS))].drop_duplicates(["label", "choice"])
    shown = pd.concat([rows[rows["choice"] == "peak"], others.assign(localizer=others["choice"])])
    ax.axvline(0, color=BLACK, linewidth=0.6, zorder=1)
    for number, (label, style) in enumerate(styles.items()):
        dots = shown[shown["label"] == label]
        at = dots["localizer"].map(places).astype(float) + (number - (len(styles) - 1) / 2) / (len(styles) + 0.5)
        low, high = 100 * dots["difference_low"], 100 * dots["difference_high"]
        ax.hlines(at, low, high, color=style["color"], linewidth=1.0, alpha=0.7)
        ax.scatter(100 * dots["difference"], at, s=8, linewidths=0, label=label, zorder=3, **style)
    ax.set_yticks(range(len(places)), [localizer_label(name) for name in names] + list(OTHERS.values()))
    ax.set_ylim(len(places) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    for place in range(1, len(places)):
        ax.axhline(place - 0.5, color=GRAY, linewidth=0.8 if place == len(names) else 0.3, alpha=0.6)


def _cell(added: float, p: float) -> str:
    """The number of a cell in percent, starred where it is certain."""
    star = "*" if p < CERTAIN else ""
    if np.isnan(added):
        return "?"
    return ("0" if added == 0 else f"{added:.1f}" if added < 9.95 else f"{added:.0f}") + star


def _cells(rows: pd.DataFrame, column: str, names: list[str], methods: list[tuple[str, int]]) -> np.ndarray:
    """A column of one problem's rows as localizer x method; NaN where there is no row."""
    wide = rows.pivot(index="localizer", columns=["method", "window"], values=column)
    return wide.reindex(index=names, columns=pd.MultiIndex.from_tuples(methods)).to_numpy(dtype=float)
