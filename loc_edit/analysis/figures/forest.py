"""Draws effect sizes over models: a forest plot."""

import pandas as pd

from loc_edit.analysis.regression.pooling import EFFECTS, POOLED
from loc_edit.analysis.tables.rows import require
from loc_edit.names import method_label, problem_label
from loc_edit.views.style import BLACK, DOUBLE, GRAY, Figure, legend, series, sheet, styled

LABELS = {
    "added": "Added R\u00b2",
    "partial": "Partial R\u00b2",
    "within_r": "Correlation\nwithin facts",
    "gain": "Gain in score of\nediting at the peak",
}


def plot_forest(data: pd.DataFrame) -> Figure:
    """Every effect size with its interval, a panel per effect and a color per model; pooled ones are black diamonds.

    Args:
        data: the rows of `pool`.
    """
    require(data, ["problem", "method", "window", "effect", "model", "run", "mean", "low", "high"], "plot_forest")
    pairs = list(dict.fromkeys(zip(data["problem"], data["method"], data["window"], strict=True)))
    known = data.dropna(subset=["mean"])
    runs = list(dict.fromkeys(zip(known["model"], known["run"], strict=True)))
    runs = sorted(runs, key=lambda run: (run[0] == POOLED, run[1]))
    styles = series(model for model, _ in runs if model != POOLED)
    step = 0.8 / max(1, len(runs))
    with styled():
        height = len(pairs) * (0.12 * len(runs) + 0.14) + 1.1
        figure = sheet(DOUBLE, height)
        axes = list(figure.subplots(1, len(EFFECTS), sharey=True, squeeze=False)[0])
        for ax, effect in zip(axes, EFFECTS, strict=True):
            ax.axvline(0, color=BLACK, linewidth=0.6)
            entries = {}
            for number, (model, run) in enumerate(runs):
                rows = data[(data["effect"] == effect) & (data["model"] == model) & (data["run"] == run)]
                rows = rows.dropna(subset=["mean"])
                keys = zip(rows["problem"], rows["method"], rows["window"], strict=True)
                places = [pairs.index(key) + (number - (len(runs) - 1) / 2) * step for key in keys]
                pooled = model == POOLED
                style = {"color": BLACK, "marker": "d"} if pooled else styles[model]
                if pooled:
                    ax.hlines(places, rows["prediction_low"], rows["prediction_high"], color=GRAY, linewidth=0.8)
                ax.hlines(places, rows["low"], rows["high"], color=style["color"], linewidth=1.2)
                label = model.capitalize() if pooled else model
                entries[model] = ax.scatter(rows["mean"], places, s=12, label=label, zorder=3, **style)
            ax.set_xlabel(LABELS[effect])
            ax.tick_params(axis="y", length=0)
        names = [f"{problem_label(problem)}, {method_label(method, int(window))}" for problem, method, window in pairs]
        axes[0].set_yticks(range(len(pairs)), names)
        axes[0].set_ylim(len(pairs) - 0.5, -0.5)
        legend(figure, axes, list(entries.values()))
    return figure
