"""Turns the rows of a run, or of several that belong together, into tables and figures.  No torch here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from loc_edit.analysis.comparisons import comparisons, write_comparisons
from loc_edit.analysis.figures.paper import draw_all
from loc_edit.analysis.regression.ols import fits
from loc_edit.analysis.regression.paper import write_tables
from loc_edit.analysis.run import Run
from loc_edit.analysis.tables.rows import RowsMissing, StudyRows
from loc_edit.analysis.tables.summaries import mean_scores
from loc_edit.arguments import Id, Index, Window, checked
from loc_edit.store.folder import RunMismatch
from loc_edit.store.rows import KEYS, Kind
from loc_edit.store.settings import describe, differences

FINGERPRINT = "model_fingerprint"

WHICH_ROWS = (
    "chunk", "data_limit", "facts", "known", "layers", "localizers", "methods", "min_probability", "problems",
    "localizer_windows", "scores", "sequence", "site", "skip_facts", "windows",
)  # fmt: skip
"""Settings that decide which rows a run has, not their values: runs that differ only in these belong together."""


@dataclass(frozen=True)
class Analysis:
    """The results of an analysis.

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


@checked
def analyze(
    run: Run | Sequence[Run],
    out: str | Path | None = None,
    *,
    window: Window | None = None,
    draws: Index = 2000,
    seed: Id = 0,
    compare_paper: bool = False,
    second: Run | None = None,
) -> Analysis:
    """Write every table and figure of the study that a run's rows allow.

    Args:
        run: from `load_run`; or several of the same model and settings, whose rows are taken together.
        out: where `tables/` and `figures/` go; the run's folder by default.
        window: the restoration window of the main tables and figures; by default the only one, or 5.
        draws: resamples and permutations of the statistics; 0 leaves them out.
        seed: of the resampling.
        compare_paper: also a table with the study's numbers beside ours.
        second: a run of another model, for Figure 13.

    Raises:
        RowsMissing: the run has neither a trace nor a finished edit.
        RunMismatch: several runs whose rows must not stand in one statistic; or a second run of the same model.
        ValueError: several runs, and no `out`.
    """
    runs = [run] if isinstance(run, Run) else list(run)
    if out is None and len(runs) != 1:
        raise ValueError(f"tables and figures of {len(runs)} runs: say where they go (`out`, --out)")
    if second is not None and second.provenance.get(FINGERPRINT) == runs[0].provenance.get(FINGERPRINT):
        raise RunMismatch(f"{second.path} is of the same model as {runs[0].path}; Figure 13 compares two models")
    traces, edits = gather(runs)
    other = None if second is None else gather([second])
    folder = Path(out) if out else runs[0].path
    rows = StudyRows.of(traces, edits, window)
    written, missing = write_tables(rows, folder / "tables", draws=draws, seed=seed, compare_paper=compare_paper)
    drawn, not_drawn = draw_all(rows, folder / "figures", second=other)
    sequences = _together([run.sequences for run in runs], "sequences")
    parts = comparisons(rows, draws, seed, runs[0], sequences)
    compared, not_compared = write_comparisons(parts, folder / "tables", folder / "figures")
    missing |= not_drawn | not_compared
    try:
        fitted = fits(rows.joined())
    except RowsMissing as error:
        fitted = fits(edits.head(0).assign(trace=0.0))
        missing["regressions"] = str(error)
    return Analysis(fitted, mean_scores(edits), written | drawn | compared, missing)


def gather(runs: Sequence[Run]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Trace and edit rows of runs that belong together; a row that occurs in several of them is taken once.

    Raises:
        RunMismatch: another model, or another setting than those that decide which rows there are; the message
            names it.
        RowsMissing: a run has neither a trace nor a finished edit.
    """
    for run in runs[1:]:
        _refuse_mismatch(runs[0], run)
    traces, edits = [run.traces for run in runs], [run.read("edits", lists=True) for run in runs]
    for run, trace_rows, edit_rows in zip(runs, traces, edits, strict=True):
        if trace_rows.empty and not (edit_rows["status"] == "done").any():
            raise RowsMissing(f"{run.path}: no trace and no finished edit yet, so there is nothing to analyze")
    return _together(traces, "traces"), _together(edits, "edits")


def _together(parts: list[pd.DataFrame], kind: Kind) -> pd.DataFrame:
    if len(parts) == 1:
        return parts[0]
    rows = pd.concat(parts, ignore_index=True).drop_duplicates([*KEYS[kind], "cell"], ignore_index=True)
    return rows.sort_values(list(KEYS[kind]), kind="stable", ignore_index=True)


def _refuse_mismatch(first: Run, other: Run) -> None:
    """Refuses runs of different models or settings: their rows do not mix."""
    models = [{FINGERPRINT: run.provenance.get(FINGERPRINT, "")} for run in (first, other)]
    mismatch = differences(*models) or differences(*_comparable(first.config, other.config))
    if mismatch:
        raise RunMismatch(
            f"the rows of {first.path} and {other.path} do not belong together: {describe(mismatch)} "
            "(there: the first, here: the second)"
        )


def _comparable(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Two configurations without the settings that may differ, and with the plug-ins and settings that both have."""
    settings = [config.get("settings", {}) for config in (first, second)]
    shared = [(method, problem) for method in settings[0] for problem in settings[0][method]]
    shared = [(method, problem) for method, problem in shared if problem in settings[1].get(method, {})]
    of_first, of_second = (config.get("plugins", {}) for config in (first, second))
    plugins = [(kind, name) for kind in of_first for name in of_first[kind] if name in of_second.get(kind, {})]
    return [
        {name: value for name, value in config.items() if name not in (*WHICH_ROWS, "settings", "plugins")}
        | {f"plugins.{kind}.{name}": config["plugins"][kind][name] for kind, name in plugins}
        | {f"settings.{method}.{problem}": of_methods[method][problem] for method, problem in shared}
        for config, of_methods in zip((first, second), settings, strict=True)
    ]
