"""How figures look and how they are saved: fonts, colors, panels, and files with the same bytes every time."""

from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.figure
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes

# The colors of Okabe and Ito, which color-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
SKY, GRAY, BLACK = "#56B4E9", "#999999", "#000000"
METHOD_COLORS = {"ROME": BLUE, "MEMIT": ORANGE, "FT-1": GREEN, "FT-5": PURPLE}
METHOD_COLORS |= {"R-ROME": SKY, "EMMET": BLACK, "AlphaEdit": RED, "FT-1 free": GRAY, "FT-1 decay": "#F0E442"}
METHOD_MARKERS = {"ROME": "o", "MEMIT": "s", "FT-1": "^", "FT-5": "D"}
METHOD_MARKERS |= {"R-ROME": "P", "EMMET": "X", "AlphaEdit": "p", "FT-1 free": "v", "FT-1 decay": "<"}

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "hatch.linewidth": 0.6,
    "pdf.fonttype": 42,  # TrueType: text in the PDF stays text
    "ps.fonttype": 42,
    "svg.hashsalt": "loc_edit",
    "savefig.dpi": 200,
    "text.usetex": False,
}


class Figure(matplotlib.figure.Figure):
    """A figure that a notebook shows, also where pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        image = BytesIO()
        with styled():
            self.savefig(image, format="png", dpi=100, bbox_inches="tight")
        return image.getvalue()


def styled() -> Any:
    """A context in which matplotlib draws in the style of this package, whatever the user's own settings."""
    return mpl.rc_context(dict(mpl.rcParamsDefault) | STYLE | {"backend": mpl.rcParams["backend"]})


def panels(
    n: int, *, columns: int = 3, size: tuple[float, float] = (2.3, 2.0), **share: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with `n` equal panels, at most `columns` side by side; `size` is the size of a panel in inches."""
    columns = min(n, columns)
    rows = -(-n // columns)
    figure = Figure(figsize=(max(3.2, size[0] * columns + 0.3), size[1] * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **share)
    for unused in grid.flat[n:]:
        unused.remove()
    axes = list(grid.flat[:n])
    for place, ax in enumerate(axes):
        ax.tick_params(labelbottom=place + columns >= n, labelleft=True)
    return figure, axes


def layer_ticks(ax: Axes, layers: Any) -> None:
    """Ticks at whole layers on the x axis, thinned so that their numbers do not touch."""
    layers = np.unique(np.asarray(layers, dtype=int))
    width = float(ax.get_position().width * ax.figure.get_figure(root=True).get_figwidth())
    gap = max(1, np.ptp(layers) * 0.24 / width)  # layers that one number takes up
    if len(layers) == np.ptp(layers) + 1:
        step = next((step for step in (1, 2, 4, 5, 10, 20) if step >= gap), int(gap) + 1)
        layers = layers[::step]
    ticks = [int(layers[0])]
    for layer in layers[1:]:
        if layer - ticks[-1] >= gap:
            ticks.append(int(layer))
    ax.set_xticks(ticks)


def printable(content: str) -> str:
    """The text with line breaks spelled out and a box for each character that the font lacks."""
    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    spelled = content.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    return "".join(c if font.get_char_index(ord(c)) else "\u25a1" for c in spelled)


def save(figure: matplotlib.figure.Figure, data: pd.DataFrame, folder: Path | str, name: str) -> list[Path]:
    """Write `name.pdf`, `name.png` and `name.csv`, the drawn numbers; the same input gives the same bytes.

    Returns:
        The three paths.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{ending}" for ending in ("pdf", "png", "csv")]
    with styled():
        figure.savefig(paths[0], metadata={"CreationDate": None, "Creator": None, "Producer": None})
        figure.savefig(paths[1], metadata={"Software": None})
    data.to_csv(paths[2], index=False, lineterminator="\n")
    return paths
