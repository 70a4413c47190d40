"""Draws effect sizes over models: a forest plot."""

import pandas as pd

from loc_edit.analysis.regression.pooling import EFFECTS, POOLED
from loc_edit.analysis.tables.rows import require
from loc_edit.names import method_label, problem_label
from loc_edit.views.style import BLACK, BLUE, GRAY, GREEN, ORANGE, PURPLE, RED, SKY, Figure, styled

LABELS = {
    "added": "added R\u00b2",
    "partial": "partial R\u00b2",
    "within_r": "correlation within facts",
    "gain": "gain of editing at the peak",
}
COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, GRAY)


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
    models = list(dict.fromkeys(model for model, _ in runs if model != POOLED))
    step = 0.8 / max(1, len(runs))
    with styled():
        height = len(pairs) * (0.12 * len(runs) + 0.14) + 1.1
        figure = Figure(figsize=(8.5, height), layout="constrained")
        axes = figure.subplots(1, len(EFFECTS), sharey=True, squeeze=False)[0]
        for ax, effect in zip(axes, EFFECTS, strict=True):
            ax.axvline(0, color=BLACK, linewidth=0.6)
            for number, (model, run) in enumerate(runs):
                rows = data[(data["effect"] == effect) & (data["model"] == model) & (data["run"] == run)]
                rows = rows.dropna(subset=["mean"])
                keys = zip(rows["problem"], rows["method"], rows["window"], strict=True)
                places = [pairs.index(key) + (number - (len(runs) - 1) / 2) * step for key in keys]
                pooled = model == POOLED
                color = BLACK if pooled else COLORS[models.index(model) % len(COLORS)]
                if pooled:
                    ax.hlines(places, rows["prediction_low"], rows["prediction_high"], color=GRAY, linewidth=0.8)
                ax.hlines(places, rows["low"], rows["high"], color=color, linewidth=1.2)
                first = ax is axes[0] and len(rows) and all(name != model for name, _ in runs[:number])
                label = model if first else None
                ax.scatter(
                    rows["mean"], places, color=color, s=14, marker="D" if pooled else "o", label=label, zorder=3
                )
            ax.set_xlabel(LABELS[effect])
            ax.tick_params(axis="y", length=0)
        names = [f"{problem_label(problem)}, {method_label(method, int(window))}" for problem, method, window in pairs]
        axes[0].set_yticks(range(len(pairs)), names)
        axes[0].set_ylim(len(pairs) - 0.5, -0.5)
        figure.legend(loc="outside lower center", ncols=4)
    return figure
