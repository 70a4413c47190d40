"""Where to edit: at the layer where tracing peaks, at one layer for all facts, anywhere, or where it works best."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from loc_edit.analysis.regression.resampling import Profiles
from loc_edit.analysis.tables.rows import RowsMissing as tabled_RowsMissing
from loc_edit.analysis.tables.rows import combinations, in_paper_order, refuse_duplicates, require, without_controls

CHOICES = ("tracing peak", "one layer", "any layer", "oracle")


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
        frame: rows of the regression, see `tables.join`; any number of methods and problems.
        outcome: the score.
        regressor: the column with the tracing effect.
        draws: resamples of facts, for the intervals; 0 leaves them out.
        level: coverage.
        seed: of the resampling.

    Returns:
        A row per problem x method x window x choice: mean, low, high; difference, difference_low, difference_high,
        the mean score less that of `one layer`, fact by fact; share_best, how often the chosen layer is the fact's
        best (or as good); n, facts with a number at every edited layer.

    Raises:
        RowsMissing: no fact of any method x problem has a score at every layer.
    """
    frame = without_controls(frame)
    require(frame, ["fact_id", "layer", outcome, regressor], "rows")
    keys = combinations(frame)
    refuse_duplicates(frame, [*keys, "layer", "fact_id"], "rows")
    found = []
    groups: Any = frame.groupby(keys, sort=False) if keys else [((), frame)]
    for key, rows in groups:
        profiles = Profiles.of(rows, outcome, regressor)
        whole = profiles.present.all(1)
        if whole.any():
            which = dict(zip(keys, key, strict=True)) | {"outcome": outcome}
            found += [
                which | choice
                for choice in _choices(
                    profiles.trace[whole], profiles.score[whole], draws=draws, level=level, seed=seed
                )
            ]
    if not found:
        raise tabled_RowsMissing(f"no fact has a {outcome} score and a tracing effect at every edited layer")
    return in_paper_order(pd.DataFrame(found))


def _choices(
    trace: NDArray[np.float64], score: NDArray[np.float64], *, draws: int, level: float, seed: int
) -> list[dict[str, Any]]:
    """The four choices for facts with whole profiles [fact, layer]."""
    n, facts = len(score), np.arange(len(score))
    others = (score.sum(0) - score) / max(1, n - 1)  # the layers' means without the fact
    best = others.argmax(1) if n > 1 else np.zeros(n, dtype=int)
    values = {
        "tracing peak": score[facts, trace.argmax(1)],
        "one layer": score[facts, best],
        "any layer": score.mean(1),
        "oracle": score.max(1),
    }
    rows = []
    for choice in CHOICES:
        own, difference = values[choice], values[choice] - values["one layer"]
        share = float("nan") if choice == "any layer" else float(np.mean(own >= score.max(1) - 1e-9))
        row = {"choice": choice, "mean": float(own.mean()), "difference": float(difference.mean())}
        row |= dict(zip(("low", "high"), _interval(own, draws, level, seed), strict=True))
        row |= dict(zip(("difference_low", "difference_high"), _interval(difference, draws, level, seed), strict=True))
        rows.append(row | {"share_best": share, "n": n})
    return rows


def _interval(values: NDArray[np.float64], draws: int, level: float, seed: int) -> tuple[float, float]:
    """A percentile interval of the mean over facts."""
    if draws == 0 or len(values) < 3:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=draws, confidence_level=level, method="percentile", rng=rng, batch=500
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
