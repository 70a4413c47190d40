"""Numbers and texts on their way into a page: small, and never markup."""

import json
from typing import Any

import numpy as np

STEPS = 4094
"""A packed number is one of so many steps between the least and the largest; the step after them is NaN."""
_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_PAIRS = np.array([a + b for a in _DIGITS for b in _DIGITS])


def packed(values: Any) -> str | list[Any]:
    """Numbers in two characters each, exact to 1 in 8,000 of their range: a third of what they take as text.

    Args:
        values: any array; the page knows its shape.  Infinite values count as NaN.

    Returns:
        The characters, where the range is 0 to 1; else low, high and the characters.  Two of the 64 digits of
        base64 make a step, `STEPS + 1` is NaN, and a number is `low + (high - low) * step / STEPS`.
    """
    flat = np.asarray(values, dtype=float).ravel()
    known = np.isfinite(flat)
    low, high = (float(flat[known].min()), float(flat[known].max())) if known.any() else (0.0, 0.0)
    usual = low >= 0 and high <= 1 and high > 0.25  # smaller ones are finer in a range of their own
    if usual:
        low, high = 0.0, 1.0
    steps = np.full(flat.shape, STEPS + 1)
    steps[known] = np.rint((flat[known] - low) / ((high - low) or 1.0) * STEPS)
    text = "".join(_PAIRS[steps])
    return text if usual else [float(f"{low:.6g}"), float(f"{high:.6g}"), text]


def embedded(data: Any) -> str:
    """Plain data as JSON for a `<script type="application/json">`: no `<` in it, so no text can end the script.

    Raises:
        ValueError: a NaN; it should have become `None`.
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def number(value: Any) -> float | None:
    """A number for JSON: `None` for NaN and infinities, which it has not."""
    return float(value) if value is not None and np.isfinite(value) else None
