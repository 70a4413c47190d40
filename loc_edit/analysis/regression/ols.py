"""Fits the paper's regressions: of a score on the layer, on the tracing effect, and on both."""

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
import statsmodels.formula.api as smf
from statsmodels.stats.anova import anova_lm
from statsmodels.tools.sm_exceptions import SingularMatrixWarning

from loc_edit.analysis.tables.rows import by_combination, combination_columns, in_paper_order, require, without_controls
from loc_edit.analysis.tables.summaries import is_constant
from loc_edit.arguments import checked
from loc_edit.names import method_label

NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How much of an outcome's variance layer and tracing effect explain, for one method x problem.

    Attributes:
        problem: the editing problem.
        method: the editor.
        window: the editor's window.
        outcome: the score explained.
        r2_layer: R^2 of y ~ C(layer).
        r2_trace: R^2 of y ~ trace.
        r2_both: R^2 of y ~ C(layer) * trace.
        r2_added: r2_both - r2_layer.
        r2_layer_adjusted: adjusted R^2 of the first.
        r2_both_adjusted: adjusted R^2 of the last.
        f: F of the nested test, layer against both.
        df_num: its numerator's degrees of freedom (layers whose tracing effect varies).
        df_den: its denominator's degrees of freedom.
        p: its p-value, taking all rows as independent, as the paper does.
        n: rows used.
        n_dropped: rows left out for a NaN in outcome or tracing effect.
        n_facts: facts among the rows used.
        layers: layers among the rows used, 0-based.
        reason: why a number is NaN; empty if none is.
    """

    problem: str = ""
    method: str = ""
    window: int = 1
    outcome: str = "rewrite"
    r2_layer: float = NAN
    r2_trace: float = NAN
    r2_both: float = NAN
    r2_added: float = NAN
    r2_layer_adjusted: float = NAN
    r2_both_adjusted: float = NAN
    f: float = NAN
    df_num: float = NAN
    df_den: float = NAN
    p: float = NAN
    n: int = 0
    n_dropped: int = 0
    n_facts: int = 0
    layers: tuple[int, ...] = ()
    reason: str = ""

    def __repr__(self) -> str:
        names = f"{self.outcome}, {method_label(self.method, self.window)}, {self.problem}".strip(", ")
        text = (
            f"Fit({names}: R^2 layer {self.r2_layer:.3f}, trace {self.r2_trace:.3f}, both {self.r2_both:.3f}, "
            f"added {self.r2_added:+.4f}; F({self.df_num:.0f}, {self.df_den:.0f}) = {self.f:.2f}, "
            f"p = {self.p:.2g}; {self.n} rows, {self.n_facts} facts, {len(self.layers)} layers, "
            f"{self.n_dropped} dropped"
        )
        return text + (f"; {self.reason})" if self.reason else ")")

    def _repr_html_(self) -> str:
        return str(self.to_frame().T.to_html(header=False))

    def to_frame(self) -> pd.DataFrame:
        """The fit as a frame of one row."""
        return pd.DataFrame([asdict(self)], columns=[field.name for field in fields(self)])


@checked
def fit(frame: pd.DataFrame, outcome: str = "rewrite", regressor: str = "trace") -> Fit:
    """Explain an outcome by layer, by tracing effect, and by both, for ONE method x problem.

    Rows with a NaN in outcome or tracing effect are dropped once, before all fits, and counted.  A number
    that cannot be computed is NaN, and `reason` says why.

    Args:
        frame: rows of the regression, see `Run.frame`: `fact_id, layer, trace` and the outcome.
        outcome: the column to explain.
        regressor: the column with the tracing effect.

    Raises:
        ValueError: the frame holds several methods or problems (`fits` takes such frames), or lacks a column.
    """
    require(frame, ["fact_id", "layer", regressor, outcome], "fit")
    frame = without_controls(frame)
    combination = _the_combination(frame)
    rows, n_dropped = usable_rows(frame, outcome, regressor)
    return Fit(
        **combination,
        outcome=outcome,
        n=len(rows),
        n_dropped=n_dropped,
        n_facts=int(rows["fact_id"].nunique()),
        layers=tuple(int(layer) for layer in np.unique(rows["layer"])),
        **_explained(rows, outcome),
    )


@checked
def fits(frame: pd.DataFrame, outcome: str = "rewrite", regressor: str = "trace") -> pd.DataFrame:
    """`fit` for every problem x method x window in the frame: one row each, in the paper's order."""
    return fits_beside(frame, outcome, regressor, lambda rows: {})


