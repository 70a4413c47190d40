"""Figures of localisers side by side: what each adds to the layer, and what editing at its peak is worth."""

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from loc_edit.analysis.tables.rows import require
from loc_edit.names import LOCALIZERS, TRACING, method_label, problem_label
from loc_edit.views.style import BLACK, BLUE, GRAY, ORANGE, styled

COLORS = "Blues"
CERTAIN = 0.05
"""A permutation p, corrected over the matrix, below which a cell is starred."""
LEAST_TOP = 0.05
"""The colours reach at least this far, so that a matrix of nothing looks like nothing."""


def localizer_matrix(data: pd.DataFrame) -> Figure:
    """The added R^2 of each localiser (rows) for each problem and method (columns), in points of variance.

    Args:
        data: what `regress.localizer_matrix` returns.
    """
    require(data, ["localizer", "problem", "method", "window", "added_corrected", "p_permutation_holm"], "matrix")
    names, problems, methods = _order(data), list(dict.fromkeys(data["problem"])), _methods(data)
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
        bar.set_label(f"added $R^2$ of the {data['outcome'].iloc[0]} score" if "outcome" in data else "added $R^2$")
        bar.outline.set_visible(False)
        figure.supxlabel(f"cells: percent of the variance; * p < {CERTAIN:g} (permutation, Holm)", fontsize=7)
    return figure


def localizer_choice(data: pd.DataFrame) -> Figure:
    """The score of editing at each localiser's peak less that of one layer for all; a panel per problem x method.

    Args:
        data: what `regress.localizer_choices` returns; the lines are of the facts of its first localiser.
    """
    require(data, ["localizer", "problem", "method", "window", "choice", "difference"], "localizer_choice")
    names, problems, methods = _order(data), list(dict.fromkeys(data["problem"])), _methods(data)
    with styled():
        size = 1.5 * len(methods) + 1.5, (0.16 * len(names) + 0.45) * len(problems) + 0.9
        figure = Figure(figsize=(max(3.8, size[0]), size[1]), layout="constrained")
        axes = figure.subplots(len(problems), len(methods), sharex=True, sharey=True, squeeze=False)
        for i, problem in enumerate(problems):
            for j, (method, window) in enumerate(methods):
                here = (data["problem"] == problem) & (data["method"] == method) & (data["window"] == window)
                _choices(axes[i, j], data[here], names)
                axes[i, j].set_title(f"{method_label(method, window)}, {problem_label(problem).lower()}", loc="left")
                axes[i, j].title.set_fontsize(7)
        lines = [
            Line2D([], [], color=ORANGE, marker="o", label="layer where the localiser peaks"),
            Line2D([], [], color=BLUE, label="one layer for all facts"),
            Line2D([], [], color=BLACK, linestyle="--", label="best layer of each fact (oracle)"),
            Line2D([], [], color=GRAY, linestyle=":", label="any layer"),
        ]
        figure.legend(handles=lines, loc="outside upper center", ncols=2 if len(methods) > 1 else 1)
        outcome = data["outcome"].iloc[0] if "outcome" in data else ""
        figure.supxlabel(f"mean {outcome} score, less that of one layer for all facts", fontsize=8.5)
    return figure


def localizer_label(name: str) -> str:
    """`severed_mlp` -> "Severed MLP"."""
    words = {"mlp": "MLP", "attn": "attention", "direct": "direct logit attribution", "random": "random (control)"}
    if name == TRACING:
        return "Causal Tracing"
    text = " ".join(words.get(word, word) for word in name.split("_"))
    return text[:1].upper() + text[1:]


def _choices(ax: Axes, rows: pd.DataFrame, names: list[str]) -> None:
    """One problem and method: the peaks' differences, and the other choices as lines."""
    peaks = rows[rows["choice"] == "peak"]
    places = [names.index(name) for name in peaks["localizer"]]
    for choice, style in {"oracle": (BLACK, "--"), "any layer": (GRAY, ":"), "one layer": (BLUE, "-")}.items():
        found = rows.loc[rows["choice"] == choice, "difference"]
        if len(found):
            ax.axvline(found.iloc[0], color=style[0], linestyle=style[1], linewidth=1.0, zorder=1)
    if {"difference_low", "difference_high"} <= set(peaks):
        ax.hlines(places, peaks["difference_low"], peaks["difference_high"], color=ORANGE, linewidth=1.4, alpha=0.7)
    ax.scatter(peaks["difference"], places, color=ORANGE, s=14, zorder=3)
    ax.set_yticks(range(len(names)), [localizer_label(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0, labelsize=6.5)
    ax.tick_params(axis="x", labelsize=6.5)
    ax.grid(axis="y", color=GRAY, alpha=0.25, linewidth=0.6)


def _write(ax: Axes, row: int, column: int, added: float, p: float, scale: Normalize) -> None:
    """A cell's number, dark on light or light on dark."""
    if np.isnan(added):
        ax.text(column, row, "?", ha="center", va="center", fontsize=6.5, color=GRAY)
        return
    r, g, b, _ = colormaps[COLORS](scale(added))
    dark = 0.299 * r + 0.587 * g + 0.114 * b < 0.55
    text = ("0" if added == 0 else f"{100 * added:.1f}") + ("*" if p < CERTAIN else "")
    ax.text(column, row, text, ha="center", va="center", fontsize=6.5, color="white" if dark else "black")


def _cells(data: pd.DataFrame, column: str, names: list[str], places: list[tuple[str, str, int]]) -> np.ndarray:
    """A column of the matrix as localiser x place; NaN where there is no row."""
    wide = data.pivot(index="localizer", columns=["problem", "method", "window"], values=column)
    return wide.reindex(index=names, columns=pd.MultiIndex.from_tuples(places)).to_numpy(dtype=float)


def _order(data: pd.DataFrame) -> list[str]:
    """The localisers of the frame: those of the package in its order, then others."""
    found = list(dict.fromkeys(data["localizer"]))
    return [name for name in LOCALIZERS if name in found] + [name for name in found if name not in LOCALIZERS]


def _methods(data: pd.DataFrame) -> list[tuple[str, int]]:
    return list(dict.fromkeys(zip(data["method"], data["window"].astype(int), strict=True)))
