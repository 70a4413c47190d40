"""From the rows of a run, or of several that belong together, to tables and figures.  No torch here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from loc_edit.analysis.figures.localizers import localizer_choice
from loc_edit.analysis.figures.localizers import localizer_matrix as plot_localizer_matrix
from loc_edit.analysis.figures.paper import draw_all
from loc_edit.analysis.regression.localizers import localizer_choices
from loc_edit.analysis.regression.localizers import localizer_matrix as regressed_localizer_matrix
from loc_edit.analysis.regression.ols import fits as regressed_fits
from loc_edit.analysis.regression.paper import write_tables
from loc_edit.analysis.run import Run
from loc_edit.analysis.tables.paper import write
from loc_edit.analysis.tables.rows import Rows
from loc_edit.analysis.tables.rows import RowsMissing as tabled_RowsMissing
from loc_edit.analysis.tables.summaries import mean_scores
from loc_edit.store.folder import RunMismatch
from loc_edit.store.rows import KEYS
from loc_edit.store.settings import describe, differences
from loc_edit.views.style import save

FINGERPRINT = "model_fingerprint"

WHICH = (
    "chunk", "data_limit", "facts", "known", "layers", "localizers", "methods", "min_probability", "problems",
    "localizer_windows", "site", "windows",
)  # fmt: skip
"""Settings that say which rows there are, not what is in them: runs that differ in these alone belong together."""


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


def analyze(
    run: Run | Sequence[Run],
    out: str | Path | None = None,
    *,
    window: int | None = None,
    draws: int = 2000,
    compare_paper: bool = False,
    second: Run | None = None,
) -> Analysis:
    """Write every table and figure of the study that a run's rows allow.

    Args:
        run: from `load_run`; or several of the same model and settings, whose rows are taken together.
        out: where `tables/` and `figures/` go; the run's folder by default.
        window: the restoration window of the main tables and figures; by default the only one, or 5.
        draws: resamples and permutations of the statistics; 0 leaves them out.
        compare_paper: also a table with the study's numbers beside ours.
        second: a run of another model, for Figure 13.

    Raises:
        RowsMissing: the run has neither a trace nor a finished edit.
        RunMismatch: several runs whose rows must not stand in one statistic; or a second one of the same model.
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
    rows = Rows.of(traces, edits, window)
    written, missing = write_tables(
        traces, edits, folder / "tables", window=window, draws=draws, compare_paper=compare_paper
    )
    drawn, not_drawn = draw_all(traces, edits, folder / "figures", window=window, second=other)
    studied, not_studied = _write_study(rows, folder, draws)
    fits, not_fitted = _fits(rows)
    missing |= not_drawn | not_studied | not_fitted
    return Analysis(fits, mean_scores(edits), written | drawn | studied, missing)


@dataclass(frozen=True)
class Compared:
    """A comparison of localisers: a table, and the figure of it.

    Attributes:
        title: what it shows.
        table: the table's name.
        figure: the figure's name.
        data: the rows of both.
        draw: draws them.
    """

    title: str
    table: str
    figure: str
    data: pd.DataFrame
    draw: Callable[[pd.DataFrame], Figure]


def compare_localizers(rows: Rows, draws: int = 2000) -> list[Compared]:
    """What each localiser of a run adds to the layer, and what editing at its peak is worth.

    Args:
        rows: of a run.
        draws: resamples and permutations.

    Raises:
        RowsMissing: the run has no localiser but Causal Tracing, or there are no draws.
    """
    frames = rows.joined_by_localizer()
    if not draws:
        raise tabled_RowsMissing("the comparison of localisers was left out (no draws)")
    matrix = regressed_localizer_matrix(frames, draws=draws)
    choices = localizer_choices(frames, draws=draws)
    return [
        Compared(
            "what each localiser adds to the R^2 of the layer",
            "localizer_matrix",
            "localizer_matrix",
            matrix,
            plot_localizer_matrix,
        ),
        Compared(
            "where to edit, by each localiser",
            "localizer_choices",
            "localizer_choice",
            choices,
            localizer_choice,
        ),
    ]


def _write_study(rows: Rows, folder: Path, draws: int) -> tuple[dict[str, list[Path]], dict[str, str]]:
    try:
        found = compare_localizers(rows, draws)
    except tabled_RowsMissing as error:
        return {}, dict.fromkeys(("localizer_matrix", "localizer_choice"), str(error))
    written: dict[str, list[Path]] = {}
    for one in found:
        written[one.table] = write(one.data, folder / "tables", one.table)
        drawn = save(one.draw(one.data), one.data, folder / "figures", one.figure)
        written[one.figure] = [*written.get(one.figure, []), *drawn]
    return written, {}


def _fits(rows: Rows) -> tuple[pd.DataFrame, dict[str, str]]:
    """The regressions of Causal Tracing, or why there are none."""
    try:
        return regressed_fits(rows.joined()), {}
    except tabled_RowsMissing as error:
        return regressed_fits(rows.edits.head(0).assign(trace=0.0)), {"regressions": str(error)}


def gather(runs: Sequence[Run]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Trace and edit rows of runs that belong together, a row that several of them have taken once.

    Raises:
        RunMismatch: another model, or another setting than which facts, layers, methods, problems, windows and
            sites there are; the message names it.
        RowsMissing: a run has neither a trace nor a finished edit.
    """
    for run in runs[1:]:
        _refuse_strangers(runs[0], run)
    traces, edits = [run.traces for run in runs], [run.read("edits", lists=True) for run in runs]
    for run, these, those in zip(runs, traces, edits, strict=True):
        if these.empty and not (those["status"] == "done").any():
            raise tabled_RowsMissing(f"{run.path}: no trace and no finished edit yet, so there is nothing to analyse")
    return _together(traces, "traces"), _together(edits, "edits")


def _together(parts: list[pd.DataFrame], kind: str) -> pd.DataFrame:
    if len(parts) == 1:
        return parts[0]
    rows = pd.concat(parts, ignore_index=True).drop_duplicates([*KEYS[kind], "cell"], ignore_index=True)
    return rows.sort_values(list(KEYS[kind]), kind="stable", ignore_index=True)


def _refuse_strangers(first: Run, other: Run) -> None:
    """Refuses runs of different models or settings: their rows do not mix."""
    models = [{FINGERPRINT: run.provenance.get(FINGERPRINT, "")} for run in (first, other)]
    found = differences(*models) or differences(*_shared(first.config, other.config))
    if found:
        raise RunMismatch(
            f"the rows of {first.path} and {other.path} do not belong together: {describe(found)} "
            "(there: the first, here: the second)"
        )


def _shared(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two configurations without what says which rows there are, settings of methods where both have them."""
    first, second = ({k: v for k, v in c.items() if k not in (*WHICH, "settings")} for c in (one, other))
    here, there = one.get("settings", {}), other.get("settings", {})
    both = [(method, problem) for method in here for problem in here[method] if problem in there.get(method, {})]
    return (
        first | {f"settings.{method}.{problem}": here[method][problem] for method, problem in both},
        second | {f"settings.{method}.{problem}": there[method][problem] for method, problem in both},
    )
