"""The fractional effect and the effect by layer: arrays in, arrays out, for a single trace and for the rows of a run."""

from typing import Literal, get_args

import numpy as np

Regressor = Literal["max", "last_subject"]
"""How positions become one number per layer: the largest fraction from the subject on, or the last subject token's."""
Denominator = Literal["clean", "max"]
"""What the effect is divided by: the clean run's metric (the paper), or the best of all runs (the released code)."""

DEGENERATE = 1e-6
"""A gap between the clean and the corrupted run below this has no meaningful fraction."""


def fractional_effect(
    p_restored: np.ndarray, p_clean: np.ndarray | float, p_corrupted: np.ndarray | float, best: np.ndarray | float
) -> np.ndarray:
    """The share of what the noise took away that restoring brings back: (restored - corrupted) / (top - corrupted).

    Args:
        p_restored: the metric of restored runs, of any shape.
        p_clean: the clean run's metric, which broadcasts against `p_restored`; so do the others.
        p_corrupted: the corrupted run's.
        best: the top is the larger of this and `p_clean`; `-inf` leaves it at `p_clean`.

    Returns:
        The fractions, NaN where the gap between top and corrupted run is below 1e-6, or is not a number.

    Source: spec section 1.4.
    """
    top = np.where(np.asarray(p_clean) >= best, p_clean, best) if np.any(np.isfinite(best)) else np.asarray(p_clean)
    gap = np.asarray(top - p_corrupted, dtype=float)
    gap = np.where(np.abs(gap) >= DEGENERATE, gap, np.nan)
    return np.asarray((p_restored - p_corrupted) / gap)


def check_choice(regressor: str = "max", denominator: str = "clean") -> None:
    """Refuse a regressor or denominator that does not exist.

    Raises:
        ValueError: naming what was given and what was expected.
    """
    for name, given, known in (("regressor", regressor, Regressor), ("denominator", denominator, Denominator)):
        if given not in get_args(known):
            raise ValueError(f"{name} {given!r}: expected {' or '.join(map(repr, get_args(known)))}")


def positions_that_count(
    pos: np.ndarray, subject_begin: np.ndarray | int, subject_end: np.ndarray | int, regressor: Regressor = "max"
) -> np.ndarray:
    """Which positions a layer's number is taken over: all from the subject on, or the last subject token alone."""
    return np.asarray(pos >= subject_begin if regressor == "max" else pos == subject_end - 1)


def effect_by_layer(values: np.ndarray, layer: np.ndarray, regressor: Regressor = "max") -> np.ndarray:
    """One number per layer: the largest value, floored at 0 if it is the maximum over several positions.

    Args:
        values: effects or fractions at the positions that count, of shape [n]; NaN is passed over.
        layer: the layer (or any group, numbered from 0) of each value.
        regressor: see `positions_that_count`; the fraction at the last subject token is not floored.

    Returns:
        An array by layer, NaN where a layer has no number.

    Source: spec section 1.5.
    """
    by_layer = np.full(int(layer.max(initial=-1)) + 1, np.nan)
    np.fmax.at(by_layer, layer, values)
    return np.maximum(by_layer, 0.0) if regressor == "max" else by_layer
