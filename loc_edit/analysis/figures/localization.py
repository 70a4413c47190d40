"""Draws the effects of Causal Tracing: where facts seem to be stored."""

from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from loc_edit.analysis.tables.rows import TRACE_COLUMNS, require
from loc_edit.views.heatmap import heatmap
from loc_edit.views.style import BLUE, ORDERED, Figure, layer_ticks, legend, panels, styled


def peak_layers(data: pd.DataFrame) -> Figure:
    """Histogram over facts of the layer with the largest effect; a panel per window (Figures 1 and 11).

    Args:
        data: `window, layer, facts`, see `argmax_histogram`.
    """
    require(data, ["window", "layer", "facts"], "peak_layers")
    with styled():
        windows = sorted(data["window"].unique())
        figure, axes = panels(len(windows), height=1.5, around=0.3, sharey=True)
        for ax, window in zip(axes, windows, strict=True):
            bars = data[data["window"] == window]
            ax.bar(bars["layer"], bars["facts"], width=0.8, color=BLUE)
            layer_ticks(ax, bars["layer"])
            ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
            ax.set_title(f"Window {window} ({int(bars['facts'].sum())} facts)")
        figure.supxlabel("Layer with the largest tracing effect")
        figure.supylabel("Facts")
    return figure


def fact_heatmap(data: pd.DataFrame) -> Figure:
    """One fact: tracing effect by token and layer, subject tokens starred (Figure 2).

    Args:
        data: the cells of one fact and window, see `cell_effects`, and, where known, `token, metric`.
    """
    require(data, [*TRACE_COLUMNS, "effect"], "fact_heatmap")
    cells = data.pivot(index="layer", columns="pos", values="effect").sort_index()
    rows = data.drop_duplicates("pos").sort_values("pos")
    first = data.iloc[0]
    return heatmap(
        cells.to_numpy(),
        tokens=rows["token" if "token" in rows else "pos"].astype(str).tolist(),
        subject=(int(first["subject_begin"]), int(first["subject_end"])),
        layers=cells.index.tolist(),
        metric=str(first.get("metric", "probability")),
        window=int(first["window"]),
        site=str(first["site"]),
        ends=(float(first["p_clean"]), float(first["p_corrupted"])),
    )


def mean_effect(data: pd.DataFrame) -> Figure:
    """Mean tracing effect against layer, one line per window (Figure 10).

    Args:
        data: `window, layer, effect`, see `mean_effects`.
    """
    require(data, ["window", "layer", "effect"], "mean_effect")
    with styled():
        figure, (ax,) = panels(1, height=1.6)
        windows = sorted(data["window"].unique())
        colors = ORDERED(np.linspace(0, 1, len(windows)))
        for color, marker, window in zip(colors, cycle("o^sDvPX*"), windows, strict=False):
            line = data[data["window"] == window].sort_values("layer")
            ax.plot(line["layer"], line["effect"], marker=marker, color=color, label=f"Window {window}")
        ax.axhline(0, color="0.6", linewidth=0.6, zorder=0)
        layer_ticks(ax, data["layer"])
        ax.set_xlabel("Layer restored")
        ax.set_ylabel("Mean tracing effect\n(in probability)")
        legend(figure, [ax], ax.get_legend_handles_labels()[0])
    return figure
