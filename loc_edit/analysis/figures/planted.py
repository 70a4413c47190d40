"""Draws models with planted facts: how often localizers find the layer, and edits by planted and edited layer."""

import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle

from loc_edit.analysis.figures.localizers import localizer_label
from loc_edit.analysis.tables.localized import localizers_in
from loc_edit.analysis.tables.rows import methods_in, require
from loc_edit.names import method_label, problem_label
from loc_edit.views.style import BLACK, BLUE, GRAY, ORANGE, Figure, panels, styled

COLORS = (BLUE, ORANGE, BLACK, GRAY)
DARK = 0.6
"""The mean from which a cell is too dark for black numbers."""


def plot_planted_accuracy(data: pd.DataFrame) -> Figure:
    """The share of planted facts whose layer each localizer finds, by window, with intervals; a line for chance.

    Args:
        data: the rows of `planted_accuracy`.
    """
    require(data, ["localizer", "window", "group", "found", "low", "high", "chance"], "plot_planted_accuracy")
    whole = data[data["group"] == "all"]
    names, windows = localizers_in(whole), sorted(whole["window"].unique())
    with styled():
        figure = Figure(figsize=(4.2, 0.3 * len(names) + 1.0), layout="constrained")
        ax = figure.subplots()
        for i, window in enumerate(windows):
            rows = whole[whole["window"] == window]
            shift = 0.16 * (i - (len(windows) - 1) / 2)
            places = [names.index(name) + shift for name in rows["localizer"]]
            color = COLORS[i % len(COLORS)]
            ax.hlines(places, rows["low"], rows["high"], color=color, linewidth=1.4, alpha=0.6)
            ax.scatter(rows["found"], places, color=color, s=16, zorder=3, label=f"window {window}")
        ax.axvline(float(whole["chance"].mean()), color=GRAY, linestyle=":", label="chance")
        ax.set_yticks(range(len(names)), [localizer_label(name) for name in names])
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_xlim(-0.02, 1.02)
        ax.set_xlabel("share of planted facts with the peak at their layer")
        figure.legend(loc="outside upper center", ncols=len(windows) + 1)
    return figure


def plot_planted_edits(data: pd.DataFrame) -> Figure:
    """The mean score by planted layer (rows) and edited layer (columns); a frame where they are the same.

    Args:
        data: the rows of `planted_edits`.
    """
    require(data, ["problem", "method", "window", "group", "layer", "mean", "planted"], "plot_planted_edits")
    problems = list(data["problem"].unique())
    places = [(name, *method) for name in problems for method in methods_in(data[data["problem"] == name])]
    groups = sorted(data["group"].unique(), key=lambda group: [int(layer) for layer in str(group).split("+")])
    layers = sorted(data["layer"].unique())
    with styled():
        figure, axes = panels(len(places), size=(2.2, 0.24 * len(groups) + 0.9), sharex=True, sharey=True)
        for ax, (problem, method, window) in zip(axes, places, strict=True):
            rows = data.query("problem == @problem and method == @method and window == @window")
            wide = rows.pivot(index="group", columns="layer", values="mean").reindex(index=groups, columns=layers)
            means = wide.to_numpy(dtype=float)
            image = ax.imshow(means, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
            for row, column in np.ndindex(means.shape):
                value = float(means[row, column])
                text = "" if np.isnan(value) else f"{100 * value:.0f}"
                color = "white" if value > DARK else "black"
                ax.text(column, row, text, ha="center", va="center", fontsize=6, color=color)
            for group, layer in rows.loc[rows["planted"], ["group", "layer"]].to_numpy():
                corner = layers.index(layer) - 0.5, groups.index(group) - 0.5
                ax.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=ORANGE, linewidth=1.5))
            ax.set_title(f"{method_label(str(method), int(window))}, {problem_label(str(problem)).lower()}", loc="left")
            ax.title.set_fontsize(7)
            ax.set_xticks(range(len(layers)), layers)
            ax.set_yticks(range(len(groups)), groups)
            ax.tick_params(length=0)
        outcome = data["outcome"].iloc[0]
        figure.supxlabel("edited layer", fontsize=8.5)
        figure.supylabel("layer that learned the fact", fontsize=8.5)
        figure.colorbar(image, ax=axes, shrink=0.8, label=f"mean {outcome} score (cells: in percent)")
    return figure
