"""Figures of causal tracing: where facts seem to be stored."""

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from loc_edit.figures.style import BLUE, layer_ticks, panels, printable, styled
from loc_edit.tables import require

METRICS = {
    "probability": "p(object)",
    "log_probability": "log p(object)",
    "logit_difference": "logit difference",
}
SITES = {"mlp_out": "MLP output", "attn_out": "attention output", "resid_post": "residual stream"}


def peak_layers(data: pd.DataFrame) -> Figure:
    """Histogram over facts of the layer with the largest effect; a panel per window (Figures 1 and 11).

    Args:
        data: `window, layer, facts`, see `tables.argmax_histogram`.
    """
    require(data, ["window", "layer", "facts"], "peak_layers")
    with styled():
        windows = sorted(data["window"].unique())
        size = (2.9, 2.0) if len(windows) > 1 else (3.2, 2.2)
        figure, axes = panels(len(windows), columns=2, size=size, sharey=True)
        for place, (ax, window) in enumerate(zip(axes, windows, strict=True)):
            bars = data[data["window"] == window]
            ax.bar(bars["layer"], bars["facts"], width=0.8, color=BLUE)
            layer_ticks(ax, bars["layer"])
            ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
            ax.set_title(f"window {window}, {int(bars['facts'].sum())} facts", loc="left")
            ax.tick_params(labelbottom=True)
            if place + 2 >= len(windows):
                ax.set_xlabel("layer with the largest tracing effect")
            if place % 2 == 0:
                ax.set_ylabel("facts")
    return figure


def heatmap(data: pd.DataFrame) -> Figure:
    """One fact: tracing effect by token and layer, subject tokens starred (Figure 2).

    Args:
        data: the cells of one fact and window: `layer, pos, effect, subject_begin, subject_end`, and, where
            known, `token, p_clean, p_corrupted, window, site, metric`.
    """
    require(data, ["layer", "pos", "effect", "subject_begin", "subject_end"], "heatmap")
    with styled():
        metric = str(data["metric"].iloc[0]) if "metric" in data else "probability"
        metric = METRICS.get(metric, metric)
        cells = data.pivot(index="pos", columns="layer", values="effect").sort_index()
        layers = cells.columns.to_numpy()
        height = 0.19 * len(cells) + 1.15
        figure = Figure(figsize=(4.6, max(1.9, height)), layout="constrained")
        ax = figure.subplots()
        most = float(np.nanmax(np.abs(cells.to_numpy()), initial=0.0)) or 1.0
        image = ax.imshow(cells, aspect="auto", cmap="RdBu", vmin=-most, vmax=most, interpolation="nearest")
        _name_tokens(ax, data)
        ticks = np.arange(len(layers))[:: max(1, len(layers) // 14)]
        ax.set_xticks(ticks, [str(layers[i]) for i in ticks])
        ax.set_xlabel("layer restored" + _window_note(data))
        ax.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=ax, pad=0.02, fraction=0.06)
        bar.set_label(f"effect on {metric}")
        bar.outline.set_visible(False)
        if {"p_clean", "p_corrupted"} <= set(data):
            clean, corrupted = data[["p_clean", "p_corrupted"]].iloc[0]
            ax.set_title(f"{metric}: clean {clean:.2f}, subject (*) corrupted {corrupted:.2f}", loc="left")
    return figure


def mean_effect(data: pd.DataFrame) -> Figure:
    """Mean tracing effect against layer, one line per window (Figure 10).

    Args:
        data: `window, layer, effect`, and, where known, `low, high`.
    """
    require(data, ["window", "layer", "effect"], "mean_effect")
    with styled():
        figure, (ax,) = panels(1, size=(4.0, 2.3))
        windows = sorted(data["window"].unique())
        colors = _shades(len(windows))
        for color, marker, window in zip(colors, "o^sDvPX*" * len(windows), windows, strict=False):
            line = data[data["window"] == window].sort_values("layer")
            ax.plot(line["layer"], line["effect"], marker=marker, color=color, label=f"window {window}")
            if {"low", "high"} <= set(line):
                ax.fill_between(line["layer"], line["low"], line["high"], color=color, alpha=0.15, linewidth=0)
        ax.axhline(0, color="0.6", linewidth=0.6, zorder=0)
        layer_ticks(ax, data["layer"])
        ax.set_xlabel("layer restored")
        ax.set_ylabel("mean tracing effect")
        figure.legend(loc="outside right center")
    return figure


def _shades(n: int) -> np.ndarray:
    """Light to dark; the lightest yellows of the map are left out."""
    return np.asarray(colormaps["viridis"](np.linspace(0.75, 0.0, n)))


def _name_tokens(ax: Axes, data: pd.DataFrame) -> None:
    rows = data.drop_duplicates("pos").sort_values("pos")
    tokens = rows["token"].astype(str) if "token" in rows else rows["pos"].astype(str)
    subject = (rows["pos"] >= rows["subject_begin"]) & (rows["pos"] < rows["subject_end"])
    names = [
        printable(token.strip() or repr(token)) + ("*" if starred else "")
        for token, starred in zip(tokens, subject, strict=True)
    ]
    ax.set_yticks(np.arange(len(names)), names)
    for label in ax.get_yticklabels():
        label.set_parse_math(False)


def _window_note(data: pd.DataFrame) -> str:
    if not {"window", "site"} <= set(data):
        return ""
    window, site = int(data["window"].iloc[0]), str(data["site"].iloc[0])
    place = SITES.get(site, site)
    return f" ({place})" if window == 1 else f" ({place}, {window} layers around it)"
