"""Draws the leaderboard of localizers: whether they find planted facts, and what editing at their peak is worth."""

import pandas as pd

from loc_edit.analysis.figures.localizers import localizer_label
from loc_edit.analysis.tables.rows import require
from loc_edit.views.style import BLACK, BLUE, GRAY, Figure, legend, panels, styled


def plot_leaderboard(data: pd.DataFrame) -> Figure:
    """For each localizer, the share of planted facts whose layer it finds, and the gain of editing at its peak.

    Args:
        data: the leaderboard's rows of one model, the best first.
    """
    columns = ["localizer", "planted", "planted_low", "planted_high", "chance", "gain"]
    require(data, [*columns, "gain_of_oracle", "gain_of_any_layer"], "plot_leaderboard")
    places = range(len(data))
    with styled():
        figure, (finds, gains) = panels(2, height=0.17 * len(data), around=0.9, sharey=True)
        finds.hlines(places, data["planted_low"], data["planted_high"], color=BLUE, linewidth=1.2, alpha=0.6)
        finds.scatter(data["planted"], places, color=BLUE, s=14, zorder=3)
        chance = finds.axvline(float(data["chance"].mean()), color=GRAY, linestyle="-.", label="Chance")
        finds.set_xlim(0, 1)
        finds.set_xlabel("Share of planted facts whose layer it finds")
        finds.set_yticks(places, [localizer_label(name) for name in data["localizer"]])
        finds.set_ylim(len(data) - 0.5, -0.5)
        gains.scatter(100 * data["gain"], places, color=BLUE, s=14, zorder=3)
        gains.axvline(0, color=BLUE, linewidth=1.0, zorder=1, label="One layer for all facts")
        for column, color, style, label in (
            ("gain_of_oracle", BLACK, "--", "Best layer of each fact (oracle)"),
            ("gain_of_any_layer", GRAY, ":", "Any layer"),
        ):
            gains.axvline(100 * float(data[column].mean()), color=color, linestyle=style, zorder=1, label=label)
        gains.set_xlabel("Gain of editing at its peak (percentage points)")
        for ax in (finds, gains):
            ax.tick_params(axis="y", length=0)
            ax.grid(axis="y", color=GRAY, alpha=0.25, linewidth=0.6)
        legend(figure, [finds, gains], [chance, *gains.get_legend_handles_labels()[0][-3:]])
    return figure
