"""Draws the scores of edits against the tracing effect and against the edited layer."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loc_edit.analysis.tables.rows import is_control, method_labels, require, without_controls
from loc_edit.names import SCORES, method_label, problem_label
from loc_edit.views.style import BLUE, GRAY, METHOD_COLORS, METHOD_MARKERS, RED, layer_ticks, panels, styled

AXIS_NAMES = {
    "trace": "tracing effect (fraction restored)",
    "trace_absolute": "tracing effect (in probability)",
    "magnitude": "change in p(target)",
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
        alone = len(layers) == 1
        columns = 3 if len(layers) in (3, 5, 6, 9) else 4
        size = (3.2, 2.5) if alone else (1.75, 1.65)
        figure, axes = panels(len(layers), columns=columns, size=size, sharex=True, sharey=True)
        for place, (ax, layer) in enumerate(zip(axes, layers, strict=True)):
            _points(ax, data[data["layer"] == layer], outcome, regressor, size=10.0 if alone else 5.0)
            ax.set_title(f"layer {layer}", loc="left")
            ax.tick_params(labelleft=place % columns == 0)
        x_name = f"{AXIS_NAMES.get(regressor, regressor)} {where}".strip()
        y_name = AXIS_NAMES.get(outcome, f"{outcome} score")
        if alone:
            axes[0].set_xlabel(x_name)
            axes[0].set_ylabel(y_name)
            axes[0].set_title(f"{_combination(data)}, layer {layers[0]}".lstrip(", "), loc="left")
        else:
            figure.supxlabel(x_name, fontsize=8.5)
            figure.supylabel(y_name, fontsize=8.5)
            figure.suptitle(_combination(data), fontsize=9, x=0.01, ha="left")
    return figure


def scores_by_layer(data: pd.DataFrame) -> Figure:
    """Mean scores against the edited layer, a line per method, a panel per problem x score (Figures 7 to 9).

    Args:
        data: `problem, method, window, layer, outcome, mean, low, high`, see `mean_scores`.  Controls among the
            rows, see `control_scores`, are level lines: dashed at a random layer, dotted without an edit.
    """
    require(data, ["problem", "method", "window", "layer", "outcome", "mean", "low", "high"], "scores_by_layer")
    with styled():
        problems, outcomes = list(data["problem"].unique()), list(data["outcome"].unique())
        grid = [(problem, outcome) for problem in problems for outcome in outcomes]
        columns = len(outcomes) if len(outcomes) > 1 else 3
        figure, axes = panels(len(grid), columns=columns, size=(2.3, 1.7), sharex=True, sharey=True)
        for place, (ax, (problem, outcome)) in enumerate(zip(axes, grid, strict=True)):
            cell = data[(data["problem"] == problem) & (data["outcome"] == outcome)]
            _control_lines(ax, cell[is_control(cell)])
            _score_lines(ax, without_controls(cell))
            ax.set_title(problem_label(problem) + (f": {outcome}" if len(outcomes) > 1 else ""), loc="left")
            ax.tick_params(labelleft=place % columns == 0)
            layer_ticks(ax, without_controls(data)["layer"])
        axes[0].set_ylim(-0.03, 1.03)
        figure.supxlabel("edited layer", fontsize=8.5)
        figure.supylabel("mean score" if len(outcomes) > 1 else f"mean {outcomes[0]} score", fontsize=8.5)
        _one_legend(figure, axes)
    return figure


def _points(ax: Axes, cell: pd.DataFrame, outcome: str, regressor: str, size: float) -> None:
    ax.scatter(cell[regressor], cell[outcome], s=size, color=BLUE, alpha=0.4, linewidths=0)
    r, slope, intercept = cell[["r", "slope", "intercept"]].iloc[0]
    ends = [cell[regressor].min(), cell[regressor].max()]
    ax.plot(ends, [intercept + slope * x for x in ends], color=RED)
    note = f"r = {r:.2f}" if pd.notna(r) else "r undefined"
    ax.set_title(f"{note}, n = {len(cell)}".replace("-", "\u2212"), loc="right", fontsize=7, color="0.25")
    if outcome in SCORES:
        ax.set_ylim(-0.03, 1.03)


def _score_lines(ax: Axes, cell: pd.DataFrame) -> None:
    labels = pd.Series(method_labels(cell), index=cell.index)
    for name in labels.unique():
        line = cell[labels == name].sort_values("layer")
        color = METHOD_COLORS.get(name, GRAY)
        ax.plot(line["layer"], line["mean"], marker=METHOD_MARKERS.get(name, "x"), color=color, label=name)
        ax.fill_between(line["layer"], line["low"], line["high"], color=color, alpha=0.15, linewidth=0)


def _control_lines(ax: Axes, cell: pd.DataFrame) -> None:
    for row in cell.to_dict("records"):
        if row["method"] == "none":
            ax.axhline(row["mean"], color=GRAY, linestyle=":", label="no edit")
            continue
        name = method_label(row["method"].removeprefix("random_layer_"), row["window"])
        ax.axhline(row["mean"], color=METHOD_COLORS.get(name, GRAY), linestyle="--", linewidth=0.7)
        ax.plot([], [], color=GRAY, linestyle="--", linewidth=0.7, label="random layer")


def _one_legend(figure: Figure, axes: list[Axes]) -> None:
    entries: dict[str, Any] = {}
    for ax in axes:
        handles, names = ax.get_legend_handles_labels()
        entries |= dict(zip(names, handles, strict=True))
    figure.legend(list(entries.values()), list(entries), loc="outside upper center", ncols=len(entries))


def _combination(data: pd.DataFrame) -> str:
    """Method and problem of the points, in words."""
    if not {"method", "window", "problem"} <= set(data):
        return ""
    return f"{method_labels(data)[0]}, {problem_label(data['problem'].iloc[0]).lower()}"
