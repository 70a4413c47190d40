"""Draws the scores of different ways to choose the edited layer."""

import pandas as pd

from loc_edit.analysis.tables.rows import methods_in
from loc_edit.names import method_label, problem_label, score_label
from loc_edit.views.style import BLACK, BLUE, GRAY, ORANGE, Figure, legend, panels, styled

MARKS = {
    "oracle": (BLACK, "D", "Best layer of each fact (oracle)"),
    "one layer": (BLUE, "s", "One layer for all facts"),
    "tracing peak": (ORANGE, "o", "Layer where tracing peaks"),
    "any layer": (GRAY, "v", "Any layer"),
}


def plot_layer_choices(data: pd.DataFrame) -> Figure:
    """The mean score of each choice with its interval, a row per method, a panel per problem.

    Args:
        data: the rows of `layer_choices`.
    """
    problems, methods = list(data["problem"].unique()), methods_in(data)
    with styled():
        figure, axes = panels(
            len(problems),
            height=0.35 + 0.34 * len(methods),
            around=0.3 if len(problems) > 4 else 0.8,
            sharex=True,
            sharey=True,
        )
        for ax, problem in zip(axes, problems, strict=True):
            rows = data[data["problem"] == problem]
            for place, (choice, (color, marker, label)) in enumerate(MARKS.items()):
                dots = rows[rows["choice"] == choice]
                pairs = zip(dots["method"], dots["window"], strict=True)
                places = [methods.index(pair) + 0.19 * (place - 1.5) for pair in pairs]  # side by side
                ax.hlines(places, dots["low"], dots["high"], color=color, linewidth=1.2, alpha=0.6)
                ax.scatter(dots["mean"], places, color=color, marker=marker, s=14, label=label, zorder=3)
            ax.set_title(problem_label(problem))
            ax.set_yticks(range(len(methods)), [method_label(method, window) for method, window in methods])
            ax.set_ylim(len(methods) - 0.5, -0.5)
            ax.set_xlim(-0.03, 1.03)
            ax.tick_params(axis="y", length=0)
            ax.grid(axis="y", color=GRAY, alpha=0.25, linewidth=0.6)
        legend(figure, axes, axes[0].get_legend_handles_labels()[0])
        figure.supxlabel(f"Mean {score_label(data['outcome'].iloc[0]).lower()}")
    return figure
