"""Draws the figures of a folder again from their numbers, in the style of today, without the run."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from loc_edit.analysis.comparisons import drawing_of
from loc_edit.analysis.figures.convergence import key_convergence
from loc_edit.analysis.figures.forest import plot_forest
from loc_edit.analysis.figures.leaderboard import plot_leaderboard
from loc_edit.analysis.figures.localization import fact_heatmap
from loc_edit.analysis.figures.paper import FIGURES
from loc_edit.views.style import save_pictures

OTHERS: dict[str, Callable[[pd.DataFrame], Figure]] = {
    "forest": plot_forest,
    "key_convergence": key_convergence,
    "leaderboard": plot_leaderboard,
    "trace": fact_heatmap,
}
"""Figures of no run or of several; more of a name can follow, as in `trace_12`."""


def drawing(name: str) -> Callable[[pd.DataFrame], Figure] | None:
    """What draws the figure of that name, such as `figure_6`; `None` if there is nothing."""
    if name in FIGURES:
        return FIGURES[name].draw
    return drawing_of(name) or drawing_of(name, OTHERS)


def drawn_numbers(path: Path) -> pd.DataFrame:
    """The numbers of a figure as `save` wrote them: tokens and groups of layers are text."""
    return pd.read_csv(path, converters={"token": str, "group": str})


def redraw(folder: Path | str) -> list[Path]:
    """Draw every figure of a folder again: each `name.csv` that has a `name.pdf` beside it, which stays as it is.

    Returns:
        The paths written.
    """
    written: list[Path] = []
    for path in sorted(Path(folder).glob("*.csv")):
        draw = drawing(path.stem)
        if draw and path.with_suffix(".pdf").exists():
            written += save_pictures(draw(drawn_numbers(path)), path.parent, path.stem)
    return written
