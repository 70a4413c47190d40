"""Asks whether another model of the same rows would answer otherwise: covariates, mixed models, ceilings, curves."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.api as sm
import statsmodels.formula.api as smf
from numpy.typing import NDArray
from scipy.interpolate import BSpline

from loc_edit.analysis.regression.effect_sizes import common_slope, shares
from loc_edit.analysis.regression.ols import usable_rows
from loc_edit.analysis.regression.permutation import deals, permutation_p
from loc_edit.analysis.regression.profiles import Profiles, Resampling
from loc_edit.analysis.regression.statistics import SHUFFLES
from loc_edit.analysis.tables.rows import by_combination, in_paper_order
from loc_edit.analysis.tables.summaries import holm, is_constant

FEWEST_PER_TERM = 5
"""The least number of facts per term of the curves."""
FAILURES = (np.linalg.LinAlgError, ValueError)
NUMBERS = ["partial", "partial_low", "partial_high", "slope", "slope_low", "slope_high", "p"]


def other_models(
    frame: pd.DataFrame,
    outcome: str = "rewrite",
    *,
    models: Sequence[str] | None = None,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """What the tracing effect explains beyond the layer in models other than the study's, a line per model.

    - `prompt length`: a line per layer, with the prompt's number of tokens as a covariate at each layer.
    - `relation`: the same with fixed effects of the relation at each layer; p from profiles dealt within relations.
    - `random intercepts`, `random slopes`: y ~ C(layer) + trace, with an intercept, or intercept and slope, per fact.
    - `fractional logit`: a logistic regression of the score in [0, 1], for scores at the ceiling, with the slope as the
      average change of the score; errors clustered by relation or fact (Papke and Wooldridge 1996).
    - `curves`: what splines of the effect, the place of its peak, its concentration and its mean explain beyond a line
      per layer; `partial` is the share of what the lines leave, less what permuted profiles explain.

    Args:
        frame: rows of the regression, any number of methods and problems.
        outcome: the score.
        models: which of them; all by default.
        draws: permutations.
        level: coverage of the intervals.
        seed: of the permutations.

    Returns:
        A row per problem x method x window x model: outcome, partial (share of what the rest of the model leaves),
        slope (points of score per unit of the effect), each with _low and _high; p, p_holm over the rows of one model;
        fact_share, of a mixed model's remaining variance; n, n_facts; reason why there is no number, or a warning.
    """
    pairs = by_combination(frame)
    resampling = Resampling(max(draws, SHUFFLES * len(pairs)), level, seed)
    table = []
    for key, rows in pairs:
        profiles, (usable, _) = Profiles.of(rows, outcome), usable_rows(rows, outcome)
        counts = {"outcome": outcome, "n": len(usable), "n_facts": usable["fact_id"].nunique()}
        for name in models or MODELS:
            line = _computed(MODELS[name], profiles, usable, resampling)
            table.append(key | counts | {"model": name, "reason": ""} | line)
    lines = in_paper_order(pd.DataFrame(table).reindex(columns=_columns(table)))
    lines["p_holm"] = lines.groupby("model")["p"].transform(holm)
    return lines


Model = Callable[[Profiles, pd.DataFrame, Resampling], dict[str, Any]]


def _columns(table: list[dict[str, Any]]) -> list[str]:
    first = [name for name in ("problem", "method", "window") if table and name in table[0]]
    return [*first, "outcome", "model", *NUMBERS, "p_holm", "fact_share", "n", "n_facts", "reason"]


def _computed(model: Model, profiles: Profiles, usable: pd.DataFrame, resampling: Resampling) -> dict[str, Any]:
    if not profiles.usable() or is_constant(usable["trace"]):
        return {"reason": "outcome or tracing effect does not vary, or there are fewer than three facts"}
    try:
        return model(profiles, usable, resampling)
    except FAILURES as error:
        return {"reason": f"failed: {error}"}


def _prompt_length(profiles: Profiles, usable: pd.DataFrame, resampling: Resampling) -> dict[str, Any]:
    if not np.isfinite(profiles.prompt_length).all() or np.ptp(profiles.prompt_length) == 0:
        return {"reason": "the prompts' lengths are unknown or all the same"}
    rest = profiles.without([profiles.prompt_length])
    return _share_and_slope(rest, resampling) | {"p": permutation_p(rest, resampling)}


def _relation(profiles: Profiles, usable: pd.DataFrame, resampling: Resampling) -> dict[str, Any]:
    if not profiles.has_relations():
        return {"reason": "no two facts share a relation, or all do"}
    indicators = list((profiles.relation[:, None] == np.arange(1, profiles.relation.max() + 1)).astype(float).T)
    rest = profiles.without(indicators)
    return _share_and_slope(rest, resampling) | {"p": permutation_p(rest, resampling, over_relations=False)}


def _share_and_slope(profiles: Profiles, resampling: Resampling) -> dict[str, Any]:
    partial, slope = shares(profiles, resampling.level)[1], common_slope(profiles, resampling.level)
    return partial.columns("partial") | slope.columns("slope")


def _mixed(profiles: Profiles, usable: pd.DataFrame, resampling: Resampling, random: str = "1") -> dict[str, Any]:
    """A mixed model of standardized columns, which statsmodels fits more surely."""
    n_facts, n_layers = usable["fact_id"].nunique(), usable["layer"].nunique()
    if len(usable) <= n_facts + n_layers:
        return {"reason": "too few rows"}
    scale = usable["y"].std() / usable["trace"].std()
    rows = usable.assign(**{name: (usable[name] - usable[name].mean()) / usable[name].std() for name in ("trace", "y")})
    formula = "y ~ C(layer) + trace" if n_layers > 1 else "y ~ trace"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of every failed try; `converged` tells of the last
        fitted = smf.mixedlm(formula, rows, groups=rows["fact_id"].to_numpy(), re_formula=random).fit()
    if not fitted.converged or not np.isfinite(fitted.bse["trace"]):
        return {"reason": "did not converge"}
    low, high = fitted.conf_int(1 - resampling.level).loc["trace"] * scale
    between = float(fitted.cov_re.to_numpy()[0, 0])
    share = between / (between + float(fitted.scale))
    return {
        "slope": float(fitted.params["trace"] * scale),
        "slope_low": float(low),
        "slope_high": float(high),
        "p": float(fitted.pvalues["trace"]),
        "fact_share": share,
        "reason": "no variance between facts" if share < 1e-3 else "",
    }


def _random_slopes(profiles: Profiles, usable: pd.DataFrame, resampling: Resampling) -> dict[str, Any]:
    return _mixed(profiles, usable, resampling, "1 + trace")


def _fractional_logit(profiles: Profiles, usable: pd.DataFrame, resampling: Resampling) -> dict[str, Any]:
    if not usable["y"].between(0, 1).all():
        return {"reason": "a score lies outside 0 to 1"}
    means = usable.groupby("layer")["y"].transform("mean")
    rows = usable[means.between(1e-3, 1 - 1e-3)]  # at other layers nothing succeeds or fails
    units = dict(zip(sorted(usable["fact_id"].unique()), profiles.known().units(), strict=True))
    groups = rows["fact_id"].map(units).to_numpy()
    if len(np.unique(groups)) < 3 or is_constant(rows["trace"]):
        return {"reason": "too few facts, or all scores are 0 or 1"}
    design = np.column_stack([pd.get_dummies(rows["layer"], dtype=float), rows["trace"]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of separation
        fitted = sm.GLM(rows["y"].to_numpy(), design, family=sm.families.Binomial()).fit(
            cov_type="cluster", cov_kwds={"groups": groups}, use_t=True
        )
    if not fitted.converged or not np.isfinite(fitted.bse[-1]):
        return {"reason": "did not converge"}
    per_unit = float((fitted.mu * (1 - fitted.mu)).mean()) * len(rows) / len(usable)
    low, high = fitted.conf_int(1 - resampling.level)[-1] * per_unit
    slope = float(fitted.params[-1] * per_unit)
    return {"slope": slope, "slope_low": float(low), "slope_high": float(high), "p": float(fitted.pvalues[-1])}


def _curves(profiles: Profiles, usable: pd.DataFrame, resampling: Resampling) -> dict[str, Any]:
    profiles = profiles.whole()
    trace = profiles.trace
    bases = [_curve_terms(trace, layer) for layer in range(trace.shape[1])]
    n_terms = max((basis.shape[1] for basis in bases), default=0)
    if len(trace) < FEWEST_PER_TERM * (n_terms + 2):
        return {"reason": f"too few facts for the curves: expected {FEWEST_PER_TERM * (n_terms + 2)}, got {len(trace)}"}
    rest = profiles.without([trace]).score  # what a line per layer leaves

    def explained(dealt: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum of squares that the curves explain of dealt scores [..., fact, layer]."""
        return np.asarray(sum(((dealt[..., layer] @ basis) ** 2).sum(-1) for layer, basis in enumerate(bases)))

    total = (rest**2).sum()
    observed = float(explained(rest) / total)
    permuted = np.concatenate([explained(d) / total for d in deals(rest, profiles.relation, resampling)])
    chance = float(permuted.mean())
    p = (1 + int((permuted >= observed - 1e-12).sum())) / (1 + len(permuted))
    return {"partial": (observed - chance) / (1 - chance), "p": p}


