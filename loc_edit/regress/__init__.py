"""Regress: does the tracing effect explain the success of edits beyond the layer?  No torch in this room."""

from loc_edit.regress.choices import CHOICES, layer_choices
from loc_edit.regress.dependence import clustered, fact_correlations, mixed_model, within_facts
from loc_edit.regress.localizers import localizer_choices, localizer_matrix
from loc_edit.regress.ols import Fit, fit, fits, usable_rows
from loc_edit.regress.paper import TABLES, PaperTable, write_tables
from loc_edit.regress.resampling import bootstrap_added, permutation_p
from loc_edit.regress.statistics import holm, localization_informs_editing, sensitivity, statistics

__all__ = [
    "CHOICES",
    "TABLES",
    "Fit",
    "PaperTable",
    "bootstrap_added",
    "clustered",
    "fact_correlations",
    "fit",
    "fits",
    "holm",
    "layer_choices",
    "localization_informs_editing",
    "localizer_choices",
    "localizer_matrix",
    "mixed_model",
    "permutation_p",
    "sensitivity",
    "statistics",
    "usable_rows",
    "within_facts",
    "write_tables",
]
