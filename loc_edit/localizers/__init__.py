"""Localisers other than Causal Tracing: the same question, grid and `Trace`, another way to weigh a cell.

All have Causal Tracing's clean and corrupted metric, so that their fractions have the same denominator: a cell's
effect is a share of what the noise takes away.
"""

from loc_edit.localizers.cells import Localization, grid_options, no_trace
from loc_edit.localizers.direct import direct, random
from loc_edit.localizers.gradients import attribution, integrated_gradients
from loc_edit.localizers.patching import mean_ablation, resample_ablation, severed, zero_ablation
from loc_edit.localizers.question import Question, ask
from loc_edit.localizers.references import references
from loc_edit.localizers.registry import LOCALIZERS, TRACING, Localizer, localize

__all__ = [
    "LOCALIZERS",
    "TRACING",
    "Localization",
    "Localizer",
    "Question",
    "ask",
    "attribution",
    "direct",
    "grid_options",
    "integrated_gradients",
    "localize",
    "mean_ablation",
    "no_trace",
    "random",
    "references",
    "resample_ablation",
    "severed",
    "zero_ablation",
]
