"""Turns numbers and texts into JSON for the page: small, and never markup."""

import json
from typing import Any

import numpy as np

STEPS = 4094
"""The number of steps between the least and the largest number; the step after them stands for NaN."""
_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_PAIRS = np.array([a + b for a in _DIGITS for b in _DIGITS])


def packed(values: Any) -> str | list[Any]:
    """Writes numbers with two characters each, exact to 1 in 8,000 of their range.

    Numbers as text are three times as long, and the page would hold a third of the facts.

    Args:
        values: any array; the page knows its shape.  Infinite values count as NaN.

    Returns:
        The characters if the range is 0 to 1; else low, high and the characters.  Two of the 64 digits of base64
        make a step, `STEPS + 1` is NaN, and a number is `low + (high - low) * step / STEPS`.
    """
    flat = np.asarray(values, dtype=float).ravel()
    known = np.isfinite(flat)
    low, high = (float(flat[known].min()), float(flat[known].max())) if known.any() else (0.0, 0.0)
    usual = low >= 0 and high <= 1 and high > 0.25  # smaller numbers are more exact in a range of their own
    if usual:
        low, high = 0.0, 1.0
    steps = np.full(flat.shape, STEPS + 1)
    steps[known] = np.rint((flat[known] - low) / ((high - low) or 1.0) * STEPS)
    text = "".join(_PAIRS[steps])
    return text if usual else [float(f"{low:.6g}"), float(f"{high:.6g}"), text]


def embedded(data: Any) -> str:
    """Returns plain data as JSON for a `<script type="application/json">`: without `<`, no text can end the script.

    Raises:
        ValueError: the data contains a NaN, which must be `None`.
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def number(value: Any) -> float | None:
    """Returns a number for JSON, and `None` for NaN and infinities, which JSON lacks."""
    return float(value) if value is not None and np.isfinite(value) else None
