"""Draws the leaderboard of localizers: whether they find planted facts, and what editing at their peak is worth."""

import pandas as pd

from loc_edit.analysis.figures.localizers import localizer_label
from loc_edit.analysis.tables.rows import require
from loc_edit.views.style import BLUE, GRAY, ORANGE, Figure, styled


def plot_leaderboard(data: pd.DataFrame) -> Figure:
    """For each localizer, the share of planted facts whose layer it finds, and the gain of editing at its peak.

    Args:
        data: the leaderboard's rows of one model, the best first.
    """
    columns = ["localizer", "planted", "planted_low", "planted_high", "chance", "gain"]
    require(data, [*columns, "gain_of_oracle", "gain_of_any_layer"], "plot_leaderboard")
    places = range(len(data))
    with styled():
        figure = Figure(figsize=(6.4, 0.24 * len(data) + 1.2), layout="constrained")
        finds, gains = figure.subplots(1, 2, sharey=True)
        finds.hlines(places, data["planted_low"], data["planted_high"], color=BLUE, linewidth=1.4, alpha=0.6)
        finds.scatter(data["planted"], places, color=BLUE, s=16, zorder=3)
        finds.axvline(float(data["chance"].mean()), color=GRAY, linestyle=":", label="chance")
        finds.set_xlim(0, 1)
        finds.set_xlabel("planted facts whose layer it finds")
        finds.set_yticks(places, [localizer_label(name) for name in data["localizer"]])
        finds.set_ylim(len(data) - 0.5, -0.5)
        gains.scatter(100 * data["gain"], places, color=BLUE, s=16, zorder=3)
        for column, color, label in (
            ("gain_of_oracle", ORANGE, "each fact's best layer"),
            ("gain_of_any_layer", GRAY, "a layer drawn by lot"),
        ):
            gains.axvline(100 * float(data[column].mean()), color=color, linestyle=":", label=label)
        gains.axvline(0, color="black", linewidth=0.8, label="one layer for all facts")
        gains.set_xlabel("gain of editing at its peak, points of the score")
        figure.legend(loc="outside lower center", ncols=4)
    return figure
