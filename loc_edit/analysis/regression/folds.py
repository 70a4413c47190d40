"""Cross-validation: what lines that other facts gave are worth, and which layer other facts would choose."""

import numpy as np
from numpy.typing import NDArray

from loc_edit.analysis.regression.profiles import DEFAULTS, NAN, Profiles, Resampling, Sums

FOLDS = 10
REPEATS = 10
"""How often the units are split into folds anew."""
TIE = 1e-9
"""Scores that differ by no more than this are equal."""


def splits(units: NDArray[np.intp], seed: int) -> NDArray[np.intp]:
    """The fold of each fact in each repeat, [repeat, fact]; with few units each is a fold.

    Args:
        units: the number of each fact's unit, from 0, see `Profiles.units`: the facts of a relation are in one fold, as
            they would tell about each other.
        seed: of the folds.
    """
    rng = np.random.default_rng(seed)
    n_units = int(units.max()) + 1
    folds = np.arange(n_units) % min(FOLDS, n_units)
    return np.stack([rng.permutation(folds)[units] for _ in range(REPEATS)])


def out_of_sample(profiles: Profiles, resampling: Resampling = DEFAULTS) -> float:
    """The added R^2 on facts that the lines have not seen: repeated K-fold cross-validation over units.

    It is the squared error of the layers' means minus that of a line per layer, both from the other folds, over the
    sum of squares around the mean of all.  Below 0 the lines do harm.

    Returns:
        NaN with fewer than three facts, a constant outcome, or a layer that some fold alone has.
    """
    profiles = profiles.known()
    if not profiles.usable():
        return NAN
    present, sums = profiles.present, profiles.sums()
    x, y = (np.where(present, a - a[present].mean(), 0.0) for a in (profiles.trace, profiles.score))
    better = 0.0
    for fold in splits(profiles.units(), resampling.seed):
        held_out = np.zeros((fold.max() + 1, *sums.shape[1:]))
        np.add.at(held_out, fold, sums)
        others = sums.sum(0) - held_out
        n, sum_x, sum_y, sum_xx, sum_xy, _ = np.moveaxis(others, -2, 0)
        if (n < 2).any():
            return NAN
        mean_x, mean_y, spread = sum_x / n, sum_y / n, sum_xx - sum_x**2 / n
        slope = np.divide(sum_xy - sum_x * mean_y, spread, out=np.zeros_like(n), where=spread > 1e-12 * sum_xx)
        by_layer = y - mean_y[fold]
        by_line = by_layer - slope[fold] * (x - mean_x[fold])
        better += ((by_layer**2 - by_line**2) * present).sum()
    return float(better / REPEATS / Sums.of(sums.sum(0)).total)


def chosen_by_others(
    score: NDArray[np.float64], folds: NDArray[np.intp], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean score of editing each fact at the one layer that is best on average for the facts of other folds.

    Layers that are equally good share the choice, so that their order decides nothing.

    Args:
        score: [fact, layer].
        folds: of each fact in each repeat, see `splits`.
        weights: how often each fact is drawn, [draw, fact]; all copies of a fact are in one fold, so that none is
            edited at a layer that it helped to choose.

    Returns:
        The mean score of each draw, [draw]; and the first draw's share of each layer in each fact's choice, over the
        repeats, [fact, layer].
    """
    n_layers = score.shape[1]
    means, choice = np.zeros(len(weights)), np.zeros_like(score)
    for fold in folds:
        n_folds = fold.max() + 1
        placed = np.zeros((len(score), n_folds, n_layers))
        placed[np.arange(len(score)), fold] = score
        held_out = (weights @ placed.reshape(len(score), -1)).reshape(-1, n_folds, n_layers)
        others = held_out.sum(1, keepdims=True) - held_out
        best = (others >= others.max(2, keepdims=True) - TIE * len(score)).astype(float)
        best /= best.sum(2, keepdims=True)
        means += (held_out * best).sum((1, 2)) / weights.sum(1) / len(folds)
        choice += best[0, fold] / len(folds)
    return means, choice
