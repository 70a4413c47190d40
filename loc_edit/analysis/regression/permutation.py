"""Tests of the R^2 that the tracing effect adds: profiles dealt to other facts, and signs dealt to residuals."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from loc_edit.analysis.regression.profiles import DEFAULTS, NAN, Profiles, Resampling, Sums, explained

NUMBERS_AT_ONCE = 200_000
"""So many fit a processor's cache."""
FEWEST_CLUSTERS = 10
"""Ten clusters have 1024 patterns of two signs."""
WEBB = np.sqrt([0.5, 1.0, 1.5])
"""With few clusters the signs have sizes too (Webb 2014), so that there are more patterns."""
FEW_CLUSTERS = 13


def permutation_p(profiles: Profiles, resampling: Resampling = DEFAULTS, *, over_relations: bool = True) -> float:
    """The p-value of the added R^2 when whole tracing profiles are dealt to other facts.

    A fact's profile over the layers stays in one piece and each effect stays at its layer, so that neither the layers
    nor the dependence among a fact's rows count as evidence.  Facts of one relation resemble each other in both
    columns, so facts are not exchangeable over relations: a profile is taken apart into its relation's mean, which is
    dealt to whole relations, and its deviation, which is dealt within its relation.  Facts that lack a tracing effect
    at some layer are left out; missing outcomes may stay.

    Args:
        profiles: of one method x problem.
        resampling: draws and seed.
        over_relations: if false, the means stay where they are, and the test is about the facts of each relation.

    Returns:
        (1 + permutations that add as much) / (1 + permutations); NaN with fewer than three facts, a constant outcome,
        or no relation with two facts to deal within.
    """
    profiles = profiles.of_facts(~np.isnan(profiles.trace).any(1))
    if not profiles.usable() or not (over_relations or profiles.has_relations()) or resampling.draws < 1:
        return NAN
    trace = profiles.trace - profiles.trace.mean()
    present = profiles.present.astype(float)
    score = np.where(profiles.present, profiles.score - profiles.score[profiles.present].mean(), 0.0)
    complete = bool(present.all())
    fixed = [present.sum(0), score.sum(0), (score**2).sum(0)]

    def added(dealt: NDArray[np.float64]) -> NDArray[np.float64]:
        """The added R^2 of dealt effects [..., fact, layer]."""
        if complete:
            x, xx = dealt.sum(-2), np.einsum("...fl,...fl->...l", dealt, dealt)
        else:
            x, xx = (dealt * present).sum(-2), (dealt**2 * present).sum(-2)
        xy = np.einsum("...fl,fl->...l", dealt, score)
        n, y, yy = (np.broadcast_to(sums, x.shape) for sums in fixed)
        return np.asarray(explained(np.stack([n, x, y, xx, xy, yy], axis=-2))[1])

    observed = added(trace) - 1e-12
    as_large = [
        (added(dealt) >= observed).sum() for dealt in deals(trace, profiles.relation, resampling, over_relations)
    ]
    return float(1 + sum(as_large)) / (1 + resampling.draws)


def deals(
    values: NDArray[np.float64], relation: NDArray[np.intp], resampling: Resampling, over_relations: bool = True
) -> Iterator[NDArray[np.float64]]:
    """Profiles [fact, layer] dealt to other facts, see `permutation_p`, some at once: [n, fact, layer]."""
    size = np.bincount(relation)
    means = np.zeros((len(size), values.shape[1]))
    np.add.at(means, relation, values)
    means /= size[:, None]
    deviations = values - means[relation]
    rng = np.random.default_rng(resampling.seed)
    at_once = max(1, NUMBERS_AT_ONCE // values.size)
    for start in range(0, resampling.draws, at_once):
        n = min(at_once, resampling.draws - start)
        places = np.argsort(rng.random((n, len(size))), axis=1) if over_relations else np.arange(len(size))[None]
        dealt = means[places][:, relation]
        if size.max() > 1:
            dealt = dealt + deviations[_dealt_within(relation, n, rng)]
        yield dealt


def wild_cluster_p(profiles: Profiles, resampling: Resampling = DEFAULTS) -> float:
    """The p-value of the nested F-test by the wild cluster bootstrap, with the null imposed.

    What the layers' means leave of the scores is multiplied by random signs, one for each cluster of rows (a relation,
    or a fact): under no effect the dependence inside a cluster stays as it is.  Source: Cameron, Gelbach and Miller
    2008; signs of several sizes with few clusters: Webb 2014.

    Returns:
        NaN with fewer than ten clusters or a constant outcome.
    """
    profiles = profiles.known()
    units = profiles.units()
    if not profiles.usable() or units.max(initial=-1) + 1 < FEWEST_CLUSTERS or resampling.draws < 1:
        return NAN
    present = profiles.present
    x, y = (
        np.where(present, a - np.where(present, a, 0.0).sum(0) / np.maximum(1, present.sum(0)), 0.0)
        for a in (profiles.trace, profiles.score)
    )
    by_unit = np.zeros((units.max() + 1, 6, x.shape[1]))
    np.add.at(by_unit, units, np.stack([present, x, y, x * x, x * y, y * y], axis=1).astype(float))
    rng = np.random.default_rng(resampling.seed)
    shape = resampling.draws, len(by_unit)
    signs = rng.choice([-1.0, 1.0], size=shape)
    if len(by_unit) < FEW_CLUSTERS:
        signs *= rng.choice(WEBB, size=shape)
    sums = np.broadcast_to(by_unit.sum(0), (resampling.draws, *by_unit.shape[1:])).copy()
    sums[:, 2], sums[:, 4] = signs @ by_unit[:, 2], signs @ by_unit[:, 4]
    sums[:, 5] = signs**2 @ by_unit[:, 5]
    drawn, observed = Sums.of(sums), Sums.of(by_unit.sum(0))
    partial = (drawn.signal**2).sum(-1) / drawn.rest
    as_large = int((partial >= (observed.signal**2).sum() / observed.rest - 1e-12).sum())
    return (1 + as_large) / (1 + resampling.draws)


def _dealt_within(relation: NDArray[np.intp], n: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """`n` orders of the facts in which each fact's place goes to a fact of the same relation: [n, fact]."""
    order = np.empty((n, len(relation)), dtype=np.intp)
    order[:, np.argsort(relation, kind="stable")] = np.argsort(relation + rng.random((n, len(relation))), axis=1)
    return order
