"""How figures look and how they are saved: fonts, colors, panels, and files with the same bytes every time."""

import math
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.figure
import numpy as np
import pandas as pd
from matplotlib import colormaps, font_manager
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.image import AxesImage

SINGLE, DOUBLE = 3.25, 6.75
"""The widths of figures in inches: a column of ICML's pages and their two columns; figures are not scaled there."""
TALLEST = 8.5
"""The greatest height of a figure in inches: ICML's 9 inches of text, less a caption of two lines."""
SMALLEST = 6.5
"""The size of the smallest font in points, of numbers in the drawing."""

# The colors of Okabe and Ito, which color-blind readers can tell apart, without their yellow, which is hard to see on
# white, and three dark ones.  The first four of `COLORS` also differ in lightness by equal steps, for a gray print.
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
SKY, GRAY, BLACK = "#56B4E9", "#999999", "#000000"
WINE, BROWN, INDIGO = "#882255", "#7A5C00", "#332288"
COLORS = (BLUE, ORANGE, GREEN, WINE, SKY, BLACK, RED, PURPLE, BROWN, INDIGO)
MARKERS = "os^DPXpv<h"
METHODS = ("ROME", "MEMIT", "FT-1", "FT-5", "R-ROME", "EMMET", "AlphaEdit", "FT-1 free", "FT-1 decay")
"""The labels of methods with a color and a marker of their own: those in the same place of `COLORS` and `MARKERS`."""

# White is 0, and equal steps of a number are nearly equal steps of lightness, the same on both sides of 0.
AMOUNT = LinearSegmentedColormap.from_list("amount", [(0, "white"), (0.66, BLUE), (1, "#00304D")])
SIGNED = LinearSegmentedColormap.from_list(
    "signed", [(0, "#5C1F00"), (0.22, RED), (0.5, "white"), (0.83, BLUE), (1, "#00304D")]
)
ORDERED = ListedColormap(colormaps["viridis"](np.linspace(0.75, 0, 256)))
"""Light to dark, without the yellow, for layers or windows that follow each other."""

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 7.5,
    "figure.titlesize": 8,
    "figure.labelsize": 7.5,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.titlepad": 4,
    "axes.labelsize": 7.5,
    "axes.labelpad": 3,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
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
            self.savefig(image, format="png", dpi=150)
        return image.getvalue()


def styled() -> Any:
    """A context in which matplotlib draws in the style of this package, whatever the user's own settings."""
    return mpl.rc_context(dict(mpl.rcParamsDefault) | STYLE | {"backend": mpl.rcParams["backend"]})


def sheet(width: float, height: float) -> Figure:
    """An empty figure, `SINGLE` or `DOUBLE` wide and at most `TALLEST` high, in inches."""
    return Figure(figsize=(width, min(height, TALLEST)), layout="constrained")


def panels(
    n: int,
    *,
    columns: int | None = None,
    width: float | None = None,
    height: float = 1.3,
    around: float = 0.6,
    **share: Any,
) -> tuple[Figure, list[Axes]]:
    """A figure with `n` equal panels, at most `columns` side by side.

    Args:
        n: the number of panels.
        columns: the most in a row; by default 3, but 4 panels stand two by two.
        width: of the figure, `SINGLE` or `DOUBLE`; by default `SINGLE` for one panel.
        height: of a panel with its title and ticks, in inches.
        around: inches above and below all panels, for legend, title and label.
        share: `sharex`, `sharey`, as in `Figure.subplots`.
    """
    columns = min(n, columns or (2 if n == 4 else 3))
    width = width or (SINGLE if n == 1 else DOUBLE)
    rows = -(-n // columns)
    figure = sheet(width, height * rows + around)
    grid = figure.subplots(rows, columns, squeeze=False, **share)
    for unused in grid.flat[n:]:
        unused.remove()
    axes = list(grid.flat[:n])
    for place, ax in enumerate(axes):
        lowest, leftmost = place + columns >= n, place % columns == 0
        shares_x, shares_y = share.get("sharex", False), share.get("sharey", False)
        ax.tick_params(labelbottom=lowest or not shares_x, labelleft=leftmost or not shares_y)
    return figure, axes


def legend(figure: Figure, axes: Sequence[Axes], handles: Sequence[Artist]) -> None:
    """One legend: in the place of a last panel that the grid lacks, or above all panels, in as many columns as fit."""
    grid = axes[0].get_gridspec()
    if grid is not None and grid.nrows > 1 and grid.nrows * grid.ncols > len(axes):
        free = figure.add_subplot(grid[-1, len(axes) % grid.ncols :])
        free.set_axis_off()
        free.legend(handles=handles, loc="center")
        return
    for rows in range(1, len(handles) + 1):
        columns = -(-len(handles) // rows)
        drawn = figure.legend(handles=handles, loc="outside upper center", ncols=columns)
        if drawn.get_window_extent().width < figure.bbox.width or columns == 1:
            return
        drawn.remove()


def series(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The color and the marker of each series: a method's own, and for other names what is left; no two are alike."""
    names = list(dict.fromkeys(names))
    every = [
        {"color": color, "marker": MARKERS[(place + shift) % len(MARKERS)]}
        for shift in range(len(MARKERS))
        for place, color in enumerate(COLORS)
    ]
    found = {name: style for name, style in zip(METHODS, every, strict=False) if name in names}
    left = (style for style in every if style not in found.values())
    return {name: found[name] if name in found else next(left) for name in names}


def matrix(ax: Axes, values: np.ndarray, texts: Sequence[Sequence[str]], top: float) -> AxesImage:
    """A heatmap of amounts from 0 to `top`, with a text in each cell, dark on light or light on dark."""
    image = ax.imshow(values, aspect="auto", cmap=AMOUNT, vmin=0, vmax=top, interpolation="nearest")
    for row, column in np.ndindex(values.shape):
        r, g, b, _ = AMOUNT(np.nan_to_num(values[row, column]) / top)  # a cell without a number is white
        color = "white" if 0.299 * r + 0.587 * g + 0.114 * b < 0.5 else "black"
        ax.text(column, row, texts[row][column], ha="center", va="center", fontsize=SMALLEST, color=color)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return image


def layer_ticks(ax: Axes, layers: Any) -> None:
    """Ticks at whole layers on the x axis, thinned so that their numbers do not touch."""
    layers = np.unique(np.asarray(layers, dtype=int))
    width = float(ax.get_position().width * ax.figure.get_figure(root=True).get_figwidth())
    gap = max(1.0, float(np.ptp(layers)) * 0.24 / width)  # layers that one number takes up
    if len(layers) == np.ptp(layers) + 1:
        layers = layers[:: round_step(gap)]
    ticks = [int(layers[0])]
    for layer in layers[1:]:
        if layer - ticks[-1] >= gap:
            ticks.append(int(layer))
    ax.set_xticks(ticks)


def round_step(least: float) -> int:
    """The step from one numbered tick to the next: a round number, at least `least`."""
    return next((step for step in (1, 2, 4, 5, 10, 20) if step >= least), math.ceil(least))


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
    numbers = folder / f"{name}.csv"
    data.to_csv(numbers, index=False, lineterminator="\n")
    return [*save_pictures(figure, folder, name), numbers]


def save_pictures(figure: matplotlib.figure.Figure, folder: Path, name: str) -> list[Path]:
    """Write `name.pdf` and `name.png`."""
    paths = [folder / f"{name}.{ending}" for ending in ("pdf", "png")]
    with styled():
        figure.savefig(paths[0], metadata={"CreationDate": None, "Creator": None, "Producer": None})
        figure.savefig(paths[1], metadata={"Software": None})
    return paths
