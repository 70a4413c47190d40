"""Computes statistics that allow for the dependence among the rows of one fact."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm
import statsmodels.formula.api as smf
from scipy import stats
from statsmodels.tools.sm_exceptions import ConvergenceWarning

from loc_edit.analysis.regression.ols import usable_rows
from loc_edit.analysis.tables.rows import require
from loc_edit.analysis.tables.summaries import is_constant

NAN = float("nan")
ROUNDING = 1e-6
"""Where edits at a layer do nothing, the outcome varies there by less than this share of its range over all layers."""


def clustered(frame: pd.DataFrame, outcome: str = "rewrite", regressor: str = "trace") -> dict[str, float]:
    """The tracing effect's test and slope with standard errors clustered by fact, for one method x problem.

    Returns:
        f_clustered, p_clustered: the slopes of all layers against 0, which is the nested test of `fit`; layers in
        which the outcome varies by rounding only are left out, as their estimates have no variance;
        slope, slope_se, slope_low, slope_high: of y ~ C(layer) + trace, 95 %.  NaN where there are too few facts.
    """
    names = ["f_clustered", "p_clustered", "slope", "slope_se", "slope_low", "slope_high"]
    numbers = dict.fromkeys(names, NAN)
    rows, _ = usable_rows(frame, outcome, regressor)
    n_facts = rows["fact_id"].nunique()
    if rows.empty or is_constant(rows["y"]) or n_facts < 3:
        return numbers
    layers, slopes = _designs(rows)
    if slopes.shape[1] == 0 or len(rows) <= layers.shape[1] + slopes.shape[1]:
        return numbers
    y = rows["y"].to_numpy()
    clusters: dict[str, Any] = {
        "cov_type": "cluster",
        "cov_kwds": {"groups": pd.factorize(rows["fact_id"])[0]},
        "use_t": True,
    }
    line = sm.OLS(y, np.column_stack([layers, slopes.sum(1)])).fit(**clusters)
    low, high = line.conf_int()[-1]
    numbers |= dict(zip(names[2:], map(float, (line.params[-1], line.bse[-1], low, high)), strict=True))
    n = layers.shape[1]
    varying = [n + i for i, slope in enumerate(slopes.T) if np.ptp(y[slope != 0]) > ROUNDING * np.ptp(y)]
    if n_facts > slopes.shape[1] and varying:
        both = sm.OLS(y, np.column_stack([layers, slopes])).fit(**clusters)
        test = both.f_test(np.eye(len(both.params))[varying])
        numbers |= {"f_clustered": float(np.squeeze(test.fvalue)), "p_clustered": float(test.pvalue)}
    return numbers


def mixed_model(frame: pd.DataFrame, outcome: str = "rewrite", regressor: str = "trace") -> dict[str, Any]:
    """The slope of y ~ C(layer) + trace with a random intercept per fact, for one method x problem.

    Returns:
        mixed_slope, mixed_low, mixed_high (95 %), mixed_p, fact_share (the share of the remaining variance that lies
        between facts), mixed_note (why a number is missing or doubtful; empty if all is well).
    """
    numbers = dict.fromkeys(["mixed_slope", "mixed_low", "mixed_high", "mixed_p", "fact_share"], NAN)
    rows, _ = usable_rows(frame, outcome, regressor)
    if rows.empty or is_constant(rows["y"]) or _designs(rows)[1].shape[1] == 0:
        return numbers | {"mixed_note": "outcome or tracing effect does not vary"}
    if rows["fact_id"].nunique() < 3 or len(rows) <= rows["fact_id"].nunique() + rows["layer"].nunique():
        return numbers | {"mixed_note": "too few rows"}
    formula = "y ~ C(layer) + trace" if rows["layer"].nunique() > 1 else "y ~ trace"
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = smf.mixedlm(formula, rows, groups=rows["fact_id"].to_numpy()).fit()
            low, high = model.conf_int().loc["trace"]
            between = float(model.cov_re.to_numpy()[0, 0])
    except (np.linalg.LinAlgError, ValueError) as error:
        return numbers | {"mixed_note": f"the mixed model failed: {error}"}
    warned = " ".join(str(w.message) for w in caught if issubclass(w.category, ConvergenceWarning))
    notes = ["no variance between facts beyond layer and tracing effect"] if "boundary" in warned else []
    notes += ["did not converge"] if not model.converged else []
    numbers |= {
        "mixed_slope": float(model.params["trace"]),
        "mixed_low": float(low),
        "mixed_high": float(high),
        "mixed_p": float(model.pvalues["trace"]),
        "fact_share": between / (between + float(model.scale)),
    }
    return numbers | {"mixed_note": "; ".join(notes)}


def fact_correlations(
    frame: pd.DataFrame, outcome: str = "rewrite", regressor: str = "trace", *, center_layers: bool = False
) -> pd.DataFrame:
    """Pearson's r between tracing effect and outcome over the layers of each fact: `fact_id, n, r`.

    Args:
        frame: rows of one method x problem.
        outcome: the column with the score.
        regressor: the column with the tracing effect.
        center_layers: subtract the layers' means from both first, so that a shape over the layers that all facts
            share does not count.
    """
    require(frame, ["fact_id", "layer", regressor, outcome], "fact_correlations")
    rows, _ = usable_rows(frame, outcome, regressor)
    if center_layers:
        columns = rows[["trace", "y"]]
        rows[["trace", "y"]] = columns - columns.groupby(rows["layer"]).transform("mean")
    table = [(fact, len(cell), _pearson(cell["trace"], cell["y"])) for fact, cell in rows.groupby("fact_id")]
    return pd.DataFrame(table, columns=["fact_id", "n", "r"])


def within_facts(
    frame: pd.DataFrame, outcome: str = "rewrite", regressor: str = "trace", level: float = 0.95
) -> dict[str, Any]:
    """Mean over facts of the within-fact correlation: is a fact edited best where tracing locates it?

    Returns:
        r_fact, r_fact_low, r_fact_high (Student's, over facts), r_fact_n: the number of facts with such a correlation;
        and r_fact_centered with _low and _high, the same with the layers' means subtracted first.
    """
    numbers: dict[str, Any] = {}
    for name, center_layers in (("r_fact", False), ("r_fact_centered", True)):
        r = fact_correlations(frame, outcome, regressor, center_layers=center_layers)["r"].dropna()
        numbers.setdefault("r_fact_n", len(r))
        low = high = NAN
        if len(r) > 2 and not is_constant(r):
            low, high = stats.ttest_1samp(r, 0.0).confidence_interval(level)
        numbers |= {name: float(r.mean()) if len(r) else NAN, f"{name}_low": float(low), f"{name}_high": float(high)}
    return numbers


def _pearson(x: pd.Series, y: pd.Series) -> float:
    if len(x) < 3 or is_constant(x) or is_constant(y):
        return NAN
    return float(stats.pearsonr(x, y).statistic)


def _designs(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """An intercept per layer, and the tracing effect per layer where it varies there; together of full rank."""
    layers = pd.get_dummies(rows["layer"], dtype=float)
    slopes = layers.mul(rows["trace"], axis=0)
    varies = [layer for layer, cell in rows.groupby("layer")["trace"] if not is_constant(cell)]
    return layers.to_numpy(), slopes[varies].to_numpy()
