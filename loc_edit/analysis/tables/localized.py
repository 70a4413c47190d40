"""Whose trace rows are these: the localisers by name, and the rows of one."""

from collections.abc import Sequence

import pandas as pd

from loc_edit.names import LOCALIZERS, TRACING, in_order


def of_localizer(traces: pd.DataFrame, localizer: str = TRACING) -> pd.DataFrame:
    """The trace rows of one localiser; where no column says whose they are, all are of Causal Tracing."""
    if "localizer" in traces:
        return traces[traces["localizer"] == localizer]
    return traces if localizer == TRACING else traces.head(0)


def localizers_in(traces: pd.DataFrame) -> list[str]:
    """The localisers that trace rows are of: those of the package in its order, then others."""
    if traces.empty:
        return []
    found = set(traces["localizer"].unique()) if "localizer" in traces else {TRACING}
    return in_order(found, LOCALIZERS)


def windows_of(localizer: str, windows: Sequence[int], others: Sequence[int] | None = None) -> Sequence[int]:
    """The windows of a localiser in a grid: `windows` of Causal Tracing, `others` of the rest if there are any."""
    return windows if localizer == TRACING or not others else others
