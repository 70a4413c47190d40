"""Compares ways to choose the layer to edit: the tracing peak, one layer for all facts, any layer, the best layer."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from loc_edit.analysis.regression.folds import TIE, chosen_by_others, splits
from loc_edit.analysis.regression.intervals import FEWEST_UNITS, Interval, t_interval
from loc_edit.analysis.regression.profiles import DEFAULTS, NAN, Profiles, Resampling
from loc_edit.analysis.tables.rows import RowsMissing, by_combination, in_paper_order, refuse_repeated_edits, require

PEAK, ONE, ANY, ORACLE = "tracing peak", "one layer", "any layer", "oracle"


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

    `tracing peak`: the layer of the fact's largest tracing effect.  `one layer`: the layer that is best on average for
    facts of other folds (repeated K-fold cross-validation), which is what a user can know before editing.  `any layer`:
    the mean over all.  `oracle`: the fact's best layer, which nobody knows; it is the largest of several noisy scores,
    so part of its lead is luck, and editing there again would give less.  Layers that tie share the choice.

    Intervals are Student's, with the standard error of resampled facts (or relations, see `Profiles.units`); the one
    layer is chosen again in every resample.

    Args:
        frame: rows of the regression, see `Run.frame`; any number of methods and problems.
        outcome: the score.
        regressor: the column with the tracing effect.
        draws: resamples, for the intervals; 0 leaves them out.
        level: coverage.
        seed: of the folds and the resampling.

    Returns:
        A row per problem x method x window x choice: mean, low, high; difference, difference_low, difference_high:
        how much better the mean score is than that of `one layer`; share_best: how often the chosen layer is the
        fact's best (or as good); n: the facts with a number at every edited layer.

    Raises:
        RowsMissing: no fact of any method x problem has a score at every layer.
    """
    require(frame, ["fact_id", "layer", outcome, regressor], "rows")
    refuse_repeated_edits(frame, "rows")
    table = []
    for key, rows in by_combination(frame):
        profiles = Profiles.of(rows, outcome, regressor).whole()
        if len(profiles.trace):
            choices = _choices(profiles, Resampling(draws, level, seed))
            table += [key | {"outcome": outcome} | choice for choice in choices]
    if not table:
        raise RowsMissing(f"no fact has a {outcome} score and a tracing effect at every edited layer")
    return in_paper_order(pd.DataFrame(table))


def gain_at_peak(profiles: Profiles, resampling: Resampling = DEFAULTS) -> Interval:
    """The mean score at the tracing peak minus that at the one layer that other facts choose; above 0 is better."""
    profiles = profiles.whole()
    if len(profiles.trace) < 3 or profiles.trace.shape[1] < 2:
        return Interval()
    own, weights = _own_scores(profiles)[PEAK], _weights(profiles, resampling)
    one, _ = chosen_by_others(profiles.sign * profiles.score, splits(profiles.units(), resampling.seed), weights)
    return _interval(weights @ own / weights.sum(1) - one, profiles, resampling)


def _choices(profiles: Profiles, resampling: Resampling) -> list[dict[str, Any]]:
    """The four choices for facts with whole profiles."""
    score, weights = profiles.sign * profiles.score, _weights(profiles, resampling)
    best = score >= score.max(1, keepdims=True) - TIE
    own = _own_scores(profiles)
    means = {choice: weights @ scores / weights.sum(1) for choice, scores in own.items()}
    means[ONE], chosen = chosen_by_others(score, splits(profiles.units(), resampling.seed), weights)
    shares = {PEAK: peak_shares(profiles.trace), ONE: chosen, ORACLE: best / best.sum(1, keepdims=True)}
    rows = []
    for choice in (PEAK, ONE, ANY, ORACLE):
        mean = _interval(profiles.sign * means[choice], profiles, resampling)
        difference = _interval(means[choice] - means[ONE], profiles, resampling)
        share = float((shares[choice] * best).sum(1).mean()) if choice in shares else NAN
        rows.append(
            {"choice": choice}
            | {"mean": mean.middle, "difference": difference.middle, "low": mean.low, "high": mean.high}
            | {"difference_low": difference.low, "difference_high": difference.high}
            | {"share_best": share, "n": len(score)}
        )
    return rows


def _own_scores(profiles: Profiles) -> dict[str, NDArray[np.float64]]:
    """Each fact's score, more is better, under the choices that do not depend on other facts."""
    score = profiles.sign * profiles.score
    return {PEAK: (peak_shares(profiles.trace) * score).sum(1), ANY: score.mean(1), ORACLE: score.max(1)}


def peak_shares(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of each column in its row's peak: 1 at the peak, or equal shares of several."""
    peak = values >= values.max(1, keepdims=True)
    return np.asarray(peak / peak.sum(1, keepdims=True))


def _weights(profiles: Profiles, resampling: Resampling) -> NDArray[np.float64]:
    """How often each fact is drawn, [1 + draws, fact]: once each, then units (relations or facts) drawn again."""
    units = profiles.units()
    n = int(units.max()) + 1
    rng = np.random.default_rng(resampling.seed)
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=resampling.draws)
    return np.concatenate([np.ones((1, n)), drawn])[:, units]


def _interval(means: NDArray[np.float64], profiles: Profiles, resampling: Resampling) -> Interval:
    """Of the first mean, with the deviation of the others as its standard error."""
    n_units, middle = int(profiles.units().max()) + 1, float(means[0])
    if n_units < FEWEST_UNITS or resampling.draws < 2:
        return Interval(middle)
    return t_interval(middle, float(means[1:].std()), n_units, resampling.level)
