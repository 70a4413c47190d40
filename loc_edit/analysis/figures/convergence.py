"""Draws how C^-1 k, the condition number and the rank of the key statistics settle as the sample grows."""

from typing import Any

import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator

from loc_edit.analysis.tables.rows import require
from loc_edit.views.style import panels, styled

COLUMNS = ["layer", "tokens", "rank", "condition", "change"]


def key_convergence(data: pd.DataFrame) -> Figure:
    """Change of C^-1 k, condition number and rank against the number of tokens; a line per layer.

    Args:
        data: `layer, tokens, rank, condition, change`, see `KeyStats.convergence`.
    """
    require(data, COLUMNS, "key_convergence")
    with styled():
        figure, axes = panels(3, size=(2.3, 2.1))
        layers = data["layer"]
        scale = Normalize(layers.min(), max(layers.max(), layers.min() + 1))
        shade = ScalarMappable(scale, "viridis")
        whole = data["tokens"].max()
        for layer, rows in data.sort_values("tokens").groupby("layer"):
            style: dict[str, Any] = {"color": shade.cmap(scale(int(str(layer)))), "marker": "o", "markersize": 3}
            parts = rows[rows["tokens"] < whole]  # the whole sample's change against itself is 0
            axes[0].plot(parts["tokens"], parts["change"], **style)
            axes[1].plot(rows["tokens"], rows["condition"], **style)
            axes[2].plot(rows["tokens"], rows["rank"], **style)
        names = ("change of $C^{-1}k$", "condition number of $C$", "rank of $C$")
        ticks = sorted(data["tokens"].unique())
        for ax, name in zip(axes, names, strict=True):
            ax.set_xscale("log")
            ax.set_xticks(ticks[::2] if len(ticks) % 2 else ticks, minor=False)
            ax.xaxis.set_major_formatter(EngFormatter(places=0, sep=""))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.set_xlim(ticks[0] / 1.3, ticks[-1] * 1.3)
            ax.set_xlabel("tokens")
            ax.set_ylabel(name)
            ax.tick_params(labelbottom=True)
        axes[0].set_yscale("log")
        axes[1].set_yscale("log")
        axes[2].set_ylim(0, 1.05 * max(1, data["rank"].max()))
        figure.colorbar(shade, ax=axes, label="layer", ticks=MaxNLocator(integer=True))
    return figure
