"""Draws edits in sequence: how the edits, the neighbors and the model fare as edits add up in one model."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from loc_edit.analysis.tables.rows import require
from loc_edit.analysis.tables.sequences import MEASURES
from loc_edit.names import method_label, problem_label, way_label
from loc_edit.views.style import GRAY, METHOD_COLORS, METHOD_MARKERS, panels, styled

DRAWN = ("rewrite_last", "rewrite_first", "rewrite", "neighborhood", "perplexity_ratio", "change")
ON_LOG_SCALE = ("perplexity_ratio", "change")
WAY_LINES = {"alone": "-", "kept": "--", "joint": ":"}


def plot_sequences(data: pd.DataFrame) -> Figure:
    """Each measure against the number of edits: a column per measure, a row per layer, a line per method and way.

    Args:
        data: the rows of `sequences`.
    """
    require(data, ["problem", "method", "window", "way", "layer", "n_edits", *DRAWN], "plot_sequences")
    places = list(data[["problem", "layer"]].drop_duplicates().itertuples(index=False, name=None))
    several_problems = data["problem"].nunique() > 1
    with styled():
        size = (1.9, 1.6)
        figure, axes = panels(len(places) * len(DRAWN), columns=len(DRAWN), size=size, sharex=True, sharey="col")
        for number, ax in enumerate(axes):
            (problem, layer), measure = places[number // len(DRAWN)], DRAWN[number % len(DRAWN)]
            rows = data[(data["problem"] == problem) & (data["layer"] == layer)]
            _draw_lines(ax, rows, measure)
            if number < len(DRAWN):
                ax.set_title(MEASURES[measure], loc="left")
            if measure == DRAWN[0]:
                where = f"{problem_label(problem)}, layer {layer}" if several_problems else f"layer {layer}"
                ax.set_ylabel(where)
        figure.supxlabel("edits in the model", fontsize=8.5)
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=min(4, len(names)))
    return figure


def _draw_lines(ax: Axes, rows: pd.DataFrame, measure: str) -> None:
    """A line for each method and way; scores go from 0 to 1, the rest is on a logarithmic scale."""
    for (method, window, way), line in rows.groupby(["method", "window", "way"], sort=False):
        name = method_label(str(method), int(str(window)))
        ax.plot(
            line["n_edits"],
            line[measure],
            color=METHOD_COLORS.get(name, GRAY),
            marker=METHOD_MARKERS.get(name, "x"),
            linestyle=WAY_LINES[str(way)],
            markersize=3,
            linewidth=1.1,
            label=way_label(str(method), int(str(window)), str(way)),
        )
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    if measure in ON_LOG_SCALE:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.5)))  # numbers where a decade is not full
        ax.tick_params(axis="y", which="minor", labelsize=6.5)
    else:
        ax.set_ylim(-0.03, 1.03)
