"""Draws how C^-1 k, the condition number and the rank of the key statistics settle as the sample grows."""

from typing import Any

import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator

from loc_edit.analysis.tables.rows import require
from loc_edit.views.style import ORDERED, Figure, panels, round_step, styled

COLUMNS = ["layer", "tokens", "rank", "condition", "change"]


def key_convergence(data: pd.DataFrame) -> Figure:
    """Change of C^-1 k, condition number and rank against the number of tokens; a line per layer.

    Args:
        data: `layer, tokens, rank, condition, change`, see `KeyStats.convergence`.
    """
    require(data, COLUMNS, "key_convergence")
    with styled():
        figure, axes = panels(3, height=1.7, around=0.2)
        layers = data["layer"]
        scale = Normalize(layers.min(), max(layers.max(), layers.min() + 1))
        shade = ScalarMappable(scale, ORDERED)
        whole = data["tokens"].max()
        for layer, rows in data.sort_values("tokens").groupby("layer"):
            style: dict[str, Any] = {"color": shade.cmap(scale(int(str(layer)))), "marker": "o", "markersize": 2.5}
            parts = rows[rows["tokens"] < whole]  # the whole sample's change against itself is 0
            axes[0].plot(parts["tokens"], parts["change"], **style)
            axes[1].plot(rows["tokens"], rows["condition"], **style)
            axes[2].plot(rows["tokens"], rows["rank"], **style)
        names = ("Relative change of C\u207b\u00b9k", "Condition number of C", "Rank of C")
        ticks = sorted(data["tokens"].unique())
        for ax, name in zip(axes, names, strict=True):
            ax.set_xscale("log")
            ax.set_xticks(ticks[:: round_step(len(ticks) / 4)], minor=False)
            ax.xaxis.set_major_formatter(EngFormatter(places=0, sep=""))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.set_xlim(ticks[0] / 1.3, ticks[-1] * 1.3)
            ax.set_xlabel("Tokens")
            ax.set_ylabel(name)
        axes[0].set_yscale("log")
        axes[1].set_yscale("log")
        axes[0].yaxis.set_major_formatter("{x:g}")
        axes[1].yaxis.set_major_formatter(EngFormatter(sep=""))
        axes[2].set_ylim(0, 1.05 * max(1, data["rank"].max()))
        figure.colorbar(shade, ax=axes, label="Layer", ticks=MaxNLocator(integer=True))
    return figure
