"""The answer over models: every effect size of every run side by side, and pooled by random effects."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects

from loc_edit.analysis.regression.profiles import NAN
from loc_edit.analysis.regression.statistics import statistics
from loc_edit.analysis.run import Run
from loc_edit.analysis.tables.rows import in_paper_order

EFFECTS = {
    "added": "added_corrected",
    "partial": "partial",
    "within_r": "within_r",
    "gain": "gain",
}
"""By effect, the column of `statistics` that holds it; its interval is in `<effect>_low` and `<effect>_high`."""
FEWEST_MODELS = 5
"""Models from which on effects are pooled."""
POOLED = "pooled"


def pool(
    runs: Sequence[Run], outcome: str = "rewrite", *, window: int | None = None, draws: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Every effect size of every run, and from five models on their mean over models.

    Effects are pooled by random effects with a model as the unit: the runs of one model (other seeds, other facts) are
    first averaged by their precision.  The spread between models is estimated after Paule and Mandel, the interval
    after Hartung, Knapp, Sidik and Jonkman; the prediction interval is for another model of the same kind (Higgins et
    al. 2009).  Correlations are pooled on Fisher's scale.  A standard error is the width of a 95 % interval over 3.92,
    so effects whose intervals are asymmetric are treated as if they were not.

    Args:
        runs: of one or several models.
        outcome: the score.
        window: of the tracing effect; by default each run's only one, or 5.
        draws: resamples of the statistics.
        seed: of the resampling.

    Returns:
        A row per problem x method x window x effect x run, and one with model "pooled": mean, low, high; n_facts;
        pooled rows also models, i2 (the share of the spread that is between models), tau (its standard deviation, on
        Fisher's scale for within_r), prediction_low, prediction_high, and the reason where they are NaN.

    Raises:
        RowsMissing: a run has no edits or no traces.
    """
    parts = []
    for number, run in enumerate(runs):
        table = statistics(run.frame(window), outcome, draws=draws, seed=seed)
        for effect, column in EFFECTS.items():
            part = table[["problem", "method", "window", "n_facts"]].copy()
            part["mean"], part["low"], part["high"] = table[column], table[f"{effect}_low"], table[f"{effect}_high"]
            parts.append(part.assign(effect=effect, model=model_of(run), run=number))
    rows = pd.concat(parts, ignore_index=True)
    keys = ["problem", "method", "window", "effect"]
    pooled = [
        dict(zip(keys, key, strict=True)) | {"model": POOLED, "run": -1} | _pooled(part, str(key[-1]))
        for key, part in rows.groupby(keys, sort=False)
    ]
    table = in_paper_order(pd.concat([rows, pd.DataFrame(pooled)], ignore_index=True)).assign(outcome=outcome)
    columns = [*keys, "outcome", "model", "run", "n_facts", "mean", "low", "high"]
    return table[[*columns, "models", "i2", "tau", "prediction_low", "prediction_high", "reason"]]


def model_of(run: Run) -> str:
    """The name of a run's model, with the edit that was written into it first."""
    edit = run.config.get("edit")
    return f"{run.config.get('model', '?')}{f' with {edit}' if edit else ''}"


def _pooled(rows: pd.DataFrame, effect: str) -> dict[str, Any]:
    """The mean over models of one effect, or the reason why there is none."""
    known = rows.dropna(subset=["mean", "low", "high"])
    to, back = (np.arctanh, np.tanh) if effect == "within_r" else (np.asarray, np.asarray)
    means, variances = [], []
    for _, part in known.groupby("model", sort=False):
        mean, low, high = (to(np.clip(part[name], -1 + 1e-9, 1 - 1e-9)) for name in ("mean", "low", "high"))
        precision = 1 / np.maximum((high - low) / (2 * stats.norm.ppf(0.975)), 1e-9) ** 2
        means.append(float((precision * mean).sum() / precision.sum()))
        variances.append(float(1 / precision.sum()))
    k = len(means)
    numbers: dict[str, Any] = dict.fromkeys(
        ("mean", "low", "high", "i2", "tau", "prediction_low", "prediction_high"), NAN
    )
    numbers |= {"models": k, "n_facts": int(known["n_facts"].sum()), "reason": ""}
    if k < FEWEST_MODELS:
        reason = f"expected at least {FEWEST_MODELS} models, got {k}: too few to tell how much models differ"
        return numbers | {"reason": reason}
    found = combine_effects(np.array(means), np.array(variances), method_re="iterated", use_t=True)
    mean, error, tau2 = float(found.mean_effect_re), float(found.sd_eff_w_re_hksj), max(0.0, float(found.tau2))
    half, wide = stats.t.ppf(0.975, k - 1) * error, stats.t.ppf(0.975, k - 2) * np.hypot(np.sqrt(tau2), error)
    ends = {"mean": mean, "low": mean - half, "high": mean + half}
    ends |= {"prediction_low": mean - wide, "prediction_high": mean + wide}
    return (
        numbers | {name: float(back(value)) for name, value in ends.items()} | {"i2": float(found.i2), "tau": tau2**0.5}
    )
