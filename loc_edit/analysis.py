"""From a run's rows to its tables and figures.  No torch here."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from loc_edit import figures, regress, tables
from loc_edit.store import Run


@dataclass(frozen=True)
class Analysis:
    """What an analysis made.

    Attributes:
        fits: R^2 of layer, tracing effect and both for the rewrite score; empty if there are no rows for it.
        scores: mean scores by problem, method and layer.
        written: files by table or figure.
        missing: why a table or figure could not be made.
    """

    fits: pd.DataFrame
    scores: pd.DataFrame
    written: dict[str, list[Path]]
    missing: dict[str, str]


def analyze(run: Run, out: str | Path | None = None, *, window: int | None = None, draws: int = 2000) -> Analysis:
    """Write every table and figure of the study that a run's rows allow.

    Args:
        run: from `load_run`.
        out: where `tables/` and `figures/` go; the run's folder by default.
        window: the restoration window of the main tables and figures; by default the only one, or 5.
        draws: resamples and permutations of the statistics; 0 leaves them out.

    Raises:
        RowsMissing: the run has no finished edit, or no trace.
    """
    traces, edits = run.traces, run.read("edits", lists=True)
    if traces.empty or not (edits["status"] == "done").any():
        raise tables.RowsMissing(f"{run.path}: no trace or no finished edit yet, so there is nothing to analyse")
    folder = Path(out) if out else run.path
    written, missing = regress.write_tables(traces, edits, folder / "tables", window=window, draws=draws)
    drawn, not_drawn = figures.draw_all(traces, edits, folder / "figures", window=window)
    frame = tables.Rows.of(traces, edits, window).joined()
    return Analysis(regress.fits(frame), tables.mean_scores(frame), written | drawn, missing | not_drawn)
