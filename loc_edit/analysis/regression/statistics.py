"""All statistics side by side, and the answer in words."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from loc_edit.analysis.regression.dependence import clustered, mixed_model, within_facts
from loc_edit.analysis.regression.ols import fits
from loc_edit.analysis.regression.resampling import bootstrap_added, permutation_p
from loc_edit.analysis.tables.localized import of_localizer
from loc_edit.analysis.tables.rows import RowsMissing as tabled_RowsMissing
from loc_edit.analysis.tables.rows import combinations, join, refuse_duplicates, without_controls
from loc_edit.effects import Denominator, Regressor
from loc_edit.names import method_label, problem_label

MEANINGFUL = 0.05
FEWEST = 10
"""Facts below which a verdict would be that of a few facts' intervals."""
CERTAIN = 0.05


def statistics(
    frame: pd.DataFrame,
    outcome: str = "rewrite",
    regressor: str = "trace",
    *,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """The paper's regressions, and beside them what allows for the dependence among a fact's rows.

    Args:
        frame: rows of the regression, see `tables.join`; any number of methods and problems.
        outcome: the column to explain.
        regressor: the column with the tracing effect.
        draws: resamples and permutations.
        level: coverage of the intervals from resampled facts and of the within-fact correlation.
        seed: of the resampling.

    Returns:
        A row per problem x method x window: the columns of `Fit`, `bootstrap_added`, p_permutation, `clustered`,
        `within_facts`, `mixed_model`, and p_holm, p_clustered_holm, p_permutation_holm over the family of rows.
    """

    def of(rows: pd.DataFrame) -> dict[str, Any]:
        return (
            bootstrap_added(rows, outcome, regressor, draws=draws, level=level, seed=seed)
            | {"p_permutation": permutation_p(rows, outcome, regressor, draws=draws, seed=seed)}
            | clustered(rows, outcome, regressor)
            | within_facts(rows, outcome, regressor, level=level)
            | mixed_model(rows, outcome, regressor)
        )

    return _beside_fits(frame, outcome, regressor, of)


def holm(p: pd.Series) -> pd.Series:
    """Holm's correction over a family of p-values; NaN stays NaN and does not count."""
    corrected = p.astype(float)
    known = corrected.notna()
    if known.any():
        corrected[known] = multipletests(corrected[known], method="holm")[1]
    return corrected


def localization_informs_editing(
    frame: pd.DataFrame,
    outcome: str = "rewrite",
    *,
    meaningful: float = MEANINGFUL,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Does the place where a fact seems to be stored tell where to edit it?  The answer per problem x method.

    Args:
        frame: rows of the regression, see `tables.join`.
        outcome: the score that is to be explained.
        meaningful: the share of variance that tracing has to add, beyond the layer, to inform editing.
        draws: resamples and permutations.
        level: coverage of the interval.
        seed: of the resampling.

    Returns:
        problem, method, window, n_facts, r2_layer, r2_trace, r2_both, r2_added, added_corrected, added_low,
        added_high, p_permutation, p_permutation_holm, answer ("yes", "no", "unclear", "cannot say": with fewer than
        `FEWEST` facts, or where a number is missing), verdict.
    """

    def of(rows: pd.DataFrame) -> dict[str, float]:
        found = bootstrap_added(rows, outcome, draws=draws, level=level, seed=seed)
        return found | {"p_permutation": permutation_p(rows, outcome, draws=draws, seed=seed)}

    table = _beside_fits(frame, outcome, "trace", of)
    rows = table.to_dict("records")
    answers = [_answer(row, meaningful) for row in rows]
    table["answer"] = answers
    table["verdict"] = [_verdict(row, a, level) for row, a in zip(rows, answers, strict=True)]
    columns = ["problem", "method", "window", "outcome", "n_facts", "r2_layer", "r2_trace", "r2_both", "r2_added"]
    columns += ["added_corrected", "added_low", "added_high", "p_permutation", "p_permutation_holm"]
    return table[[*columns, "answer", "verdict"]]


def sensitivity(
    edits: pd.DataFrame,
    traces: pd.DataFrame,
    outcome: str = "rewrite",
    *,
    denominators: Iterable[Denominator] = ("clean", "max"),
    regressors: Iterable[Regressor] = ("max", "last_subject"),
) -> pd.DataFrame:
    """`fits` for every window, site, denominator and choice of token that the traces of Causal Tracing allow.

    Returns:
        The rows of `fits` with the columns site, trace_window, denominator, regressor in front.

    Raises:
        RowsMissing: there are no traces, or no edits.
    """
    traces = of_localizer(traces)
    if traces.empty:
        raise tabled_RowsMissing("there are no trace rows")
    parts = []
    for (site, window), cells in traces.groupby(["site", "window"]):
        for denominator in denominators:
            for regressor in regressors:
                frame = join(
                    edits,
                    cells,
                    window=int(str(window)),
                    site=str(site),
                    regressor=regressor,
                    denominator=denominator,
                )
                choice = {
                    "site": site,
                    "trace_window": window,
                    "denominator": denominator,
                    "regressor": regressor,
                }
                part = fits(frame, outcome)
                parts.append(pd.concat([pd.DataFrame([choice] * len(part)), part], axis=1))
    return pd.concat(parts, ignore_index=True)


def _beside_fits(
    frame: pd.DataFrame, outcome: str, regressor: str, of: Callable[[pd.DataFrame], dict[str, Any]]
) -> pd.DataFrame:
    """`fits`, with what `of` makes of each combination's rows beside it, and Holm's correction of every p."""
    found = fits(frame, outcome, regressor)
    frame = without_controls(frame)
    keys = combinations(frame)
    refuse_duplicates(frame, [*keys, "layer", "fact_id"], "rows of the regression")
    groups: dict[Any, pd.DataFrame] = dict(iter(frame.groupby(keys))) if keys else {(): frame}
    more = [of(groups[key]) for key in found[keys].itertuples(index=False, name=None)]
    table = pd.concat([found, pd.DataFrame(more, index=found.index)], axis=1)
    for p in ("p", "p_clustered", "p_permutation"):
        if p in table:
            table[f"{p}_holm"] = holm(table[p])
    return table


def _answer(row: dict[Any, Any], meaningful: float) -> str:
    if row["n_facts"] < FEWEST or np.isnan([row["r2_added"], row["added_high"], row["p_permutation"]]).any():
        return "cannot say"
    if row["added_high"] < meaningful:
        return "no"
    if row["added_low"] >= meaningful and row["p_permutation_holm"] < CERTAIN:
        return "yes"
    return "unclear"


def _verdict(row: dict[Any, Any], answer: str, level: float) -> str:
    who = f"{method_label(str(row['method']), int(row['window']))}, {problem_label(str(row['problem'])).lower()}: "
    if answer == "cannot say":
        few = f"too few facts: {row['n_facts']}, and {FEWEST} are wanted"
        return f"{who}cannot say ({row['reason'] or few})."
    by_chance = row["p_permutation_holm"] >= CERTAIN
    return (
        f"{who}{answer}; the layer explains {row['r2_layer']:.1%} of the variance, tracing adds "
        f"{row['added_corrected']:.1%} ({level:.0%} interval {row['added_low']:.1%} to {row['added_high']:.1%}), "
        f"{'no more than chance would' if by_chance else 'more than chance would'} "
        f"(permutation p = {row['p_permutation_holm']:.2g}, Holm)."
    )
