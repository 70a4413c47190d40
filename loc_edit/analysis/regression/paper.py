"""Lists the paper's tables by name, and writes all of them, with the statistics beside them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

from loc_edit.analysis.regression.ols import fits
from loc_edit.analysis.regression.other_models import other_models
from loc_edit.analysis.regression.statistics import sensitivity, statistics
from loc_edit.analysis.regression.verdict import verdicts
from loc_edit.analysis.tables.paper import (
    PaperTable,
    beside_paper,
    make_each,
    r2_table,
    table_1,
    with_paper_layers,
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
    "sensitivity": PaperTable(
        "R^2 for each window, site, denominator and choice of token", lambda rows: sensitivity(rows.edits, rows.traces)
    ),
}


def write_tables(
    rows: StudyRows, folder: Path | str, *, draws: int = 2000, seed: int = 0, compare_paper: bool = False
) -> tuple[dict[str, list[Path]], dict[str, str]]:
    """Writes every table of the paper that the rows allow, as CSV, LaTeX and Markdown.

    Args:
        rows: of a run.
        folder: where `<name>.csv`, `.tex` and `.md` go.
        draws: resamples and permutations for the tables of statistics and of the verdict; 0 leaves these out.
        seed: of the resampling.
        compare_paper: also set our R^2 beside the study's, which are GPT-J's.

    Returns:
        The paths written, by table, and for tables that cannot be made, the reason.
    """
    tables = TABLES | (resampled_tables(draws, seed) if draws else {})
    if compare_paper:
        tables["compare_paper"] = PaperTable("R^2 of every score beside the study's", _beside_paper)
    return make_each(tables, lambda name, table: write_table(table.build(rows), folder, name))


def resampled_tables(draws: int = 2000, seed: int = 0) -> dict[str, PaperTable]:
    """The tables that need permutations and resamples; the statistics are computed once for all of them.

    A family of p-values, over which Holm corrects, is all problems and methods for one score, as in the paper's tables.
    """
    compute = partial(statistics, draws=draws, seed=seed)
    computed: list[tuple[StudyRows, pd.DataFrame]] = []

    def of_every_score(rows: StudyRows) -> pd.DataFrame:
        if not computed or computed[0][0] is not rows:
            computed[:] = [(rows, _of_every_outcome(compute, rows))]
        return computed[0][1]

    return {
        "statistics": PaperTable("all statistics of every score", of_every_score),
        "statistics_concentrated": PaperTable(
            "all statistics of the rewrite score, facts with a concentrated tracing effect",
            lambda rows: compute(_concentrated(rows)),
        ),
        "verdict": PaperTable(
            "does localization inform editing? effect sizes and answers of every score",
            lambda rows: verdicts(of_every_score(rows)),
        ),
        "sensitivity": PaperTable(
            "R^2 for each window, site, denominator and choice of token, and other models",
            partial(_sensitivity, draws=draws, seed=seed),
        ),
    }


def _sensitivity(rows: StudyRows, draws: int, seed: int) -> pd.DataFrame:
    """The study's model for every choice, and other models for the main one."""
    choices = sensitivity(rows.edits, rows.traces).assign(model="line per layer")
    main = {"site": rows.site, "trace_window": rows.window, "denominator": "clean", "regressor": "max"}
    lines = other_models(rows.joined(), draws=draws, seed=seed).assign(**main)
    return pd.concat([choices, lines], ignore_index=True).set_index([*main, "model"]).reset_index()
