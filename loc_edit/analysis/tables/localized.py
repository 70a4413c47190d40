"""Picks the trace rows of one localizer, and the windows that each localizer is run at."""

import pandas as pd

from loc_edit.names import LOCALIZERS, TRACING, in_order


def of_localizer(traces: pd.DataFrame, localizer: str = TRACING) -> pd.DataFrame:
    """The trace rows of one localizer; rows without a column `localizer` are Causal Tracing's."""
    if "localizer" in traces:
        return traces[traces["localizer"] == localizer]
    return traces if localizer == TRACING else traces.head(0)


def localizers_in(traces: pd.DataFrame) -> list[str]:
    """The localizers of trace rows: first the package's own in its order, then others."""
    if traces.empty:
        return []
    return in_order(set(traces["localizer"].unique()) if "localizer" in traces else {TRACING}, LOCALIZERS)
