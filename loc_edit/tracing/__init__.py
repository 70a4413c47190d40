"""Causal Tracing (Meng et al. 2022a, section 2): `trace`, its result, and its patches as hooks."""

from loc_edit.tracing.hooks import SITES, corruption_hooks, restoration_hooks, site_name, window_layers
from loc_edit.tracing.metrics import Metric
from loc_edit.tracing.result import DEGENERATE, Trace
from loc_edit.tracing.runs import trace, trace_many

__all__ = [
    "DEGENERATE",
    "SITES",
    "Metric",
    "Trace",
    "corruption_hooks",
    "restoration_hooks",
    "site_name",
    "trace",
    "trace_many",
    "window_layers",
]
