"""Resamples whole facts: a bootstrap interval and a permutation test of the R^2 that the tracing effect adds.

The rows of one fact depend on each other, so facts, not rows, are drawn.  The full model, y ~ C(layer) * trace,
is a line per layer; its sums of squares follow from six sums per layer, so that a resample costs one matrix
product instead of a fit.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

NAN = float("nan")


@dataclass(frozen=True)
class Resampling:
    """How facts are resampled.

    Attributes:
        draws: how many resamples or permutations.
        level: coverage of the intervals.
        seed: of the random draws.
    """

    draws: int = 2000
    level: float = 0.95
    seed: int = 0


RESAMPLED = ["added_corrected", "added_low", "added_high", "p_permutation"]
"""The columns of `resampled`."""


@dataclass(frozen=True)
class Profiles:
    """Tracing effects and outcomes of one method x problem as fact x layer; NaN where there is no number."""

    trace: NDArray[np.float64]
    score: NDArray[np.float64]

    @classmethod
    def of(cls, frame: pd.DataFrame, outcome: str = "rewrite", regressor: str = "trace") -> "Profiles":
        """The profiles of the rows of one method x problem."""
        wide = frame.pivot(index="fact_id", columns="layer", values=[regressor, outcome]).astype(float)
        return cls(wide[regressor].to_numpy(float), wide[outcome].to_numpy(float))

    @property
    def present(self) -> NDArray[np.bool_]:
        """Where both are numbers."""
        return ~np.isnan(self.trace) & ~np.isnan(self.score)

    def usable(self) -> bool:
        """Whether resampling makes sense: there are at least three facts, and the outcome varies."""
        scores = self.score[self.present]
        return bool(self.present.any(1).sum() >= 3 and np.ptp(scores) > 0)

    def centered(self) -> "Profiles":
        """The profiles minus their overall means (for accuracy), without the facts that have no number at all."""
        present = self.present[self.present.any(1)]
        trace, score = (np.where(present, a[self.present.any(1)], np.nan) for a in (self.trace, self.score))
        return Profiles(trace - np.nanmean(trace), score - np.nanmean(score))

    def sums(self) -> NDArray[np.float64]:
        """Per fact and layer 1, x, y, xx, xy, yy; zeros where there is no number.  [fact, 6, layer]."""
        x, y = np.nan_to_num(self.trace), np.nan_to_num(self.score)
        products = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
        return np.where(self.present[:, None, :], products, 0.0)


def explained(sums: NDArray[np.float64]) -> tuple[Any, Any]:
    """R^2 of the layer, and the R^2 that a line per layer adds, from sums over facts [..., 6, layer]."""
    n, x, y, xx, xy, yy = np.moveaxis(sums, -2, 0)
    per_row = np.divide(1.0, n, out=np.zeros_like(n), where=n > 0)
    within_xx, within_xy, within_yy = xx - x * x * per_row, xy - x * y * per_row, yy - y * y * per_row
    total = yy.sum(-1) - y.sum(-1) ** 2 / n.sum(-1)
    varies = within_xx > 1e-12 * np.maximum(xx, 1e-12)
    lines = np.divide(within_xy**2, within_xx, out=np.zeros_like(xx), where=varies)
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample whose outcome is constant: NaN
        return 1 - within_yy.sum(-1) / total, lines.sum(-1) / total


def resampled(
    frame: pd.DataFrame, outcome: str, regressor: str, resampling: Resampling, permutations: int | None = None
) -> dict[str, float]:
    """`bootstrap_added` and `permutation_p` of one method x problem; `permutations` instead of `draws` if given."""
    shuffling = replace(resampling, draws=permutations or resampling.draws)
    interval = bootstrap_added(frame, outcome, regressor, resampling)
    return interval | {"p_permutation": permutation_p(frame, outcome, regressor, shuffling)}


def bootstrap_added(
    frame: pd.DataFrame, outcome: str = "rewrite", regressor: str = "trace", resampling: Resampling = Resampling()
) -> dict[str, float]:
    """The added R^2 minus its bias, with an interval, from resampled facts.

    R^2 cannot fall when a regressor joins, so the added R^2 lies above the truth, and in a resample, where facts
    repeat, it lies higher still: near 0 the percentile interval never covers and scipy's BCa rarely does.  The
    bias that resampling shows is therefore subtracted twice from the percentiles (once for the resample, once for
    the sample), and a result below 0 is 0.

    Args:
        frame: rows of one method x problem.
        outcome: the column explained.
        regressor: the column with the tracing effect.
        resampling: draws, level and seed.

    Returns:
        added_corrected, added_low, added_high; NaN with fewer than three facts or a constant outcome.
    """
    profiles = Profiles.of(frame, outcome, regressor)
    if not profiles.usable():
        return {"added_corrected": NAN, "added_low": NAN, "added_high": NAN}
    sums = profiles.centered().sums()
    n = len(sums)

    def added(facts: NDArray[np.intp], axis: int = -1) -> Any:
        return explained(np.tensordot(_counts(facts, n), sums, axes=(-1, 0)))[1]

    result = stats.bootstrap(
        (np.arange(n),),
        added,
        vectorized=True,
        n_resamples=resampling.draws,
        method="percentile",
        rng=np.random.default_rng(resampling.seed),
    )
    drawn = result.bootstrap_distribution
    observed = float(explained(sums.sum(0))[1])
    bias = float(np.nanmean(drawn)) - observed
    tail = (1 - resampling.level) / 2
    low, high = np.nanquantile(drawn, [tail, 1 - tail]) - 2 * bias
    numbers = {"added_corrected": observed - bias, "added_low": float(low), "added_high": float(high)}
    return {name: max(0.0, number) for name, number in numbers.items()}


def permutation_p(
    frame: pd.DataFrame, outcome: str = "rewrite", regressor: str = "trace", resampling: Resampling = Resampling()
) -> float:
    """The p-value of the added R^2 when whole tracing profiles are dealt to other facts.

    A fact's profile over the layers stays in one piece and each effect stays at its layer, so that neither the
    layers nor the dependence among a fact's rows count as evidence.  Facts that lack a tracing effect at some
    layer are left out; missing outcomes may stay.  For the arguments see `bootstrap_added`.
    """
    profiles = Profiles.of(frame, outcome, regressor)
    whole = ~np.isnan(profiles.trace).any(1)
    profiles = Profiles(profiles.trace[whole], profiles.score[whole])
    if not profiles.usable():
        return NAN
    trace = profiles.trace - profiles.trace.mean()
    present = profiles.present.astype(float)
    score = np.nan_to_num(profiles.score - np.nanmean(profiles.score))
    fixed = [present.sum(0), score.sum(0), (score**2).sum(0)]

    def added(order: NDArray[np.intp], axis: int = -1) -> Any:
        dealt = trace[order]  # [..., fact, layer]
        x, xy = (dealt * present).sum(-2), (dealt * score).sum(-2)
        n, y, yy = (np.broadcast_to(sums, x.shape) for sums in fixed)
        return explained(np.stack([n, x, y, (dealt**2 * present).sum(-2), xy, yy], axis=-2))[1]

    result = stats.permutation_test(
        (np.arange(len(trace)),),
        added,
        permutation_type="pairings",
        vectorized=True,
        axis=-1,
        n_resamples=resampling.draws,
        batch=max(1, 2_000_000 // trace.size),
        alternative="greater",
        rng=np.random.default_rng(resampling.seed),
    )
    return float(result.pvalue)


def _counts(facts: NDArray[np.intp], n: int) -> NDArray[np.float64]:
    """How often each of `n` facts occurs in each draw: [..., draw size] -> [..., n]."""
    flat = facts.reshape(-1, facts.shape[-1])
    offsets = np.arange(len(flat))[:, None] * n
    counts = np.bincount((flat + offsets).ravel(), minlength=len(flat) * n)
    return counts.reshape(*facts.shape[:-1], n).astype(float)
