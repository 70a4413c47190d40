"""Draws how much of the scores' variance layer and tracing effect explain."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from loc_edit.analysis.tables.rows import method_labels, require
from loc_edit.names import problem_label
from loc_edit.views.style import GRAY, METHOD_COLORS, panels, styled


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
        width = max(3.4, 0.33 * len(problems) * (len(methods) + 0.8) + 0.6)
        slot = min(0.86 / len(methods), 0.3)  # the width of a pair of bars; a single pair does not fill the figure
        figure, (ax,) = panels(1, size=(width, 2.5))
        for row in data.to_dict("records"):
            offset = (methods.index(row["label"]) - (len(methods) - 1) / 2) * slot
            color = METHOD_COLORS.get(str(row["label"]), GRAY)
            _pair(ax, problems.index(row["problem"]) + offset, row, color, 0.95 * slot)
        ax.set_xticks(range(len(problems)), [problem_label(name) for name in problems])
        ax.tick_params(axis="x", length=0)
        ax.set_xlim(-0.5, len(problems) - 0.5)
        ax.set_ylim(0, 1.08)
        ax.set_yticks(np.linspace(0, 1, 6))
        ax.set_ylabel(f"$R^2$ of the {data['outcome'].iloc[0]} score")
        colors = [Patch(color=METHOD_COLORS.get(name, GRAY), label=name) for name in methods]
        shades = [
            Patch(facecolor="0.8", label="layer"),
            Patch(facecolor="0.55", edgecolor="1", hatch="////", label="layer + tracing effect"),
        ]
        n = len(colors) + len(shades)
        columns = n if width > 1.05 * n else -(-n // 2)  # one row only where it is not cut off
        figure.legend(handles=[*colors, *shades], loc="outside upper center", ncols=columns)
    return figure


def _pair(ax: Axes, place: float, row: dict[Any, Any], color: str, width: float) -> None:
    half = width / 2
    ax.bar(place - half / 2, row["r2_layer"], half, color=color, alpha=0.45, linewidth=0)
    ax.bar(place + half / 2, row["r2_both"], half, color=color, hatch="////", edgecolor="white", linewidth=0)
    top = np.nanmax([row["r2_layer"], row["r2_both"], 0.0])
    note = f"+{row['r2_added']:.3f}".replace("+0.", "+.") if pd.notna(row["r2_added"]) else "?"
    ax.text(place, top + 0.012, note, ha="center", va="bottom", fontsize=6.5)