def fits_beside(
    frame: pd.DataFrame, outcome: str, regressor: str, more: Callable[[pd.DataFrame], dict[str, Any]]
) -> pd.DataFrame:
    """`fits` with further columns: `more` computes them from the rows of a combination."""
    require(frame, ["fact_id", "layer", regressor, outcome], "fits")
    groups = [rows for _, rows in by_combination(frame) if len(rows)]
    table = [asdict(fit(rows, outcome, regressor)) | more(rows) for rows in groups]
    return in_paper_order(pd.DataFrame(table, columns=None if table else [field.name for field in fields(Fit)]))


def usable_rows(frame: pd.DataFrame, outcome: str, regressor: str = "trace") -> tuple[pd.DataFrame, int]:
    """The rows `fact_id, layer, trace, y` without NaN, and the number of rows left out."""
    rows = frame[["fact_id", "layer"]].assign(trace=frame[regressor].astype(float), y=frame[outcome].astype(float))
    kept = rows.replace([np.inf, -np.inf], np.nan).dropna().reset_index(drop=True)
    return kept, len(rows) - len(kept)


def _the_combination(frame: pd.DataFrame) -> dict[str, Any]:
    """The only problem, method and window of a frame."""
    keys = combination_columns(frame)
    combinations = frame[keys].drop_duplicates().to_dict("records") if keys else []
    if len(combinations) > 1:
        names = ", ".join(" x ".join(map(str, combination.values())) for combination in combinations)
        raise ValueError(f"fit takes one {' x '.join(keys)}, got {len(combinations)}: {names}; use fits")
    return {str(k): int(v) if k == "window" else str(v) for row in combinations for k, v in row.items()}


def _explained(rows: pd.DataFrame, outcome: str) -> dict[str, Any]:
    """The R^2s and the test that these rows allow, and the reasons why others are missing."""
    if rows.empty:
        return {"reason": f"no row has both {outcome} and a tracing effect"}
    if is_constant(rows["y"]):
        return {"reason": f"{outcome} is constant"}
    numbers: dict[str, Any] = {}
    reasons = []
    if rows["layer"].nunique() == 1:
        reasons.append("there is one layer only")
    elif len(rows) <= rows["layer"].nunique():
        reasons.append("too few rows for the layers")
    else:
        by_layer = smf.ols("y ~ C(layer)", rows).fit()
        numbers |= {"r2_layer": by_layer.rsquared, "r2_layer_adjusted": by_layer.rsquared_adj}
    if is_constant(rows["trace"]):
        reasons.append("the tracing effect is constant")
    elif len(rows) <= 2:
        reasons.append("too few rows for a line")
    else:
        numbers["r2_trace"] = smf.ols("y ~ trace", rows).fit().rsquared
    if not reasons:
        nested, reason = _nested(rows, by_layer)
        numbers |= nested
        reasons.append(reason)
    return {name: float(value) for name, value in numbers.items()} | {"reason": "; ".join(reasons)}


def _nested(rows: pd.DataFrame, by_layer: Any) -> tuple[dict[str, float], str]:
    """The full model, and the F-test against the layers alone, or the reason why there is none."""
    with warnings.catch_warnings():
        # A layer whose tracing effect never varies has no slope; rank and degrees of freedom account for it.
        warnings.simplefilter("ignore", SingularMatrixWarning)
        both = smf.ols("y ~ C(layer) * trace", rows).fit()
    if both.df_resid < 1:
        return {}, "too few rows for layer and tracing effect together"
    numbers = {
        "r2_both": both.rsquared,
        "r2_both_adjusted": both.rsquared_adj,
        "r2_added": both.rsquared - by_layer.rsquared,
        "df_num": by_layer.df_resid - both.df_resid,
        "df_den": both.df_resid,
    }
    if numbers["df_num"] < 1:
        return numbers, "the tracing effect is constant within every layer"
    if both.ssr <= 1e-12 * both.centered_tss:
        return numbers, "the fit is exact: no F"
    test = anova_lm(by_layer, both)
    return numbers | {"f": test["F"].iloc[1], "p": test["Pr(>F)"].iloc[1]}, ""
