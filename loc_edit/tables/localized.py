"""Whose trace rows are these: the localisers by name, and the rows of one."""

from collections.abc import Sequence

import pandas as pd

TRACING = "causal_tracing"
LOCALIZERS = (
    TRACING, "attribution", "integrated_gradients", "zero_ablation", "mean_ablation", "resample_ablation",
    "severed_mlp", "severed_attn", "direct", "random",
)  # fmt: skip
"""The names that `loc_edit.localizers` knows, in the order of tables and figures."""


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
    return [name for name in LOCALIZERS if name in found] + sorted(found - set(LOCALIZERS))


def windows_of(localizer: str, windows: Sequence[int], others: Sequence[int] | None = None) -> Sequence[int]:
    """The windows of a localiser in a grid: `windows` of Causal Tracing, `others` of the rest if there are any."""
    return windows if localizer == TRACING or not others else others
