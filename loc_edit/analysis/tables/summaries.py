"""Summarizes rows: the correlations, means, counts and points in the paper's figures and smaller tables."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from loc_edit.analysis.tables.localized import of_localizer
from loc_edit.analysis.tables.rows import (
    RowsMissing,
    by_combination,
    combination_columns,
    in_paper_order,
    is_control,
    require,
    without_controls,
)
from loc_edit.arguments import checked
from loc_edit.names import SCORES


@checked
def layer_correlations(
    frame: pd.DataFrame, outcome: str = "rewrite", regressor: str = "trace", level: float = 0.95
) -> pd.DataFrame:
    """Pearson's r between tracing effect and edit outcome, per problem x method x layer.

    Args:
        frame: rows of the regression, see `join`; any number of methods and problems.
        outcome: the column with the score.
        regressor: the column with the tracing effect.
        level: coverage of the interval (Fisher's z).

    Returns:
        problem, method, window, layer, n, n_dropped (rows with a NaN), r, low, high, p, p_holm (over the whole table),
        reason (why r is NaN).  Facts count as independent here.
    """
    require(frame, ["layer", regressor, outcome], "layer_correlations")
    rows = [key | _correlation(cell[regressor], cell[outcome], level) for key, cell in by_combination(frame, "layer")]
    columns = [*combination_columns(frame), "layer", "n", "n_dropped", "r", "low", "high", "p", "p_holm", "reason"]
    table = in_paper_order(pd.DataFrame(rows, columns=columns))
    return table.assign(p_holm=holm(table["p"]))


def holm(p: pd.Series) -> pd.Series:
    """Holm's correction over a family of p-values; NaN stays NaN and does not count."""
    corrected = p.astype(float)
    known = corrected.notna()
    if known.any():
        corrected[known] = multipletests(corrected[known], method="holm")[1]
    return corrected


def _correlation(x: pd.Series, y: pd.Series, level: float) -> dict[str, Any]:
    """Pearson's r of two columns with its interval, or the reason why there is none."""
    pairs = pd.DataFrame({"x": x, "y": y}).astype(float).dropna()
    counts: dict[str, Any] = {"n": len(pairs), "n_dropped": len(x) - len(pairs)}
    undefined = counts | dict.fromkeys(("r", "low", "high", "p"), np.nan)
    if len(pairs) < 3:
        return undefined | {"reason": "fewer than three rows"}
    for name, column in (("x", x), ("y", y)):
        if is_constant(pairs[name]):
            return undefined | {"reason": f"{column.name} is constant"}
    result = stats.pearsonr(pairs["x"], pairs["y"])
    low, high = result.confidence_interval(level)  # Fisher's z needs n > 3; scipy else gives -1 to 1
    numbers = {"r": result.statistic, "low": low, "high": high, "p": result.pvalue}
    return counts | {name: float(number) for name, number in numbers.items()} | {"reason": ""}


def is_constant(values: pd.Series | np.ndarray) -> bool:
    """Whether numbers are all the same, up to the rounding of probabilities in float32."""
    values = np.asarray(values, dtype=float)
    return bool(np.ptp(values) <= 1e-7 * max(1.0, float(np.abs(values).max()))) if values.size else True


def mean_scores(frame: pd.DataFrame, outcomes: Iterable[str] = SCORES) -> pd.DataFrame:
    """Mean scores per problem x method x layer, one row per outcome; controls are left out.

    Returns:
        problem, method, window, layer, outcome, n, n_dropped, mean, std, low, high; Student's interval of 95 %.
    """
    return _mean_scores(without_controls(frame), outcomes)


def control_scores(edits: pd.DataFrame, outcomes: Iterable[str] = SCORES) -> pd.DataFrame:
    """Mean scores of the controls over all layers: the columns of `mean_scores`, with layer -1."""
    return _mean_scores(edits[is_control(edits)].assign(layer=-1), outcomes)


def _mean_scores(frame: pd.DataFrame, outcomes: Iterable[str]) -> pd.DataFrame:
    keys = [*combination_columns(frame), "layer"]
    require(frame, keys, "mean_scores")
    scores = frame[[*keys, *(name for name in outcomes if name in frame)]]
    long = scores.melt(id_vars=keys, var_name="outcome", value_name="score").astype({"score": float})
    groups = long.groupby([*keys, "outcome"], sort=False)["score"]
    means = groups.agg(n="count", rows="size", mean="mean", std="std").reset_index()
    n = means["n"].clip(lower=1)
    half = stats.t.ppf(0.975, (means["n"] - 1).clip(lower=1)) * means["std"] / np.sqrt(n)
    means = means.assign(n_dropped=means["rows"] - means["n"], low=means["mean"] - half, high=means["mean"] + half)
    return in_paper_order(means)[[*keys, "outcome", "n", "n_dropped", "mean", "std", "low", "high"]]


def argmax_histogram(layer_traces: pd.DataFrame) -> pd.DataFrame:
    """How many facts have their largest tracing effect at each layer: `layer, facts, share`.

    Facts without a tracing fraction, or without any effect above 0, have no such layer and are left out.
    """
    positive = layer_traces[layer_traces["trace"] > 0]
    best = positive.loc[positive.groupby("fact_id")["trace"].idxmax(), "layer"]
    layers = pd.Index(np.unique(layer_traces["layer"]), name="layer")
    facts = best.value_counts().reindex(layers, fill_value=0)
    share = facts / len(best) if len(best) else facts * np.nan
    return pd.DataFrame({"facts": facts, "share": share}).reset_index()


def concentrated_facts(layer_traces: pd.DataFrame) -> pd.Index:
    """The facts with a concentrated tracing effect, for Table 2.

    A fact's effect is concentrated where at most three layers besides the largest reach half of it.

    Args:
        layer_traces: the effect by fact and layer, see `by_layer`.
    """
    largest = layer_traces.groupby("fact_id")["trace"].transform("max")
    near = (layer_traces["trace"] >= 0.5 * largest) & (largest > 0)
    counts = near.groupby(layer_traces["fact_id"]).sum()
    return counts.index[(counts >= 1) & (counts <= 1 + 3)]


def mean_effects(traces: pd.DataFrame, site: str = "mlp_out") -> pd.DataFrame:
    """Causal Tracing's mean effect over all cells of a layer, per window: `window, layer, effect, n` (Figure 10)."""
    traced = of_localizer(traces)
    at_site = traced[traced["site"] == site] if len(traced) else traced
    if at_site.empty:
        raise RowsMissing(f"no traces at site {site!r}")
    cells = at_site.assign(effect=at_site["p_restored"] - at_site["p_corrupted"])
    means = cells.groupby(["window", "layer"], as_index=False).agg(effect=("effect", "mean"), n=("effect", "count"))
    return pd.DataFrame(means)


def magnitudes(edits: pd.DataFrame) -> pd.Series:
    """How far each edit moved the target's probability in the direction of its objective, not scaled (Figure 14)."""
    if not {"rewrite_before", "rewrite_after"} <= set(edits):
        raise RowsMissing("the edit rows have no raw probabilities rewrite_before, rewrite_after")
    change = edits["rewrite_after"].map(_mean) - edits["rewrite_before"].map(_mean)
    lower = edits["objective"] == "lower" if "objective" in edits else edits["problem"] == "fact_erasure"
    return change.where(~lower, -change).rename("magnitude")


def fit_points(frame: pd.DataFrame, outcome: str = "rewrite", regressor: str = "trace") -> pd.DataFrame:
    """The points of outcome against tracing effect per layer, with the line through them.

    Returns:
        fact_id, layer, regressor, outcome, and per layer n, r, slope, intercept (NaN where undefined).

    Raises:
        RowsMissing: there is no point, as where clean and corrupted runs agree.
    """
    require(frame, ["fact_id", "layer", regressor, outcome], "fit_points")
    columns = [*combination_columns(frame), "fact_id", "layer", regressor, outcome]
    points = without_controls(frame)[columns].dropna()
    if points.empty:
        raise RowsMissing(f"no fact has both {regressor} and {outcome}; without noise, no fact has a tracing fraction")
    lines = pd.DataFrame(
        [{"layer": layer} | _line(cell[regressor], cell[outcome]) for layer, cell in points.groupby("layer")],
        columns=["layer", "n", "r", "slope", "intercept"],
    )
    return points.merge(lines, on="layer").sort_values(["layer", "fact_id"], ignore_index=True)


def _line(x: pd.Series, y: pd.Series) -> dict[str, Any]:
    if len(x) < 3 or is_constant(x):
        return {"n": len(x), "r": np.nan, "slope": np.nan, "intercept": np.nan}
    line = stats.linregress(x, y)
    r = np.nan if is_constant(y) else line.rvalue
    return {"n": len(x), "r": r, "slope": line.slope, "intercept": line.intercept}


def _mean(values: Any) -> float:
    """The mean of a list of probabilities, or of one; NaN for none."""
    numbers = np.atleast_1d(np.asarray(np.nan if values is None else values, dtype=float))
    return float(numbers.mean()) if numbers.size else np.nan
