"""Compares localizers: the R^2 that each adds to the layer's, and the score of editing where each one peaks."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from loc_edit.analysis.regression.choices import layer_choices
from loc_edit.analysis.regression.ols import fits_beside
from loc_edit.analysis.regression.resampling import NAN, RESAMPLED, Resampling, resampled
from loc_edit.analysis.regression.statistics import ADDED, holm
from loc_edit.analysis.tables.rows import EffectDefinition, RowsMissing, by_combination, join_by_localizer

if TYPE_CHECKING:
    from loc_edit.analysis.run import Run

SHUFFLES = 40
"""The least number of permutations for each row of a matrix: Holm multiplies the smallest p by the number of rows."""

Frames = Mapping[str, pd.DataFrame]
"""By localizer, the rows of the regression with its effect, see `Run.frame`."""


def localizer_matrix(
    run: "Run | Frames",
    outcome: str = "rewrite",
    *,
    window: int | None = None,
    site: str = "mlp_out",
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """What each localizer adds to the R^2 of the layer, for each problem x method.

    Args:
        run: a run; or, by localizer, the rows of the regression (`run.frame(localizer=...)`).
        outcome: the score to be explained.
        window: of a run, the number of layers that localizers take together; by default the only one, or 5.
        site: of a run, the site that localizers looked at.
        draws: resamples of facts, and permutations; there are at least `SHUFFLES` permutations per row of the matrix.
        level: coverage of the interval.
        seed: of the resampling.

    Returns:
        A row per localizer x problem x method x window: r2_layer, r2_trace, r2_both, r2_added; added_corrected,
        added_low, added_high (facts resampled, chance subtracted, see `bootstrap_added`); p_permutation, and
        p_permutation_holm over the whole matrix; n, n_facts and, where a number is missing, the reason.

    Raises:
        RowsMissing: the run has no traces, or a finished edit has no trace of a localizer.
    """
    frames = _frames(run, window, site)
    permutations = max(draws, SHUFFLES * sum(len(by_combination(frame)) for frame in frames.values()))

    def added(rows: pd.DataFrame) -> dict[str, float]:
        return resampled(rows, outcome, "trace", Resampling(draws, level, seed), permutations)

    parts = [fits_beside(frame, outcome, "trace", added).assign(localizer=name) for name, frame in frames.items()]
    matrix = pd.concat(parts, ignore_index=True)
    matrix.loc[matrix["r2_added"].isna(), RESAMPLED] = NAN  # with one layer only, for example
    matrix["p_permutation_holm"] = holm(matrix["p_permutation"])
    return matrix[["localizer", "problem", "method", "window", "outcome", *ADDED, "n", "n_facts", "reason"]]


def localizer_choices(
    run: "Run | Frames",
    outcome: str = "rewrite",
    *,
    window: int | None = None,
    site: str = "mlp_out",
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """`layer_choices` for each localizer: its peak against one layer for all facts, any layer, and the oracle.

    Args:
        run: see `localizer_matrix`.
        outcome: the score.
        window: see `localizer_matrix`.
        site: see `localizer_matrix`.
        draws: resamples of facts; 0 leaves the intervals out.
        level: coverage.
        seed: of the resampling.

    Returns:
        The columns of `layer_choices` with `localizer` in front; the choice `tracing peak` is called `peak`, the
        layer of the localizer's largest effect.  The other choices are computed from the same facts: the facts for
        which the localizer has a number at every edited layer.

    Raises:
        RowsMissing: no fact of any localizer has a score and an effect at every edited layer.
    """
    parts = []
    for name, frame in _frames(run, window, site).items():
        try:
            part = layer_choices(frame, outcome, draws=draws, level=level, seed=seed)
        except RowsMissing:
            continue
        part["choice"] = part["choice"].replace("tracing peak", "peak")
        part.insert(0, "localizer", name)
        parts.append(part)
    if not parts:
        raise RowsMissing(f"no fact has a {outcome} score and a localizer's effect at every edited layer")
    return pd.concat(parts, ignore_index=True)


def _frames(run: "Run | Frames", window: int | None, site: str) -> Frames:
    """By localizer, the rows of the regression."""
    if isinstance(run, Mapping):
        return run
    return join_by_localizer(run.edits, run.traces, EffectDefinition(window, site))
