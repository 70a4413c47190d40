"""The fractional effect and the effect by layer: arrays in, arrays out, for one trace and for the rows of a run."""

from typing import Literal, get_args

import numpy as np

Regressor = Literal["max", "last_subject"]
"""How positions become one number per layer: the largest value from the subject on, or the last subject token's."""
Denominator = Literal["clean", "max"]
"""What the effect is divided by: the clean run's metric (the paper), or the best of all runs (the released code)."""

DEGENERATE = 1e-6
"""If the clean and the corrupted run differ by less than this, a fraction of the difference means nothing."""


def fractional_effect(
    p_restored: np.ndarray, p_clean: np.ndarray | float, p_corrupted: np.ndarray | float, best: np.ndarray | float
) -> np.ndarray:
    """The share of what the noise took away that restoring brings back: (restored - corrupted) / (top - corrupted).

    Args:
        p_restored: the metric of the restored runs, of any shape.
        p_clean: the metric of the clean run, broadcast against `p_restored` like the next two.
        p_corrupted: the metric of the corrupted run.
        best: the top is the larger of `best` and `p_clean`; with `-inf` it is always `p_clean`.

    Returns:
        The fractions; NaN if top and corrupted run differ by less than 1e-6, or by NaN.

    Source: spec section 1.4.
    """
    gap = np.asarray(np.maximum(p_clean, best) - p_corrupted, dtype=float)
    return np.asarray((p_restored - p_corrupted) / np.where(np.abs(gap) >= DEGENERATE, gap, np.nan))


def check_choice(regressor: str = "max", denominator: str = "clean") -> None:
    """Refuse a regressor or denominator that does not exist.

    Raises:
        ValueError: names the given and the expected values.
    """
    for name, given, known in (("regressor", regressor, Regressor), ("denominator", denominator, Denominator)):
        if given not in get_args(known):
            raise ValueError(f"{name} {given!r}: expected {' or '.join(map(repr, get_args(known)))}")


def positions_that_count(
    pos: np.ndarray, subject_begin: np.ndarray | int, subject_end: np.ndarray | int, regressor: Regressor = "max"
) -> np.ndarray:
    """Which positions make up a layer's number: all from the subject on, or only the last subject token."""
    return np.asarray(pos >= subject_begin if regressor == "max" else pos == subject_end - 1)


def effect_by_layer(values: np.ndarray, layer: np.ndarray, regressor: Regressor = "max") -> np.ndarray:
    """One number per layer: the largest value of the layer, and at least 0 if the regressor is `"max"`.

    Args:
        values: effects or fractions at the positions that count, of shape [n]; NaN is skipped.
        layer: the layer (or any group, numbered from 0) of each value.
        regressor: see `positions_that_count`; the value at the last subject token may be negative.

    Returns:
        An array indexed by layer, NaN for a layer without a number.

    Source: spec section 1.5.
    """
    by_layer = np.full(int(layer.max(initial=-1)) + 1, np.nan)
    np.fmax.at(by_layer, layer, values)
    return np.maximum(by_layer, 0.0) if regressor == "max" else by_layer
