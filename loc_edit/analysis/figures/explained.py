"""Draws how much of the scores' variance layer and tracing effect explain."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from loc_edit.analysis.tables.rows import method_labels, require
from loc_edit.names import problem_label, score_label
from loc_edit.views.style import DOUBLE, SINGLE, SMALLEST, Figure, legend, panels, series, styled

ADDED = "R\u00b2 that the tracing effect adds"
PAIR = 0.26
"""The width in inches of a pair of bars over which its number fits."""


def r2_bars(data: pd.DataFrame) -> Figure:
    """R^2 of layer, and of layer and tracing effect, for problems x methods (Figures 6, 12 and 13).

    The number over each pair of bars is what the tracing effect adds.

    Args:
        data: `problem, method, window, outcome, r2_layer, r2_both, r2_added`, see `fits`.
    """
    require(data, ["problem", "method", "window", "outcome", "r2_layer", "r2_both", "r2_added"], "r2_bars")
    with styled():
        data = data.assign(label=method_labels(data))
        problems, methods = list(data["problem"].unique()), list(data["label"].unique())
        slots = len(problems) * (len(methods) + 0.8)
        width = SINGLE if PAIR * slots + 0.5 <= SINGLE else DOUBLE
        figure, (ax,) = panels(1, width=width, height=2.0, around=0.3)
        slot = min(1 / (len(methods) + 0.8), 0.3)  # the width of a pair; a single pair does not fill the figure
        rotation = 0 if (width - 0.5) / len(problems) * slot > 0.8 * PAIR else 90
        styles, names = series(methods), []
        for row in data.to_dict("records"):
            offset = (methods.index(row["label"]) - (len(methods) - 1) / 2) * slot
            place = problems.index(row["problem"]) + offset
            _pair(ax, place, row, styles[row["label"]]["color"], 0.92 * slot, rotation)
            names.append((place, row["label"]))
        ax.set_xticks([place for place, _ in names], [name for _, name in names], rotation=90, fontsize=SMALLEST)
        ax.tick_params(axis="x", length=0)
        depth = max(label.get_window_extent().height for label in ax.get_xticklabels()) * 72 / figure.dpi
        for place, name in enumerate(problems):  # below the methods
            at = ax.get_xaxis_transform()
            ax.annotate(problem_label(name), (place, 0), (0, -depth - 7), at, "offset points", ha="center", va="top")
        ax.set_xlim(-0.5, len(problems) - 0.5)
        ax.set_ylim(0, 1.08 if rotation == 0 else 1.16)
        ax.set_yticks(np.linspace(0, 1, 6))
        ax.set_ylabel(f"R\u00b2 of the {score_label(data['outcome'].iloc[0], with_range=False).lower()}")
        shades = [
            Patch(facecolor="0.75", label="Layer"),
            Patch(facecolor="0.5", edgecolor="white", linewidth=0, hatch="//////", label="Layer and tracing effect"),
            Line2D([], [], linestyle="", color="black", marker="$.012$", markersize=15, markeredgewidth=0, label=ADDED),
        ]
        legend(figure, [ax], shades)
    return figure


def _pair(ax: Axes, place: float, row: dict[Any, Any], color: str, width: float, rotation: int) -> None:
    half = width / 2
    ax.bar(place - half / 2, row["r2_layer"], half, color=color, alpha=0.45, linewidth=0)
    ax.bar(place + half / 2, row["r2_both"], half, color=color, hatch="//////", edgecolor="white", linewidth=0)
    top = np.nanmax([row["r2_layer"], row["r2_both"], 0.0])
    note = f"{row['r2_added']:.3f}".replace("0.", ".") if pd.notna(row["r2_added"]) else "?"
    ax.text(place, top + 0.015, note, ha="center", va="bottom", fontsize=SMALLEST, rotation=rotation)
