"""Every localiser in the same regression: what each adds to the layer, and what editing at its peak is worth."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from loc_edit.analysis.regression.choices import layer_choices
from loc_edit.analysis.regression.ols import fits
from loc_edit.analysis.regression.resampling import bootstrap_added, permutation_p
from loc_edit.analysis.regression.statistics import holm
from loc_edit.analysis.tables.rows import RowsMissing, combinations, join_by_localizer, without_controls

if TYPE_CHECKING:
    from loc_edit.analysis.run import Run

SHUFFLES = 40
"""Permutations for each row of a matrix, at least: Holm multiplies the smallest p by the number of rows."""

Frames = Mapping[str, pd.DataFrame]
"""By localiser, the rows of the regression with its effect: see `tables.join`."""


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
    """What each localiser adds to the R^2 of the layer, for each problem x method.

    Args:
        run: a run; or, by localiser, the rows of the regression (`run.frame(localizer=...)`).
        outcome: the score to be explained.
        window: of a run, the layers that localisers take together; the only one there is, or 5.
        site: of a run, where localisers looked.
        draws: resamples of facts, and permutations; of these there are at least `SHUFFLES` times as many as rows.
        level: coverage of the interval.
        seed: of the resampling.

    Returns:
        A row per localiser x problem x method x window: r2_layer, r2_trace, r2_both, r2_added; added_corrected,
        added_low, added_high (facts resampled, less what chance adds, see `bootstrap_added`); p_permutation, and
        p_permutation_holm over the whole matrix; n, n_facts and, where a number is missing, the reason.

    Raises:
        RowsMissing: the run has no traces, or a finished edit has none of a localiser.
    """
    frames = {name: without_controls(frame) for name, frame in _frames(run, window, site).items()}
    n_cells = sum(len(frame.drop_duplicates(combinations(frame))) for frame in frames.values())
    shuffles = max(draws, SHUFFLES * n_cells)
    parts = []
    for name, frame in frames.items():
        found = fits(frame, outcome)
        keys = combinations(frame)
        groups: dict[Any, pd.DataFrame] = dict(iter(frame.groupby(keys))) if keys else {(): frame}
        more = []
        for key in found[keys].itertuples(index=False, name=None):
            drawn = bootstrap_added(groups[key], outcome, draws=draws, level=level, seed=seed)
            more.append(drawn | {"p_permutation": permutation_p(groups[key], outcome, draws=shuffles, seed=seed)})
        table = pd.concat([found, pd.DataFrame(more, index=found.index)], axis=1)
        resampled = ["added_corrected", "added_low", "added_high", "p_permutation"]
        table.loc[table["r2_added"].isna(), resampled] = float("nan")  # of one layer, say
        parts.append(table.assign(localizer=name))
    matrix = pd.concat(parts, ignore_index=True)
    matrix["p_permutation_holm"] = holm(matrix["p_permutation"])
    columns = ["localizer", "problem", "method", "window", "outcome", "r2_layer", "r2_trace", "r2_both", "r2_added"]
    columns += ["added_corrected", "added_low", "added_high", "p_permutation", "p_permutation_holm"]
    return matrix[[*columns, "n", "n_facts", "reason"]]


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
    """`layer_choices` for each localiser: its peak against one layer for all facts, any layer, and the oracle.

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
        layer of the localiser's largest effect.  The other choices are of the same facts, those of which the
        localiser has a number at every edited layer.

    Raises:
        RowsMissing: no fact of any localiser has a score and an effect at every edited layer.
    """
    parts = []
    for name, frame in _frames(run, window, site).items():
        try:
            found = layer_choices(frame, outcome, draws=draws, level=level, seed=seed)
        except RowsMissing:
            continue
        found["choice"] = found["choice"].replace("tracing peak", "peak")
        found.insert(0, "localizer", name)
        parts.append(found)
    if not parts:
        raise RowsMissing(f"no fact has a {outcome} score and a localiser's effect at every edited layer")
    return pd.concat(parts, ignore_index=True)


def _frames(run: "Run | Frames", window: int | None, site: str) -> Frames:
    """By localiser, the rows of the regression."""
    if isinstance(run, Mapping):
        return run
    return join_by_localizer(run.edits, run.traces, window=window, site=site)
