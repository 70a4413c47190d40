"""Intervals for shares of variance from facts, or relations, left out one at a time.

A share of variance is the squared length of a vector: one number per layer, each of which has an error.  The error
makes the vector longer, so the share lies above the truth, most of all near 0, where percentiles of resampled shares
never cover.  The interval therefore asks of each true share whether the observed one would be unusual under it, as the
noncentral F does for one regression with independent errors (Steiger and Fouladi 1997), with the covariance of the
errors from the jackknife: the rows of a unit may depend on each other in any way.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

NAN = float("nan")
ERRORS = 4000
"""Draws of the error; a fixed sample, so that a share has one interval."""
TOWARD_NOISE = 3.0
"""How far, in standard errors, the assumed direction of the truth leans toward the direction of the largest error."""
DAMPING = 0.3
"""The length up to which the scale of a share of the total is nearly linear; beyond, it is a logarithm."""
FEWEST_UNITS = 3


@dataclass(frozen=True)
class Scale:
    """A scale of the length of a vector on which its error is nearly the same at every length.

    Attributes:
        there: takes lengths to the scale.
        back: takes a number on the scale back to a length.
    """

    there: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    back: Callable[[float], float]


FISHER = Scale(lambda lengths: np.arctanh(np.minimum(lengths, 1 - 1e-9)), np.tanh)
"""Fisher's transformation: of a share of what is left, whose length is a correlation."""
DAMPED = Scale(lambda lengths: DAMPING * np.log1p(lengths / DAMPING), lambda x: DAMPING * np.expm1(x / DAMPING))
"""Of a share of the total, which the error of the total makes more uncertain the longer it is.  Both this scale and the
damping were chosen by the simulation (docs/statistics.md)."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its bounds.

    Attributes:
        middle: the estimate, which a share of variance exceeds and misses equally often (without its bias).
        low: lower bound.
        high: upper bound.
        p: two-sided p against 0, of a signed estimate; else NaN.
    """

    middle: float = NAN
    low: float = NAN
    high: float = NAN
    p: float = NAN

    def columns(self, name: str) -> dict[str, float]:
        """`name`, `name_low` and `name_high`."""
        return {name: self.middle, f"{name}_low": self.low, f"{name}_high": self.high}


def jackknife_covariance(left_out: NDArray[np.float64]) -> NDArray[np.float64]:
    """The covariance of an estimate from the estimates without one unit each.

    With units that are clusters of rows this is the cluster-robust estimator CR3, which errs on the safe side with few
    clusters (MacKinnon, Nielsen and Webb 2023).

    Args:
        left_out: [unit, q].

    Returns:
        [q, q].
    """
    deviations = left_out - left_out.mean(0)
    return np.asarray((len(left_out) - 1) / len(left_out) * deviations.T @ deviations)


def t_interval(estimate: float, error: float, n_units: int, level: float = 0.95) -> Interval:
    """Student's interval of an estimate with its standard error from so many units."""
    if n_units < FEWEST_UNITS or not np.isfinite([estimate, error]).all():
        return Interval()
    half = stats.t.ppf((1 + level) / 2, n_units - 1) * error
    p = float(2 * stats.t.sf(abs(estimate) / error, n_units - 1)) if error > 0 else NAN
    return Interval(float(estimate), float(estimate - half), float(estimate + half), p)


def share_interval(
    vector: NDArray[np.float64], left_out: NDArray[np.float64], level: float = 0.95, scale: Scale = FISHER
) -> Interval:
    """The interval of a share of variance.

    Args:
        vector: [q]; the sum of its squares is the share.
        left_out: [unit, q], the same without one unit each.
        level: coverage; each end misses the truth in half of the rest.
        scale: on which the errors are taken.
    """
    if len(left_out) < FEWEST_UNITS or not (np.isfinite(vector).all() and np.isfinite(left_out).all()):
        return Interval()
    stretched = _stretched(vector, scale)
    size, directions = np.linalg.eigh(jackknife_covariance(_stretched(left_out, scale)))
    spread = directions * np.sqrt(np.maximum(size, 0.0))
    errors = _draws(len(vector), len(left_out) - 1) @ spread.T
    noisiest = spread[:, -1] * (1.0 if spread[:, -1] @ stretched >= 0 else -1.0)
    truth = stretched + TOWARD_NOISE * noisiest
    tail = (1 - level) / 2
    bounds = [_length(stretched, truth, errors, share) for share in (0.5, 1 - tail, tail)]
    return Interval(*(min(1.0, float(scale.back(bound) ** 2)) for bound in bounds))


def _length(
    vector: NDArray[np.float64], truth: NDArray[np.float64], errors: NDArray[np.float64], share: float
) -> float:
    """How long the truth must be for `share` of the vectors truth + error to be no longer than the observed one."""
    observed, toward, sizes = vector @ vector, errors @ truth, (errors**2).sum(1)
    length = float(np.sqrt(truth @ truth))

    def shorter(factor: float) -> float:
        return float(np.mean(factor**2 * length**2 + 2 * factor * toward + sizes <= observed))

    if length == 0 or shorter(0.0) <= share:
        return 0.0
    low, high = 0.0, 1.0
    while shorter(high) > share:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if shorter(middle) > share else (low, middle)
    return high * length


def _stretched(vectors: NDArray[np.float64], scale: Scale) -> NDArray[np.float64]:
    """The vectors [..., q] in the same directions, with their lengths taken to the scale."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    factors = np.divide(scale.there(lengths), lengths, out=np.ones_like(lengths), where=lengths > 1e-12)
    return np.asarray(vectors * factors)


def _draws(q: int, df: int) -> NDArray[np.float64]:
    """Errors of unit covariance with Student's tails, [ERRORS, q]."""
    rng = np.random.default_rng(0)
    return np.asarray(rng.normal(size=(ERRORS, q)) * np.sqrt(df / rng.chisquare(df, size=(ERRORS, 1))))
