"""Figures: a tidy frame in, a matplotlib Figure out; the paper's figures by name.  No torch in this room."""

from loc_edit.figures.choices import layer_choice
from loc_edit.figures.editing import scatter, scores_by_layer
from loc_edit.figures.explained import r2_bars
from loc_edit.figures.localization import heatmap, mean_effect, peak_layers
from loc_edit.figures.localizers import localizer_choice, localizer_matrix
from loc_edit.figures.paper import FIGURES, PaperFigure, draw_all
from loc_edit.figures.style import save

__all__ = [
    "FIGURES",
    "PaperFigure",
    "draw_all",
    "heatmap",
    "layer_choice",
    "localizer_choice",
    "localizer_matrix",
    "mean_effect",
    "peak_layers",
    "r2_bars",
    "save",
    "scatter",
    "scores_by_layer",
]
