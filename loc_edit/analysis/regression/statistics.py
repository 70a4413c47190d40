"""Computes all statistics of a run side by side: the study's regressions, effect sizes with intervals, and tests."""

from itertools import product
from typing import Any, get_args

import numpy as np
import pandas as pd

from loc_edit.analysis.regression.effect_sizes import SIZES, common_slope, effect_sizes
from loc_edit.analysis.regression.ols import fits, fits_beside
from loc_edit.analysis.regression.permutation import FEWEST_CLUSTERS, permutation_p, wild_cluster_p
from loc_edit.analysis.regression.profiles import FEWEST_RELATIONS, NAN, Profiles, Resampling
from loc_edit.analysis.tables.localized import of_localizer
from loc_edit.analysis.tables.rows import (
    EffectDefinition,
    RowsMissing,
    by_combination,
    join,
    refuse_repeated_edits,
)
from loc_edit.analysis.tables.summaries import holm
from loc_edit.effects import Denominator, Regressor

SHUFFLES = 40
"""The least number of permutations for each row of a table: Holm multiplies the smallest p by the number of rows."""


def statistics(
    frame: pd.DataFrame,
    outcome: str = "rewrite",
    regressor: str = "trace",
    *,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """The paper's regressions, and beside them what allows for the dependence among the rows of a fact or relation.

    Args:
        frame: rows of the regression, see `Run.frame`; any number of methods and problems.
        outcome: the column to explain.
        regressor: the column with the tracing effect.
        draws: resamples and permutations; there are at least `SHUFFLES` permutations per row of the table.
        level: coverage of the intervals.
        seed: of the resampling.

    Returns:
        A row per problem x method x window: the columns of `Fit` and `effect_sizes`; p_permutation and
        p_within_relations (`permutation_p`); p_clustered (`wild_cluster_p`); slope, slope_low, slope_high, p_slope
        (`common_slope`); n_relations, and the unit of the intervals, "relation" or "fact"; dependence_note: why one of
        them is NaN or what it does not cover; and of every p Holm's correction over the rows of the table, `p_holm`,
        `p_permutation_holm` and so on.
    """
    shuffles = max(draws, SHUFFLES * len(by_combination(frame)))

    def dependent(rows: pd.DataFrame) -> dict[str, Any]:
        profiles = Profiles.of(rows, outcome, regressor)
        slope = common_slope(profiles, level)
        return (
            effect_sizes(profiles, Resampling(draws, level, seed))
            | tests(profiles, Resampling(shuffles, level, seed))
            | slope.columns("slope")
            | {"p_slope": slope.p}
            | dependence(profiles)
        )

    refuse_repeated_edits(frame, "rows of the regression")
    table = fits_beside(frame, outcome, regressor, dependent)
    unknown = table["r2_added"].isna()  # with one layer only, for example
    table.loc[unknown, [name for name in table if name in SIZES or str(name).startswith("p_")]] = NAN
    return with_holm(table)


def tests(profiles: Profiles, resampling: Resampling) -> dict[str, float]:
    """The tests of no effect that hold whatever the dependence inside a fact and inside a relation."""
    return {
        "p_permutation": permutation_p(profiles, resampling),
        "p_within_relations": permutation_p(profiles, resampling, over_relations=False),
        "p_clustered": wild_cluster_p(profiles, resampling),
    }


def dependence(profiles: Profiles) -> dict[str, Any]:
    """How many relations there are, what the unit of the intervals is, and what that means."""
    profiles = profiles.known()
    n_facts, n_relations = len(profiles.trace), len(np.unique(profiles.relation))
    alone = n_relations == n_facts
    by_relation = not alone and n_relations >= FEWEST_RELATIONS
    notes = []
    if not alone and not by_relation:
        notes.append(f"relations: expected at least {FEWEST_RELATIONS}, got {n_relations}; the units are facts")
    if min(n_facts, n_relations if by_relation else n_facts) < FEWEST_CLUSTERS:
        notes.append(f"clustered test: expected at least {FEWEST_CLUSTERS} facts or relations")
    return {
        "n_relations": 0 if alone else n_relations,
        "unit": "relation" if by_relation else "fact",
        "dependence_note": "; ".join(notes),
    }


def with_holm(table: pd.DataFrame) -> pd.DataFrame:
    """The table with Holm's correction, over its rows, beside every column of p-values."""
    columns = [str(name) for name in table if name == "p" or str(name).startswith("p_")]
    return table.assign(**{f"{name}_holm": holm(table[name]) for name in columns})


def sensitivity(edits: pd.DataFrame, traces: pd.DataFrame, outcome: str = "rewrite") -> pd.DataFrame:
    """`fits` for every window, site, denominator and choice of token that the traces of Causal Tracing allow.

    Returns:
        The rows of `fits` with the columns site, trace_window, denominator, regressor in front, and p_holm over all.

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
    return with_holm(pd.concat(parts, ignore_index=True))
