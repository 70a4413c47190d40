"""How large the effect is: five sizes with intervals, each of which answers another question."""

import numpy as np
from scipy import stats

from loc_edit.analysis.regression.choices import gain_at_peak
from loc_edit.analysis.regression.folds import out_of_sample
from loc_edit.analysis.regression.intervals import (
    DAMPED,
    FISHER,
    Interval,
    jackknife_covariance,
    share_interval,
    t_interval,
)
from loc_edit.analysis.regression.profiles import DEFAULTS, Profiles, Resampling, Sums, explained

SIZES = [
    f"{name}{end}"
    for name in ("added", "partial", "within", "within_r", "out_of_sample", "gain")
    for end in ("_corrected" if name == "added" else "", "_low", "_high")
]
"""The columns of `effect_sizes`, without its p-values."""


def effect_sizes(profiles: Profiles, resampling: Resampling = DEFAULTS) -> dict[str, float]:
    """Five effect sizes of one method x problem, with intervals.

    Each unit that is left out or drawn again is a relation, or a fact; see `Profiles.units`.

    Returns:
        added_corrected: the R^2 that a line per layer adds to the layers' means, without its bias (the study's).
        partial: the same as a share of what the layers' means leave.
        within, within_r: the share, and the correlation, of what both layer and fact leave.
        out_of_sample: the added R^2 on facts that the lines have not seen.
        gain: the mean score of editing at the tracing peak minus that of one layer for all facts.
        Each with _low and _high; p_within and p_gain, two-sided.  NaN with fewer than three facts, a constant outcome
        or a single layer.
    """
    added, partial = shares(profiles, resampling.level)
    within, within_r = within_facts(profiles, resampling.level)
    gain = gain_at_peak(profiles, resampling)
    return (
        {"added_corrected": added.middle, "added_low": added.low, "added_high": added.high}
        | partial.columns("partial")
        | within.columns("within")
        | within_r.columns("within_r")
        | _out_of_sample(profiles, added, resampling).columns("out_of_sample")
        | gain.columns("gain")
        | {"p_within": within_r.p, "p_gain": gain.p}
    )


def shares(profiles: Profiles, level: float = 0.95) -> tuple[Interval, Interval]:
    """The added R^2 and the partial R^2 of a line per layer."""
    if not profiles.usable():
        return Interval(), Interval()
    sums = profiles.sums(profiles.units())
    whole, left_out = Sums.of(sums.sum(0)), Sums.of(sums.sum(0) - sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        added, partial = (
            share_interval(
                whole.signal / np.sqrt(getattr(whole, base)),
                left_out.signal / np.sqrt(getattr(left_out, base))[:, None],
                level,
                scale,
            )
            for base, scale in (("total", DAMPED), ("rest", FISHER))
        )
    return added, partial


def within_facts(profiles: Profiles, level: float = 0.95) -> tuple[Interval, Interval]:
    """The partial R^2 of the tracing effect within facts, with fixed effects of layer and fact, and the correlation.

    Both columns lose each layer's and each fact's mean first, so that neither a shape over the layers that all facts
    share nor a fact that is easy at every layer counts; there is one slope.  The correlation's interval is Student's,
    of Fisher's transformation and the jackknife's standard error.
    """
    profiles = profiles.within_facts()
    if not profiles.usable() or profiles.trace.shape[1] < 2:
        return Interval(), Interval()
    sums = profiles.sums(profiles.units())
    whole, left_out = Sums.of(sums.sum(0)), Sums.of(sums.sum(0) - sums)
    if whole.rest <= 0 or (left_out.rest <= 0).any() or whole.scale == 0:
        return Interval(), Interval()
    r, without = whole.pooled / np.sqrt(whole.rest), left_out.pooled / np.sqrt(left_out.rest)
    z, z_without = (np.arctanh(np.clip(a, -1 + 1e-9, 1 - 1e-9)) for a in (r, without))
    error = np.sqrt(jackknife_covariance(z_without[:, None])[0, 0])
    interval = t_interval(float(z), float(error), len(sums), level)
    middle, low, high = (float(np.tanh(end)) for end in (interval.middle, interval.low, interval.high))
    return share_interval(np.array([r]), without[:, None], level), Interval(middle, low, high, interval.p)


def common_slope(profiles: Profiles, level: float = 0.95) -> Interval:
    """The slope of y ~ C(layer) + trace, with the jackknife's standard error over units (CR3)."""
    if not profiles.usable():
        return Interval()
    sums = profiles.sums(profiles.units())
    whole, left_out = Sums.of(sums.sum(0)), Sums.of(sums.sum(0) - sums)
    if whole.scale == 0 or (left_out.scale == 0).any():
        return Interval()
    slopes = left_out.pooled / left_out.scale
    error = np.sqrt(jackknife_covariance(slopes[:, None])[0, 0])
    return t_interval(float(whole.pooled / whole.scale), float(error), len(sums), level)


def _out_of_sample(profiles: Profiles, added: Interval, resampling: Resampling) -> Interval:
    """The cross-validated added R^2, with the interval of the added R^2 minus the cost of estimating the lines.

    In the sample the lines gain by chance what they lose on other facts, so the cost is half of the difference.  It is
    uncertain itself, as a variance estimated from so many units is, so the lower end allows for the upper limit of such
    a variance, and for twice the cost at least.
    """
    found = out_of_sample(profiles, resampling)
    if not np.isfinite(found):
        return Interval()
    cost = (explained(profiles.sums().sum(0))[1] - found) / 2
    df = int(profiles.units().max())
    most = max(2.0, df / stats.chi2.ppf((1 - resampling.level) / 2, df)) * cost
    return Interval(found, float(min(found, added.low - most)), float(max(found, added.high - cost)))