def _curve_terms(trace: NDArray[np.float64], layer: int) -> NDArray[np.float64]:
    """An orthonormal basis [fact, term] of what curves have at a layer beyond a constant and a line."""
    own, total = trace[:, layer], trace.sum(1)
    share = np.divide(trace.max(1), total, out=np.zeros_like(total), where=total != 0)
    terms = [trace.argmax(1).astype(float), share, trace.mean(1)]
    inner = np.median(own)
    low, high = own.min(), own.max()
    if low < inner < high:
        knots = np.r_[[low] * 4, inner, [high] * 4]
        terms += list(BSpline.design_matrix(own, knots, 3).toarray().T)
    line = np.linalg.qr(np.stack([np.ones_like(own), own], 1))[0]
    stacked = np.stack(terms, 1)
    stacked = (stacked - stacked.mean(0)) / np.maximum(stacked.std(0), 1e-12)
    left, size, _ = np.linalg.svd(stacked - line @ (line.T @ stacked), full_matrices=False)
    return np.asarray(left[:, size > 1e-8 * max(1.0, size.max(initial=0.0))])


MODELS: dict[str, Model] = {
    "prompt length": _prompt_length,
    "relation": _relation,
    "random intercepts": _mixed,
    "random slopes": _random_slopes,
    "fractional logit": _fractional_logit,
    "curves": _curves,
}
"""By name, the models of `other_models`."""
