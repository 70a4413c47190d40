"""Draws models with planted facts: how often localizers find the layer, and edits by planted and edited layer."""

import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle

from loc_edit.analysis.figures.localizers import localizer_label
from loc_edit.analysis.tables.localized import localizers_in
from loc_edit.analysis.tables.rows import methods_in, require
from loc_edit.names import method_label, problem_label
from loc_edit.views.style import (
    GRAY,
    ORANGE,
    Figure,
    legend,
    matrix,
    panels,
    round_step,
    series,
    styled,
)

CELL = 0.19
"""The width in inches of a cell over which its number fits."""


def plot_planted_accuracy(data: pd.DataFrame) -> Figure:
    """The share of planted facts whose layer each localizer finds, by window, with intervals; a line for chance.

    Args:
        data: the rows of `planted_accuracy`.
    """
    require(data, ["localizer", "window", "group", "found", "low", "high", "chance"], "plot_planted_accuracy")
    whole = data[data["group"] == "all"]
    names, windows = localizers_in(whole), sorted(whole["window"].unique())
    with styled():
        height = max(0.17, 0.08 * len(windows)) * len(names)
        figure, (ax,) = panels(1, height=height, around=0.8)
        styles = series(f"Window {window}" for window in windows)
        for i, (window, (label, style)) in enumerate(zip(windows, styles.items(), strict=True)):
            rows = whole[whole["window"] == window]
            shift = 0.7 / len(windows) * (i - (len(windows) - 1) / 2)
            places = [names.index(name) + shift for name in rows["localizer"]]
            ax.hlines(places, rows["low"], rows["high"], color=style["color"], linewidth=1.2, alpha=0.6)
            ax.scatter(rows["found"], places, s=10, zorder=3, label=label, **style)
        ax.axvline(float(whole["chance"].mean()), color=GRAY, linestyle=":", label="Chance")
        ax.set_yticks(range(len(names)), [localizer_label(name) for name in names])
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_xlim(-0.02, 1.02)
        ax.tick_params(axis="y", length=0)
        figure.supxlabel("Share of planted facts with the peak at their layer")
        legend(figure, [ax], ax.get_legend_handles_labels()[0])
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
        height = 0.17 * len(groups) + 0.25
        figure, axes = panels(len(places), height=height, around=0.4, sharex=True, sharey=True)
        width, columns = figure.get_figwidth(), len({ax.get_position().x0 for ax in axes})
        wide_cells = (width - 1) / columns / len(layers) > CELL
        for ax, (problem, method, window) in zip(axes, places, strict=True):
            rows = data.query("problem == @problem and method == @method and window == @window")
            wide = rows.pivot(index="group", columns="layer", values="mean").reindex(index=groups, columns=layers)
            means = 100 * wide.to_numpy(dtype=float)
            texts = [[f"{x:.0f}" if wide_cells and not np.isnan(x) else "" for x in row] for row in means]
            image = matrix(ax, means, texts, 100.0)
            for group, layer in rows.loc[rows["planted"], ["group", "layer"]].to_numpy():
                corner = layers.index(layer) - 0.5, groups.index(group) - 0.5
                frame = Rectangle(corner, 1, 1, fill=False, edgecolor=ORANGE, linewidth=1.5, clip_on=False, zorder=3)
                ax.add_patch(frame)
            ax.set_title(f"{method_label(str(method), int(window))}, {problem_label(str(problem)).lower()}")
            every = round_step(len(layers) / 8)
            ax.set_xticks(range(0, len(layers), every), layers[::every])
            ax.set_yticks(range(len(groups)), groups)
        figure.supxlabel("Edited layer")
        figure.supylabel("Layer that learned the fact")
        bar = figure.colorbar(image, ax=axes, fraction=0.3 / width, pad=0.02)
        bar.set_label(f"Mean {data['outcome'].iloc[0]} score (%)")
        bar.outline.set_visible(False)
    return figure
