"""Compares localizers: the R^2 that each adds to the layer's, and the score of editing where each one peaks."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from loc_edit.analysis.regression.choices import layer_choices
from loc_edit.analysis.regression.effect_sizes import shares
from loc_edit.analysis.regression.ols import fits_beside
from loc_edit.analysis.regression.permutation import permutation_p
from loc_edit.analysis.regression.profiles import NAN, Profiles, Resampling
from loc_edit.analysis.regression.statistics import SHUFFLES, with_holm
from loc_edit.analysis.tables.rows import EffectDefinition, RowsMissing, by_combination, join_by_localizer

if TYPE_CHECKING:
    from loc_edit.analysis.run import Run

CONTROL = "random"
"""The localizer that knows nothing: what it adds, any localizer must beat."""
SHARES = ["added_corrected", "added_low", "added_high", "partial", "partial_low", "partial_high"]
BEYOND = ["beyond_controls", "beyond_controls_low", "beyond_controls_high"]

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
        A row per localizer x problem x method x window: r2_layer, r2_trace, r2_both, r2_added; added_corrected and
        partial with _low and _high (see `effect_sizes`); beyond_controls with _low and _high: the partial R^2 when
        prompt length, and the effect of the `random` localizer where the run has it, are covariates at each layer;
        p_permutation, and p_permutation_holm over the whole matrix; n, n_facts and, where a number is missing, the
        reason.  A localizer beats the control where beyond_controls_low lies above 0.

    Raises:
        RowsMissing: the run has no traces, or a finished edit has no trace of a localizer.
    """
    frames = _frames(run, window, site)
    shuffling = Resampling(
        max(draws, SHUFFLES * sum(len(by_combination(frame)) for frame in frames.values())), level, seed
    )

    def added(rows: pd.DataFrame, control: pd.DataFrame | None) -> dict[str, float]:
        profiles = Profiles.of(rows, outcome)
        of_all, of_rest = shares(profiles, level)
        numbers = {"added_corrected": of_all.middle, "added_low": of_all.low, "added_high": of_all.high}
        numbers |= of_rest.columns("partial")
        numbers["p_permutation"] = permutation_p(profiles, shuffling)
        beyond = profiles.without(_controls(profiles, rows, control))
        return numbers | shares(beyond, level)[1].columns(BEYOND[0])

    parts = []
    for name, frame in frames.items():
        compute = partial(added, control=frames.get(CONTROL) if name != CONTROL else None)
        parts.append(fits_beside(frame, outcome, "trace", compute).assign(localizer=name))
    matrix = pd.concat(parts, ignore_index=True)
    matrix.loc[matrix["r2_added"].isna(), [*SHARES, *BEYOND, "p_permutation"]] = NAN  # with one layer only, for example
    columns = ["r2_layer", "r2_trace", "r2_both", "r2_added", *SHARES, *BEYOND]
    identity = ["localizer", "problem", "method", "window", "outcome"]
    return with_holm(matrix)[[*identity, *columns, "p_permutation", "p_permutation_holm", "n", "n_facts", "reason"]]


def _controls(profiles: Profiles, rows: pd.DataFrame, control: pd.DataFrame | None) -> list[NDArray[np.float64]]:
    """Prompt length and the control's effect, as far as they are known, for the facts and layers of the profiles."""
    covariates: list[NDArray[np.float64]] = []
    if np.isfinite(profiles.prompt_length).all() and np.ptp(profiles.prompt_length) > 0:
        covariates.append(profiles.prompt_length)
    if control is not None:
        facts = np.sort(rows["fact_id"].unique())
        effects = control.drop_duplicates(["fact_id", "layer"]).pivot(index="fact_id", columns="layer", values="trace")
        covariates.append(effects.reindex(index=facts, columns=profiles.layers).to_numpy(float))
    return covariates


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
