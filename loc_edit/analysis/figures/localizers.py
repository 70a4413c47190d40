"""Draws localizers side by side: the R^2 that each adds to the layer's, and the score of editing at its peak."""

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from loc_edit.analysis.tables.localized import localizers_in
from loc_edit.analysis.tables.rows import methods_in, require
from loc_edit.names import TRACING, method_label, problem_label
from loc_edit.views.style import BLACK, BLUE, GRAY, ORANGE, styled

COLUMNS = ["localizer", "problem", "method", "window", "outcome"]
COLORS = "Blues"
CERTAIN = 0.05
"""A permutation p, corrected over the matrix, below which a cell is starred."""
LEAST_TOP = 0.05
"""The colors reach at least this far, so that a matrix without any effect looks empty."""


def plot_localizer_matrix(data: pd.DataFrame) -> Figure:
    """The added R^2 of each localizer (rows) for each problem and method (columns), in points of variance.

    Args:
        data: the rows of `localizer_matrix`.
    """
    require(data, [*COLUMNS, "added_corrected", "p_permutation_holm"], "plot_localizer_matrix")
    names, problems, methods = localizers_in(data), list(data["problem"].unique()), methods_in(data)
    places = [(problem, *method) for problem in problems for method in methods]
    added, p = _cells(data, "added_corrected", names, places), _cells(data, "p_permutation_holm", names, places)
    with styled():
        size = 0.44 * len(places) + 1.9, 0.25 * len(names) + 1.5
        figure = Figure(figsize=(max(3.6, size[0]), size[1]), layout="constrained")
        ax = figure.subplots()
        scale = Normalize(0, max(LEAST_TOP, float(np.nanmax(added, initial=0.0))))
        image = ax.imshow(added, aspect="auto", cmap=COLORS, norm=scale, interpolation="nearest")
        for row, column in np.ndindex(added.shape):
            _write(ax, row, column, float(added[row, column]), float(p[row, column]), scale)
        ax.set_yticks(range(len(names)), [localizer_label(name) for name in names])
        ax.set_xticks(range(len(places)), [method_label(method, window) for _, method, window in places])
        ax.tick_params(axis="x", labelrotation=90 if len(methods) > 1 or len(problems) > 3 else 0)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        for i, problem in enumerate(problems):
            middle = (i + 0.5) * len(methods) - 0.5
            title = problem_label(problem).replace(" ", "\n" if len(methods) < 4 else " ", 1)
            ax.text(middle, -0.65, title, ha="center", va="bottom", fontsize=7.5)
            if i:
                ax.axvline(i * len(methods) - 0.5, color="white", linewidth=3)
        bar = figure.colorbar(image, ax=ax, pad=0.01, fraction=0.3 / figure.get_figwidth(), aspect=15)
        bar.set_label(f"added $R^2$ of the {data['outcome'].iloc[0]} score")
        bar.outline.set_visible(False)
        figure.supxlabel(f"cells: percent of the variance; * p < {CERTAIN:g} (permutation, Holm)", fontsize=7)
    return figure


def plot_localizer_choices(data: pd.DataFrame) -> Figure:
    """The score of editing at each localizer's peak minus the score of one layer; a panel per problem x method.

    Args:
        data: the rows of `localizer_choices`; the lines are computed from the facts of the first localizer.
    """
    require(data, [*COLUMNS, "choice", "difference", "difference_low", "difference_high"], "plot_localizer_choices")
    names, problems, methods = localizers_in(data), list(data["problem"].unique()), methods_in(data)
    with styled():
        size = 1.5 * len(methods) + 1.5, (0.16 * len(names) + 0.45) * len(problems) + 0.9
        figure = Figure(figsize=(max(3.8, size[0]), size[1]), layout="constrained")
        axes = figure.subplots(len(problems), len(methods), sharex=True, sharey=True, squeeze=False)
        for i, problem in enumerate(problems):
            for j, (method, window) in enumerate(methods):
                shown = (data["problem"] == problem) & (data["method"] == method) & (data["window"] == window)
                _draw_choices(axes[i, j], data[shown], names)
                axes[i, j].set_title(f"{method_label(method, window)}, {problem_label(problem).lower()}", loc="left")
                axes[i, j].title.set_fontsize(7)
        lines = [
            Line2D([], [], color=ORANGE, marker="o", label="layer where the localizer peaks"),
            Line2D([], [], color=BLUE, label="one layer for all facts"),
            Line2D([], [], color=BLACK, linestyle="--", label="best layer of each fact (oracle)"),
            Line2D([], [], color=GRAY, linestyle=":", label="any layer"),
        ]
        figure.legend(handles=lines, loc="outside upper center", ncols=2 if len(methods) > 1 else 1)
        outcome = data["outcome"].iloc[0]
        figure.supxlabel(f"mean {outcome} score minus the score of one layer for all facts", fontsize=8.5)
    return figure


def localizer_label(name: str) -> str:
    """`severed_mlp` -> "Severed MLP"."""
    words = {"mlp": "MLP", "attn": "attention", "direct": "direct logit attribution", "random": "random (control)"}
    words["relp"] = "RelP"
    if name == TRACING:
        return "Causal Tracing"
    text = " ".join(words.get(word, word) for word in name.split("_"))
    return text[:1].upper() + text[1:]


def _draw_choices(ax: Axes, rows: pd.DataFrame, names: list[str]) -> None:
    """One problem and method: the peaks' differences, and the other choices as lines."""
    peaks = rows[rows["choice"] == "peak"]
    places = [names.index(name) for name in peaks["localizer"]]
    for choice, color, style in (("oracle", BLACK, "--"), ("any layer", GRAY, ":"), ("one layer", BLUE, "-")):
        for difference in rows.loc[rows["choice"] == choice, "difference"].head(1):
            ax.axvline(difference, color=color, linestyle=style, linewidth=1.0, zorder=1)
    ax.hlines(places, peaks["difference_low"], peaks["difference_high"], color=ORANGE, linewidth=1.4, alpha=0.7)
    ax.scatter(peaks["difference"], places, color=ORANGE, s=14, zorder=3)
    ax.set_yticks(range(len(names)), [localizer_label(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0, labelsize=6.5)
    ax.tick_params(axis="x", labelsize=6.5)
    ax.grid(axis="y", color=GRAY, alpha=0.25, linewidth=0.6)


def _write(ax: Axes, row: int, column: int, added: float, p: float, scale: Normalize) -> None:
    """Writes the number of a cell, dark on light or light on dark."""
    if np.isnan(added):
        ax.text(column, row, "?", ha="center", va="center", fontsize=6.5, color=GRAY)
        return
    r, g, b, _ = colormaps[COLORS](scale(added))
    dark = 0.299 * r + 0.587 * g + 0.114 * b < 0.55
    text = ("0" if added == 0 else f"{100 * added:.1f}") + ("*" if p < CERTAIN else "")
    ax.text(column, row, text, ha="center", va="center", fontsize=6.5, color="white" if dark else "black")


def _cells(data: pd.DataFrame, column: str, names: list[str], places: list[tuple[str, str, int]]) -> np.ndarray:
    """A column of the matrix as localizer x place; NaN where there is no row."""
    wide = data.pivot(index="localizer", columns=["problem", "method", "window"], values=column)
    return wide.reindex(index=names, columns=pd.MultiIndex.from_tuples(places)).to_numpy(dtype=float)
