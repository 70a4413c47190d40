"""Lists the paper's tables by name, and writes all of them, with the statistics beside them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

from loc_edit.analysis.regression.choices import layer_choices
from loc_edit.analysis.regression.ols import fits
from loc_edit.analysis.regression.statistics import localization_informs_editing, sensitivity, statistics
from loc_edit.analysis.tables.paper import (
    PaperTable,
    beside_paper,
    r2_table,
    table_1,
    with_paper_layers,
    write_each,
    write_table,
)
from loc_edit.analysis.tables.rows import RowsMissing, StudyRows
from loc_edit.analysis.tables.summaries import concentrated_facts, layer_correlations
from loc_edit.names import SCORES


def _r2_table_of(outcome: str, rows: StudyRows) -> pd.DataFrame:
    frame = rows.joined()
    if outcome not in frame or frame[outcome].isna().all():
        raise RowsMissing(f"no {outcome} scores in the edit rows")
    return r2_table(fits(frame, outcome))


def _concentrated(rows: StudyRows) -> pd.DataFrame:
    """The rows of the facts with a concentrated tracing effect."""
    frame = rows.joined()
    subset = frame[frame["fact_id"].isin(concentrated_facts(rows.by_layer()))]
    if subset.empty:
        raise RowsMissing("no edited fact has a concentrated tracing effect")
    return subset


def _beside_paper(rows: StudyRows) -> pd.DataFrame:
    """Our R^2 beside the study's: of all facts, and of those with a concentrated tracing effect (its Table 2)."""
    try:
        concentrated = fits(_concentrated(rows))
    except RowsMissing:
        concentrated = None
    return beside_paper(_of_every_outcome(fits, rows), concentrated)


def _of_every_outcome(build: Callable[[pd.DataFrame, str], pd.DataFrame], rows: StudyRows) -> pd.DataFrame:
    frame = rows.joined()
    outcomes = [name for name in SCORES if name in frame and frame[name].notna().any()]
    if not outcomes:
        raise RowsMissing("no finished edit has a score")
    return pd.concat([build(frame, outcome) for outcome in outcomes], ignore_index=True)


TABLES: dict[str, PaperTable] = {
    "table_1": PaperTable("R^2 of ROME's rewrite score", lambda rows: table_1(fits(rows.joined()))),
    "table_2": PaperTable(
        "R^2 of the rewrite score, facts with a concentrated tracing effect",
        lambda rows: r2_table(fits(_concentrated(rows))),
    ),
    "table_3": PaperTable("R^2 of the rewrite score", partial(_r2_table_of, "rewrite")),
    "table_4": PaperTable("R^2 of the paraphrase score", partial(_r2_table_of, "paraphrase")),
    "table_5": PaperTable("R^2 of the neighborhood score", partial(_r2_table_of, "neighborhood")),
    "table_6": PaperTable("R^2 of the overall score", partial(_r2_table_of, "overall")),
    "layer_correlations": PaperTable(
        "correlation of tracing effect and rewrite score, per layer",
        lambda rows: with_paper_layers(layer_correlations(rows.joined())),
    ),
    "layer_choices": PaperTable("where to edit", lambda rows: layer_choices(rows.joined())),
    "sensitivity": PaperTable(
        "R^2 for each window, site, denominator and choice of token", lambda rows: sensitivity(rows.edits, rows.traces)
    ),
}


def write_tables(
    rows: StudyRows, folder: Path | str, *, draws: int = 2000, compare_paper: bool = False
) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Writes every table of the paper that the rows allow, as CSV, LaTeX and Markdown.

    Args:
        rows: of a run.
        folder: where `<name>.csv`, `.tex` and `.md` go.
        draws: resamples and permutations for the tables of statistics and of the verdict; 0 leaves these out.
        compare_paper: also set our R^2 beside the study's, which are GPT-J's.

    Returns:
        The paths written, by table, and for tables that cannot be made, the reason.
    """
    tables = TABLES | (_resampled_tables(draws) if draws else {})
    if compare_paper:
        tables["compare_paper"] = PaperTable("R^2 of every score beside the study's", _beside_paper)
    return write_each(tables, lambda name, table: write_table(table.build(rows), folder, name))


def _resampled_tables(draws: int) -> dict[str, PaperTable]:
    return {
        "statistics": PaperTable(
            "all statistics of every score", partial(_of_every_outcome, partial(statistics, draws=draws))
        ),
        "statistics_concentrated": PaperTable(
            "all statistics of the rewrite score, facts with a concentrated tracing effect",
            lambda rows: statistics(_concentrated(rows), draws=draws),
        ),
        "verdict": PaperTable(
            "does localization inform editing?",
            lambda rows: localization_informs_editing(rows.joined(), draws=draws),
        ),
    }
