"""Draws the scores of edits against the tracing effect and against the edited layer."""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from loc_edit.analysis.tables.rows import is_control, method_labels, require, without_controls
from loc_edit.names import SCORES, capitalized, method_label, problem_label, score_label
from loc_edit.views.style import (
    BLUE,
    DOUBLE,
    GRAY,
    RED,
    SINGLE,
    SMALLEST,
    Figure,
    layer_ticks,
    legend,
    panels,
    series,
    styled,
)

AXIS_NAMES = {
    "trace": "Tracing effect (fraction restored)",
    "trace_absolute": "Tracing effect (in probability)",
    "magnitude": "Change in p(target)",
}


def scatter(data: pd.DataFrame, outcome: str = "rewrite", regressor: str = "trace", where: str = "") -> Figure:
    """Edit outcome against tracing effect, a panel per layer, with line and r (Figures 4 and 14 to 17).

    Args:
        data: points of one method x problem, `layer`, outcome, regressor, `r, slope, intercept`, see
            `fit_points`.
        outcome: the column on the y axis.
        regressor: the column on the x axis.
        where: words on the x axis that say at which tokens the effect is taken.
    """
    require(data, ["layer", outcome, regressor, "r", "slope", "intercept"], "scatter")
    with styled():
        layers = sorted(data["layer"].unique())
        few = len(layers) <= 2
        columns = 3 if len(layers) in (3, 5, 6, 9) else 4 if len(layers) <= 24 else 5
        width, height = (SINGLE, 1.7) if few else (DOUBLE, 5.1 / columns)
        figure, axes = panels(len(layers), columns=columns, width=width, height=height, sharex=True, sharey=True)
        for ax, layer in zip(axes, layers, strict=True):
            _points(ax, data[data["layer"] == layer], outcome, regressor, size=7.0 if few else 5.0)
            ax.set_title(f"Layer {layer}")
        figure.supxlabel(f"{AXIS_NAMES.get(regressor, regressor)} {where}".strip())
        figure.supylabel(AXIS_NAMES.get(outcome, score_label(outcome)))
        figure.suptitle(_points_of(data), x=0.01, ha="left")
    return figure


def scores_by_layer(data: pd.DataFrame) -> Figure:
    """Mean scores against the edited layer, a line per method, a panel per problem x score (Figures 7 to 9 and others).

    Args:
        data: `problem, method, window, layer, outcome, mean, low, high`, see `mean_scores`.  Controls among the
            rows, see `control_scores`, are level lines: dashed at a random layer, dotted without an edit.
    """
    require(data, ["problem", "method", "window", "layer", "outcome", "mean", "low", "high"], "scores_by_layer")
    with styled():
        problems, outcomes = list(data["problem"].unique()), list(data["outcome"].unique())
        grid = [(problem, outcome) for problem in problems for outcome in outcomes]
        columns = None if len(outcomes) == 1 else len(outcomes) if len(problems) > 1 else 3
        height = 1.7 if len(grid) == 1 else 1.4
        figure, axes = panels(len(grid), columns=columns, height=height, sharex=True, sharey=True)
        styles = series(method_labels(without_controls(data)))
        for ax, (problem, outcome) in zip(axes, grid, strict=True):
            cell = data[(data["problem"] == problem) & (data["outcome"] == outcome)]
            _control_lines(ax, cell[is_control(cell)], styles)
            _score_lines(ax, without_controls(cell), styles)
            ax.set_title(_panel_title(problem, outcome, alone=len(outcomes) == 1))
            layer_ticks(ax, without_controls(data)["layer"])
        lowest = float(np.nanmin(data[["mean", "low"]].to_numpy(dtype=float)))
        # Where all scores are high, they fill the panels.
        bottom = min(0.9, math.floor(10 * lowest) / 10) if lowest > 0.5 else 0.0
        axes[0].set_ylim(bottom - 0.03 * (1 - bottom), 1 + 0.03 * (1 - bottom))
        figure.supxlabel("Edited layer")
        figure.supylabel(f"Mean {'score (0 to 1)' if len(outcomes) > 1 else score_label(outcomes[0]).lower()}")
        entries: dict[str, Any] = {}
        for ax in axes:
            entries |= {str(handle.get_label()): handle for handle in ax.get_legend_handles_labels()[0]}
        legend(figure, axes, list(entries.values()))
    return figure


def _panel_title(problem: str, outcome: str, alone: bool) -> str:
    """The problem, and the score where there are several; the score alone if it is of a further scorer."""
    if outcome in SCORES and (scorer := SCORES[outcome].scorer):
        return capitalized(outcome.removeprefix(f"{scorer}_").replace("_", " "))
    return problem_label(problem) + ("" if alone else f": {outcome}")


def _points(ax: Axes, cell: pd.DataFrame, outcome: str, regressor: str, size: float) -> None:
    ax.scatter(cell[regressor], cell[outcome], s=size, color=BLUE, alpha=0.4, linewidths=0)
    r, slope, intercept = cell[["r", "slope", "intercept"]].iloc[0]
    ends = [cell[regressor].min(), cell[regressor].max()]
    ax.plot(ends, [intercept + slope * x for x in ends], color=RED)
    note = f"r = {r:z.2f}" if pd.notna(r) else "r undefined"
    ax.set_title(note.replace("-", "\u2212"), loc="right", fontsize=SMALLEST)
    if outcome in SCORES:
        ax.set_ylim(-0.03, 1.03)


def _score_lines(ax: Axes, cell: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> None:
    labels = pd.Series(method_labels(cell), index=cell.index)
    for name in labels.unique():
        line = cell[labels == name].sort_values("layer")
        ax.plot(line["layer"], line["mean"], label=name, **styles[name])
        ax.fill_between(line["layer"], line["low"], line["high"], color=styles[name]["color"], alpha=0.15, linewidth=0)


def _control_lines(ax: Axes, cell: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> None:
    """Level lines, of a random layer with the method's marker, hollow, at the right end."""
    for row in cell.to_dict("records"):
        if row["method"] == "none":
            ax.axhline(row["mean"], color=GRAY, linestyle=":", label="No edit")
            continue
        name = method_label(row["method"].removeprefix("random_layer_"), row["window"])
        level: dict[str, Any] = {"linestyle": "--", "linewidth": 0.7, "markerfacecolor": "white", "markersize": 3}
        across = ax.get_yaxis_transform()
        ax.plot(
            [0, 1],
            [row["mean"]] * 2,
            transform=across,
            markevery=[1],
            clip_on=False,
            **level,
            **styles.get(name, {"color": GRAY}),
        )
        ax.plot([], [], color=GRAY, linestyle="--", linewidth=0.7, label="Random layer")


def _points_of(data: pd.DataFrame) -> str:
    """Method and problem of the points, in words, and how many facts there are at a layer."""
    counts = data.groupby("layer").size()
    few, many = counts.min(), counts.max()
    facts = f"{many} facts" if few == many else f"{few} to {many} facts"
    if not {"method", "window", "problem"} <= set(data):
        return facts
    return f"{method_labels(data)[0]}, {problem_label(data['problem'].iloc[0]).lower()} ({facts})"
