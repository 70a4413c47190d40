"""Draws the scores of different ways to choose the edited layer."""

import pandas as pd
from matplotlib.figure import Figure

from loc_edit.analysis.tables.rows import methods_in
from loc_edit.names import method_label, problem_label
from loc_edit.views.style import BLACK, BLUE, GRAY, ORANGE, panels, styled

MARKS = {
    "oracle": (BLACK, "D", "best layer of each fact (oracle)"),
    "one layer": (BLUE, "s", "one layer for all facts"),
    "tracing peak": (ORANGE, "o", "layer where tracing peaks"),
    "any layer": (GRAY, "v", "any layer"),
}


def plot_layer_choices(data: pd.DataFrame) -> Figure:
    """The mean score of each choice with its interval, a row per method, a panel per problem.

    Args:
        data: the rows of `layer_choices`.
    """
    problems, methods = list(data["problem"].unique()), methods_in(data)
    with styled():
        size = 2.3, 0.75 + 0.38 * len(methods)
        figure, axes = panels(len(problems), size=size, sharex=True, sharey=True)
        for ax, problem in zip(axes, problems, strict=True):
            rows = data[data["problem"] == problem]
            for place, (choice, (color, marker, label)) in enumerate(MARKS.items()):
                dots = rows[rows["choice"] == choice]
                pairs = zip(dots["method"], dots["window"], strict=True)
                places = [methods.index(pair) + 0.17 * (place - 1.5) for pair in pairs]  # side by side
                ax.hlines(places, dots["low"], dots["high"], color=color, linewidth=1.2, alpha=0.6)
                ax.scatter(dots["mean"], places, color=color, marker=marker, s=22, label=label, zorder=3)
            ax.set_title(problem_label(problem), loc="left")
            ax.set_yticks(range(len(methods)), [method_label(method, window) for method, window in methods])
            ax.set_ylim(len(methods) - 0.5, -0.5)
            ax.set_xlim(-0.03, 1.03)
            ax.grid(axis="y", color=GRAY, alpha=0.25, linewidth=0.6)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2 if len(problems) > 1 else 1)
        figure.supxlabel(f"mean {data['outcome'].iloc[0]} score", fontsize=8.5)
    return figure
