"""Arranges the rows of one method x problem as fact x layer, and computes shares of variance from sums over facts.

The full model, y ~ C(layer) * trace, is a line per layer; its sums of squares follow from six sums per layer, so that
leaving facts out, or drawing them again, costs a subtraction or a matrix product instead of a fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from loc_edit.analysis.tables.rows import PROMPT_LENGTH, RELATION
from loc_edit.names import SCORES

NAN = float("nan")
FEWEST_RELATIONS = 10
"""With fewer relations, or all facts of one, facts are the units of every interval, and the answer is about these
relations; with more, relations are, and the answer is about relations like these."""


@dataclass(frozen=True)
class Resampling:
    """How facts are resampled.

    Attributes:
        draws: how many resamples or permutations.
        level: coverage of the intervals.
        seed: of the random draws.
    """

    draws: int = 2000
    level: float = 0.95
    seed: int = 0


DEFAULTS = Resampling()


@dataclass(frozen=True)
class Sums:
    """What the fits need of some facts: sums of squares around the layers' means.

    Attributes:
        signal: by layer, covariance / deviation of the tracing effect: its square is what a line there explains.
        pooled: the same for one slope in common to all layers; like all that follow without the layers' axis.
        scale: the root of the tracing effect's sum of squares over all layers; `pooled / scale` is the common slope.
        rest: the sum of squares that the layers' means leave.
        total: the sum of squares around the mean of all.
    """

    signal: NDArray[np.float64]
    pooled: Any
    scale: Any
    rest: Any
    total: Any

    @classmethod
    def of(cls, sums: NDArray[np.float64]) -> "Sums":
        """From the sums of `Profiles.sums` over facts, of shape [..., 6, layer]."""
        n, x, y, xx, xy, yy = np.moveaxis(sums, -2, 0)
        per_row = np.divide(1.0, n, out=np.zeros_like(n), where=n > 0)
        within_xx, within_xy, within_yy = xx - x * x * per_row, xy - x * y * per_row, yy - y * y * per_row
        varies = within_xx > 1e-12 * np.maximum(xx, 1e-12)
        within_xx, within_xy = np.where(varies, within_xx, 1.0), np.where(varies, within_xy, 0.0)
        scale = np.sqrt(np.where(varies, within_xx, 0.0).sum(-1))
        pooled = np.divide(within_xy.sum(-1), scale, out=np.zeros_like(scale), where=scale > 0)
        total = yy.sum(-1) - y.sum(-1) ** 2 / n.sum(-1)
        return cls(within_xy / np.sqrt(within_xx), pooled, scale, np.maximum(within_yy, 0).sum(-1), total)


@dataclass(frozen=True)
class Profiles:
    """Tracing effects and outcomes of one method x problem as fact x layer; NaN where there is no number.

    Attributes:
        trace: [fact, layer].
        score: [fact, layer].
        relation: the number of each fact's relation, from 0; of its own for each fact where relations are unknown.
        prompt_length: tokens of each fact's prompt; NaN where unknown.
        layers: the layers' numbers.
        sign: 1 if more of the score is better, -1 if less is.
    """

    trace: NDArray[np.float64]
    score: NDArray[np.float64]
    relation: NDArray[np.intp]
    prompt_length: NDArray[np.float64]
    layers: NDArray[np.int64]
    sign: float = 1.0

    @classmethod
    def of(cls, frame: pd.DataFrame, outcome: str = "rewrite", regressor: str = "trace") -> "Profiles":
        """The profiles of the rows of one method x problem; an infinite number counts as none."""
        wide = frame.pivot(index="fact_id", columns="layer", values=[regressor, outcome]).astype(float)
        wide = wide.replace([np.inf, -np.inf], np.nan)
        facts = frame.drop_duplicates("fact_id").set_index("fact_id").reindex(wide.index)
        length = facts[PROMPT_LENGTH].to_numpy(float) if PROMPT_LENGTH in facts else np.full(len(wide), np.nan)
        trace, score = wide[regressor], wide[outcome]
        arrays = trace.to_numpy(float), score.to_numpy(float), _relations(facts), length, trace.columns.to_numpy()
        return cls(*arrays, sign_of(outcome))

    @property
    def present(self) -> NDArray[np.bool_]:
        """Where both are numbers."""
        return ~np.isnan(self.trace) & ~np.isnan(self.score)

    def usable(self) -> bool:
        """Whether statistics make sense: there are at least three facts, and the outcome varies."""
        scores = self.score[self.present]
        return bool(self.present.any(1).sum() >= 3 and np.ptp(scores) > 0)

    def of_facts(self, kept: Any) -> "Profiles":
        """The profiles of the facts where an array of booleans is true."""
        _, relation = np.unique(self.relation[kept], return_inverse=True)
        rows = {"trace": self.trace[kept], "score": self.score[kept], "prompt_length": self.prompt_length[kept]}
        return replace(self, relation=relation, **rows)

    def whole(self) -> "Profiles":
        """The facts with both numbers at every layer."""
        return self.of_facts(self.present.all(1))

    def known(self) -> "Profiles":
        """The facts with both numbers at some layer."""
        return self.of_facts(self.present.any(1))

    def units(self) -> NDArray[np.intp]:
        """The number of the unit that each fact belongs to: what is left out or drawn as one, a relation or a fact."""
        n_relations = len(np.unique(self.relation))
        return self.relation if n_relations >= FEWEST_RELATIONS else np.arange(len(self.relation))

    def has_relations(self) -> bool:
        """Whether at least two facts share a relation, and not all facts do."""
        return 1 < len(np.unique(self.relation)) < len(self.relation)

    def within_facts(self) -> "Profiles":
        """The profiles minus each fact's means over the layers, of the facts that are whole."""
        whole = self.whole()
        trace, score = (a - a.mean(1, keepdims=True) for a in (whole.trace, whole.score))
        return replace(whole, trace=trace, score=score)

    def without(self, covariates: Sequence[NDArray[np.float64]]) -> "Profiles":
        """What is left of both at each layer after a regression on covariates, for the facts that have them.

        By the theorem of Frisch, Waugh and Lovell the share that the rest of the tracing effect explains is the
        share that it explains beyond the layers and the covariates.

        Args:
            covariates: each [fact] or [fact, layer].
        """
        trace, score = np.full_like(self.trace, np.nan), np.full_like(self.score, np.nan)
        for layer in range(self.trace.shape[1]):
            design = np.stack([np.ones(len(trace)), *(c if c.ndim == 1 else c[:, layer] for c in covariates)], 1)
            rows = self.present[:, layer] & np.isfinite(design).all(1)
            both = np.stack([self.trace[rows, layer], self.score[rows, layer]], 1)
            rest = both - design[rows] @ np.linalg.lstsq(design[rows], both, rcond=None)[0]
            scale = np.maximum(np.abs(both).max(0, initial=0.0), 1e-12)
            trace[rows, layer], score[rows, layer] = np.where(np.abs(rest) < 1e-10 * scale, 0.0, rest).T
        return replace(self, trace=trace, score=score)

    def sums(self, units: NDArray[np.intp] | None = None) -> NDArray[np.float64]:
        """Per unit and layer the sums of 1, x, y, xx, xy, yy, both without their overall means, for accuracy.

        Args:
            units: the unit of each fact; by default each fact is one.

        Returns:
            [unit, 6, layer], without units that have no number at all.
        """
        present = self.present
        x, y = (np.where(present, a - a[present].mean(), 0.0) for a in (self.trace, self.score))
        products = np.stack([present.astype(float), x, y, x * x, x * y, y * y], axis=1)
        if units is not None:
            by_unit = np.zeros((units.max(initial=-1) + 1, *products.shape[1:]))
            np.add.at(by_unit, units, products)
            products = by_unit
        return products[products[:, 0].any(1)]


def explained(sums: NDArray[np.float64]) -> tuple[Any, Any]:
    """R^2 of the layer, and the R^2 that a line per layer adds, from sums over facts [..., 6, layer]."""
    parts = Sums.of(sums)
    with np.errstate(divide="ignore", invalid="ignore"):  # a constant outcome: NaN
        return 1 - parts.rest / parts.total, (parts.signal**2).sum(-1) / parts.total


def sign_of(outcome: str) -> float:
    """-1 for a score of which less is better, else 1: times this, more is better."""
    return -1.0 if outcome in SCORES and SCORES[outcome].better == "low" else 1.0


def _relations(facts: pd.DataFrame) -> NDArray[np.intp]:
    """The number of each fact's relation; a fact without one is alone."""
    if RELATION not in facts:
        return np.arange(len(facts))
    names = facts[RELATION].fillna("").astype(str).to_numpy()
    alone = [name or f"\n{fact}" for name, fact in zip(names, facts.index, strict=True)]
    return np.unique(np.asarray(alone, dtype=object).astype(str), return_inverse=True)[1]
