"""Draws edits in sequence: how the edits, the neighbors and the model fare as edits add up in one model."""

from itertools import product
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter

from loc_edit.analysis.tables.rows import method_labels, require
from loc_edit.analysis.tables.sequences import MEASURES
from loc_edit.names import capitalized, method_label, problem_label, way_label
from loc_edit.views.style import SMALLEST, Figure, legend, panels, series, styled

REWRITE, NEIGHBORHOOD, RATIO = "Rewrite (0 to 1)", "Neighborhood (0 to 1)", "Ratio (log scale)"
DRAWN = {"rewrite_last": REWRITE, "rewrite_first": REWRITE, "rewrite": REWRITE}
DRAWN |= {"neighborhood": NEIGHBORHOOD, "perplexity_ratio": RATIO, "change": RATIO}
"""The measures that are drawn, and the label of their axis."""
WAY_LINES = {"alone": "-", "kept": "--", "joint": ":"}


def plot_sequences(data: pd.DataFrame) -> Figure:
    """Each measure against the number of edits: a panel per measure and layer, a line per method and way.

    Args:
        data: the rows of `sequences`.
    """
    require(data, ["problem", "method", "window", "way", "layer", "n_edits", *DRAWN], "plot_sequences")
    places = list(data[["problem", "layer"]].drop_duplicates().itertuples(index=False, name=None))
    several_problems = data["problem"].nunique() > 1
    with styled():
        figure, axes = panels(len(places) * len(DRAWN), height=1.5, sharex=True)
        styles = series(method_labels(data))
        for number, (ax, ((problem, layer), measure)) in enumerate(zip(axes, product(places, DRAWN), strict=True)):
            rows = data[(data["problem"] == problem) & (data["layer"] == layer)]
            _draw_lines(ax, rows, measure, styles)
            if number >= len(DRAWN):
                ax.sharey(axes[number % len(DRAWN)])
            where = f"{problem_label(problem)}, layer {layer}: " if several_problems else f"Layer {layer}: "
            ax.set_title((where if len(places) > 1 else "") + capitalized(MEASURES[measure]))
            ax.set_ylabel(DRAWN[measure])
        figure.supxlabel("Edits in the model (log scale)")
        legend(figure, axes, axes[0].get_legend_handles_labels()[0])
    return figure


def _draw_lines(ax: Axes, rows: pd.DataFrame, measure: str, styles: dict[str, dict[str, Any]]) -> None:
    """A line for each method and way; scores go from 0 to 1, the rest is on a logarithmic scale."""
    for (method, window, way), line in rows.groupby(["method", "window", "way"], sort=False):
        name = method_label(str(method), int(str(window)))
        ax.plot(
            line["n_edits"],
            line[measure],
            linestyle=WAY_LINES[str(way)],
            label=way_label(str(method), int(str(window)), str(way)),
            **styles[name],
        )
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    if DRAWN[measure] == RATIO:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.5)))  # numbers where a decade is not full
        ax.tick_params(axis="y", which="minor", labelsize=SMALLEST)
    else:
        ax.set_ylim(-0.03, 1.03)
        ax.set_yticks([0, 0.5, 1])
