"""Compares ways to choose the layer to edit: the tracing peak, one layer for all facts, any layer, the best layer."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from loc_edit.analysis.regression.resampling import NAN, Profiles, Resampling
from loc_edit.analysis.tables.rows import RowsMissing, by_combination, in_paper_order, refuse_repeated_edits, require


def layer_choices(
    frame: pd.DataFrame,
    outcome: str = "rewrite",
    regressor: str = "trace",
    *,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """The mean score of editing each fact at a layer chosen in one of four ways.

    `tracing peak`: the layer of the fact's largest tracing effect (the lowest of several).  `one layer`: the layer
    that is best on average for the other facts, which is what a user can know before editing.  `any layer`: the mean
    over all.  `oracle`: the fact's best layer, which nobody knows.

    Args:
        frame: rows of the regression, see `Run.frame`; any number of methods and problems.
        outcome: the score.
        regressor: the column with the tracing effect.
        draws: resamples of facts, for the intervals; 0 leaves them out.
        level: coverage.
        seed: of the resampling.

    Returns:
        A row per problem x method x window x choice: mean, low, high; difference, difference_low, difference_high:
        the mean score minus the score of `one layer`, fact by fact; share_best: how often the chosen layer is the
        fact's best (or as good); n: the facts with a number at every edited layer.

    Raises:
        RowsMissing: no fact of any method x problem has a score at every layer.
    """
    require(frame, ["fact_id", "layer", outcome, regressor], "rows")
    refuse_repeated_edits(frame, "rows")
    table = []
    for key, rows in by_combination(frame):
        profiles = Profiles.of(rows, outcome, regressor)
        whole = profiles.present.all(1)
        if whole.any():
            choices = _choices(profiles.trace[whole], profiles.score[whole], Resampling(draws, level, seed))
            table += [key | {"outcome": outcome} | choice for choice in choices]
    if not table:
        raise RowsMissing(f"no fact has a {outcome} score and a tracing effect at every edited layer")
    return in_paper_order(pd.DataFrame(table))


def _choices(trace: NDArray[np.float64], score: NDArray[np.float64], resampling: Resampling) -> list[dict[str, Any]]:
    """The four choices for facts with whole profiles [fact, layer]."""
    n, facts = len(score), np.arange(len(score))
    others = (score.sum(0) - score) / max(1, n - 1)  # the layers' means without the fact
    best_of_others = others.argmax(1) if n > 1 else np.zeros(n, dtype=int)
    scores = {
        "tracing peak": score[facts, trace.argmax(1)],
        "one layer": score[facts, best_of_others],
        "any layer": score.mean(1),
        "oracle": score.max(1),
    }
    rows = []
    for choice, own in scores.items():
        difference = own - scores["one layer"]
        row = {"choice": choice, "mean": float(own.mean()), "difference": float(difference.mean())}
        row["low"], row["high"] = _interval(own, resampling)
        row["difference_low"], row["difference_high"] = _interval(difference, resampling)
        row["share_best"] = NAN if choice == "any layer" else float(np.mean(own >= score.max(1) - 1e-9))
        rows.append(row | {"n": n})
    return rows


def _interval(values: NDArray[np.float64], resampling: Resampling) -> tuple[float, float]:
    """A percentile interval of the mean over facts."""
    if resampling.draws == 0 or len(values) < 3:
        return NAN, NAN
    interval = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=resampling.draws,
        confidence_level=resampling.level,
        method="percentile",
        rng=np.random.default_rng(resampling.seed),
        batch=500,
    ).confidence_interval
    return float(interval.low), float(interval.high)
