"""Computes all statistics of a run side by side, and answers in words whether localization informs editing."""

from collections.abc import Callable
from itertools import product
from typing import Any, get_args

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from loc_edit.analysis.regression.dependence import clustered, mixed_model, within_facts
from loc_edit.analysis.regression.ols import fits, fits_beside
from loc_edit.analysis.regression.resampling import RESAMPLED, Resampling, resampled
from loc_edit.analysis.tables.localized import of_localizer
from loc_edit.analysis.tables.rows import EffectDefinition, RowsMissing, join, refuse_repeated_edits
from loc_edit.effects import Denominator, Regressor
from loc_edit.names import method_label, problem_label

MEANINGFUL = 0.05
"""The share of the variance that tracing has to add beyond the layer to inform editing."""
FEWEST = 10
"""The least number of facts for a verdict."""
CERTAIN = 0.05
"""The corrected p-value below which an effect counts as more than chance."""
ADDED = ["r2_layer", "r2_trace", "r2_both", "r2_added", *RESAMPLED, "p_permutation_holm"]
"""The columns on the R^2 that the tracing effect adds."""


def statistics(
    frame: pd.DataFrame,
    outcome: str = "rewrite",
    regressor: str = "trace",
    *,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """The paper's regressions, and beside them statistics that allow for the dependence among a fact's rows.

    Args:
        frame: rows of the regression, see `Run.frame`; any number of methods and problems.
        outcome: the column to explain.
        regressor: the column with the tracing effect.
        draws: resamples and permutations.
        level: coverage of the intervals from resampled facts and of the within-fact correlation.
        seed: of the resampling.

    Returns:
        A row per problem x method x window: the columns of `Fit`, `bootstrap_added`, p_permutation, `clustered`,
        `within_facts`, `mixed_model`, and p_holm, p_clustered_holm, p_permutation_holm over the family of rows.
    """

    def dependent(rows: pd.DataFrame) -> dict[str, Any]:
        return (
            resampled(rows, outcome, regressor, Resampling(draws, level, seed))
            | clustered(rows, outcome, regressor)
            | within_facts(rows, outcome, regressor, level)
            | mixed_model(rows, outcome, regressor)
        )

    return _fits_and_holm(frame, outcome, regressor, dependent)


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
    """Does the place where a fact seems to be stored tell us where to edit it?  The answer per problem x method.

    Args:
        frame: rows of the regression, see `Run.frame`.
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
    resampling = Resampling(draws, level, seed)
    table = _fits_and_holm(frame, outcome, "trace", lambda rows: resampled(rows, outcome, "trace", resampling))
    rows = table.to_dict("records")
    table["answer"] = [_answer(row, meaningful) for row in rows]
    table["verdict"] = [_verdict(row, answer, level) for row, answer in zip(rows, table["answer"], strict=True)]
    return table[["problem", "method", "window", "outcome", "n_facts", *ADDED, "answer", "verdict"]]


def sensitivity(edits: pd.DataFrame, traces: pd.DataFrame, outcome: str = "rewrite") -> pd.DataFrame:
    """`fits` for every window, site, denominator and choice of token that the traces of Causal Tracing allow.

    Returns:
        The rows of `fits` with the columns site, trace_window, denominator, regressor in front.

    Raises:
        RowsMissing: there are no traces, or no edits.
    """
    traces = of_localizer(traces)
    if traces.empty:
        raise RowsMissing("there are no trace rows")
    parts = []
    for (site, window), cells in traces.groupby(["site", "window"]):
        for denominator, regressor in product(get_args(Denominator), get_args(Regressor)):
            part = fits(
                join(edits, cells, EffectDefinition(int(str(window)), str(site), regressor, denominator)), outcome
            )
            names = {"site": site, "trace_window": window, "denominator": denominator, "regressor": regressor}
            parts.append(pd.concat([pd.DataFrame([names] * len(part)), part], axis=1))
    return pd.concat(parts, ignore_index=True)


def _fits_and_holm(
    frame: pd.DataFrame, outcome: str, regressor: str, more: Callable[[pd.DataFrame], dict[str, Any]]
) -> pd.DataFrame:
    """`fits_beside`, and Holm's correction of every p."""
    refuse_repeated_edits(frame, "rows of the regression")
    table = fits_beside(frame, outcome, regressor, more)
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
    combination = (
        f"{method_label(str(row['method']), int(row['window']))}, {problem_label(str(row['problem'])).lower()}: "
    )
    if answer == "cannot say":
        few = f"too few facts: expected at least {FEWEST}, got {row['n_facts']}"
        return f"{combination}cannot say ({row['reason'] or few})."
    than_chance = "no more than chance would" if row["p_permutation_holm"] >= CERTAIN else "more than chance would"
    return (
        f"{combination}{answer}; the layer explains {row['r2_layer']:.1%} of the variance, tracing adds "
        f"{row['added_corrected']:.1%} ({level:.0%} interval {row['added_low']:.1%} to {row['added_high']:.1%}), "
        f"{than_chance} (permutation p = {row['p_permutation_holm']:.2g}, Holm)."
    )
