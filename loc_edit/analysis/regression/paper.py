"""The paper's tables by name, and all of them at once, with the statistics beside them."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from loc_edit.analysis.regression.choices import layer_choices
from loc_edit.analysis.regression.ols import fits
from loc_edit.analysis.regression.statistics import localization_informs_editing, sensitivity, statistics
from loc_edit.analysis.tables.paper import compare_paper as tabled_compare_paper
from loc_edit.analysis.tables.paper import r2_table, table_1, with_paper_layers, write
from loc_edit.analysis.tables.rows import Rows, RowsMissing, by_layer
from loc_edit.analysis.tables.summaries import concentrated_facts, layer_correlations
from loc_edit.names import SCORES

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper: `build` makes it from rows, or raises `RowsMissing`."""

    title: str
    build: Callable[[Rows], pd.DataFrame]


def _explained(outcome: str) -> Callable[[Rows], pd.DataFrame]:
    def build(rows: Rows) -> pd.DataFrame:
        frame = rows.joined()
        if outcome not in frame or frame[outcome].isna().all():
            raise RowsMissing(f"no {outcome} scores in the edit rows")
        return r2_table(fits(frame, outcome))

    return build


def _subset(rows: Rows) -> pd.DataFrame:
    """The rows of the facts with a concentrated tracing effect."""
    frame = rows.joined()
    facts = concentrated_facts(by_layer(rows.traces, rows.window, rows.site))
    subset = frame[frame["fact_id"].isin(facts)]
    if subset.empty:
        raise RowsMissing("no edited fact has a concentrated tracing effect")
    return subset


def _compared(rows: Rows) -> pd.DataFrame:
    """Our R^2 beside the study's: of all facts, and of those with a concentrated tracing effect (its Table 2)."""
    try:
        concentrated = fits(_subset(rows))
    except RowsMissing:
        concentrated = None
    return tabled_compare_paper(_of_every_outcome(rows, fits), concentrated)


def _sensitivity(rows: Rows) -> pd.DataFrame:
    return sensitivity(rows.edits, rows.traces)


def _correlations(rows: Rows) -> pd.DataFrame:
    return with_paper_layers(layer_correlations(rows.joined()))


TABLES: dict[str, PaperTable] = {
    "table_1": PaperTable("R^2 of ROME's rewrite score", lambda rows: table_1(fits(rows.joined()))),
    "table_2": PaperTable(
        "R^2 of the rewrite score, facts with a concentrated tracing effect",
        lambda rows: r2_table(fits(_subset(rows))),
    ),
    "table_3": PaperTable("R^2 of the rewrite score", _explained("rewrite")),
    "table_4": PaperTable("R^2 of the paraphrase score", _explained("paraphrase")),
    "table_5": PaperTable("R^2 of the neighborhood score", _explained("neighborhood")),
    "table_6": PaperTable("R^2 of the overall score", _explained("overall")),
    "layer_correlations": PaperTable("correlation of tracing effect and rewrite score, per layer", _correlations),
    "layer_choices": PaperTable("where to edit", lambda rows: layer_choices(rows.joined())),
    "sensitivity": PaperTable("R^2 for each window, site, denominator and choice of token", _sensitivity),
}


def write_tables(
    traces: pd.DataFrame,
    edits: pd.DataFrame,
    folder: Path | str,
    *,
    window: int | None = None,
    draws: int = 2000,
    seed: int = 0,
    compare_paper: bool = False,
) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Write every table of the paper that the rows allow, as CSV, LaTeX and Markdown.

    Args:
        traces: trace rows.
        edits: edit rows.
        folder: where `<name>.csv`, `.tex` and `.md` go.
        window: the restoration window; by default the only one, or 5.
        draws: resamples and permutations for the tables `statistics` and `verdict`; 0 leaves these two out.
        seed: of the resampling.
        compare_paper: also set our R^2 beside the study's, which are GPT-J's.

    Returns:
        The paths written, by table, and for the tables that could not be made, why not.
    """
    rows = Rows.of(traces, edits, window)
    wanted = dict(TABLES)
    if draws:
        wanted |= _resampled(draws, seed)
    if compare_paper:
        wanted["compare_paper"] = PaperTable(
            "R^2 of every score beside the study's",
            _compared,
        )
    written: dict[str, list[Path]] = {}
    missing: dict[str, str] = {}
    for name, table in wanted.items():
        try:
            written[name] = write(table.build(rows), folder, name)
        except RowsMissing as error:
            missing[name] = str(error)
            log.info("%s (%s) is not made: %s", name, table.title, error)
    return written, missing


def _of_every_outcome(rows: Rows, build: Callable[[pd.DataFrame, str], pd.DataFrame]) -> pd.DataFrame:
    frame = rows.joined()
    known = [name for name in SCORES if name in frame and frame[name].notna().any()]
    if not known:
        raise RowsMissing("no finished edit has a score")
    return pd.concat([build(frame, name) for name in known], ignore_index=True)


def _resampled(draws: int, seed: int) -> dict[str, PaperTable]:
    return {
        "statistics": PaperTable(
            "all statistics of every score",
            lambda rows: _of_every_outcome(rows, partial(statistics, draws=draws, seed=seed)),
        ),
        "statistics_concentrated": PaperTable(
            "all statistics of the rewrite score, facts with a concentrated tracing effect",
            lambda rows: statistics(_subset(rows), draws=draws, seed=seed),
        ),
        "verdict": PaperTable(
            "does localization inform editing?",
            lambda rows: localization_informs_editing(rows.joined(), draws=draws, seed=seed),
        ),
    }
