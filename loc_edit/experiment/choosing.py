"""Choosing the layer to edit before editing: from a few facts, by a localizer, by gradients, or by a pilot of edits."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from loc_edit.analysis.regression.folds import chosen_by_others, splits
from loc_edit.analysis.regression.profiles import sign_of
from loc_edit.analysis.regression.rules import PILOT, layer_rules, votes
from loc_edit.analysis.tables.localized import localizers_in
from loc_edit.analysis.tables.rows import EffectDefinition, RowsMissing, by_layer
from loc_edit.arguments import Count, Window, checked
from loc_edit.editing.gradients import gradient_gains
from loc_edit.events import progress
from loc_edit.experiment.batch import Batch
from loc_edit.experiment.config import BadConfig, ExperimentConfig
from loc_edit.experiment.setup import Setup
from loc_edit.experiment.study import TraceCell, edit_cells
from loc_edit.facts.fact import Fact
from loc_edit.models.model import Model
from loc_edit.names import LOCALIZERS, OWN_SCORES, nearest, windows_of
from loc_edit.views.table import html_table

GRADIENT = "gradient"


@dataclass(frozen=True)
class LayerChoice:
    """A layer to edit, and how sure the choice is.

    Attributes:
        layer: the layer with the largest mean value; for a method with a window, its center.
        rule: what the values are.
        sure: in which share of resamples of the facts this layer is the best.
        by_layer: a row per layer: layer, mean (of the values over the facts), votes (the share of resamples in which it
            is the best).
        worth: of a pilot, mean scores: `chosen`, of editing each fact at the layer that the other facts choose; `any`,
            over all layers; `oracle`, at each fact's best layer, part of which is luck.  Empty for other rules, as they
            edit nothing.
        n_facts: the facts that have a value at every layer.
        seconds: how long it took.
    """

    layer: int
    rule: str
    sure: float
    by_layer: pd.DataFrame = field(repr=False)
    worth: dict[str, float] = field(repr=False)
    n_facts: int
    seconds: float

    def _repr_html_(self) -> str:
        title = f"layer {self.layer} by {self.rule}: the best in {self.sure:.0%} of resamples of {self.n_facts} facts"
        rows = ((int(layer), mean, votes) for layer, mean, votes in self.by_layer.itertuples(index=False))
        return html_table(rows, header=("layer", "mean", "votes"), title=title)


@checked
def choose_layer(
    model: Model | str,
    facts: Sequence[Fact],
    *,
    rule: str = PILOT,
    method: str = "rome",
    problem: str = "error_injection",
    outcome: str = "overall",
    window: Window = 5,
    draws: Count = 2000,
    **options: Any,
) -> LayerChoice:
    """The layer to edit, from a few facts.

    Args:
        model: the model, or the name of one.
        facts: ten or so, like those that will be edited.
        rule: `pilot`, edits of these facts at every layer; `gradient`, see `gradient_gains`; or a localizer.
        method: what the pilot edits with, such as `memit`.
        problem: what is asked of the facts.
        outcome: the score that the pilot looks at.
        window: of a localizer.
        draws: resamples of facts.
        options: further fields of `ExperimentConfig`: layers, noise, corpus, preset, seed and so on.

    Raises:
        BadConfig: no such rule, or an option that is not known.
        RowsMissing: no fact has a value at every layer; the first reason is given.
    """
    start = time.perf_counter()
    if rule not in (PILOT, GRADIENT, *LOCALIZERS):
        raise BadConfig(f"rule {rule!r}: {nearest(rule, [PILOT, GRADIENT, *LOCALIZERS])}")
    if not facts:
        raise BadConfig("choose_layer: expected at least one fact, got none")
    name = model if isinstance(model, str) else model.cfg.model_name
    values: dict[str, Any] = {"model": name, "methods": (method,), "problems": (problem,), "windows": (window,)}
    values |= {"facts": "all", "essence": False}
    values |= {"localizers": (rule,)} if rule in LOCALIZERS else {}
    setup = Setup(ExperimentConfig.from_values({**values, **options}, "choose_layer"))
    if outcome not in (scores := [*OWN_SCORES, *setup.config.used["scores"]]):
        raise BadConfig(f"outcome {outcome!r}: {nearest(outcome, scores)}")
    setup = setup.with_data(list(facts), None if isinstance(model, str) else model)
    wide = _values(setup, rule, problem, outcome)
    votes_of = votes(wide.to_numpy(float), draws, setup.config.seed)
    table = pd.DataFrame({"layer": wide.columns, "mean": wide.mean().to_numpy(), "votes": votes_of})
    best = int(table["mean"].argmax())
    worth = _worth(wide.to_numpy(float), setup.config.seed) if rule == PILOT else {}
    seconds = time.perf_counter() - start
    return LayerChoice(
        int(table["layer"][best]), rule, float(table["votes"][best]), table, worth, len(wide), round(seconds, 2)
    )


def _values(setup: Setup, rule: str, problem: str, outcome: str) -> pd.DataFrame:
    """The rule's values [fact, layer], the larger the better, for the facts that have one at every layer."""
    rows = pd.concat(_rows(setup, rule, problem), ignore_index=True)
    if rule in LOCALIZERS:
        rows = _effects(rows, rule, int(rows["window"].iloc[0]), setup.config.site)
        rows = rows[rows["layer"].isin(setup.layers)]
    elif rule == PILOT:
        rows = rows.assign(value=rows[outcome] * sign_of(outcome))
    wide = rows.pivot_table(index="fact_id", columns="layer", values="value").dropna()
    if wide.empty:
        reasons = rows["reason"][rows["reason"] != ""] if "reason" in rows else pd.Series(dtype=object)
        raise RowsMissing(f"no fact has a value at every layer{': ' + reasons.iloc[0] if len(reasons) else ''}")
    return wide


def _effects(traces: pd.DataFrame, localizer: str, window: int, site: str) -> pd.DataFrame:
    """A localizer's effect by fact and layer, as the values of a rule."""
    return by_layer(traces, EffectDefinition(window, site, localizer=localizer)).rename(columns={"trace": "value"})


def _rows(setup: Setup, rule: str, problem: str) -> list[pd.DataFrame]:
    """The rows behind a rule's values, batch by batch."""
    config, parts = setup.config, list[pd.DataFrame]()
    for start in range(0, len(setup.data), config.chunk):
        batch = Batch(setup, setup.data[start : start + config.chunk])
        if rule in LOCALIZERS:
            parts += [TraceCell(rule, window).rows(batch) for window in windows_of(rule, config.windows)]
        elif rule == GRADIENT:
            parts.append(gradient_rows(batch, problem))
        else:
            cells = edit_cells(setup, problem)
            for i, cell in enumerate(cells):
                parts.append(cell.rows(batch))
                progress("layers", i + 1, len(cells))
    return parts


def gradient_rows(batch: Batch, problem: str) -> pd.DataFrame:
    """What `gradient_gains` says of a batch's facts: fact_id, layer, value; none for facts that the problem skips."""
    posed, layers = batch.posed(problem), batch.setup.layers
    rows = []
    for i, (fact, request) in enumerate(zip(posed.facts, posed.requests, strict=True)):
        gains = gradient_gains(batch.setup.model, fact, request).tolist()
        rows += [{"fact_id": fact.fact_id, "layer": layer, "value": gains[layer]} for layer in layers]
        progress("gradients", i + 1, len(posed.facts))
    return pd.DataFrame(rows, columns=["fact_id", "layer", "value"])


def compare_rules(
    setup: Setup, traces: pd.DataFrame, edits: pd.DataFrame, *, window: Window = 5, facts: int = 10, draws: int = 200
) -> pd.DataFrame:
    """What the layer is worth that each rule chooses from a few facts, judged on the others.

    Args:
        setup: of the run that the rows are of; its model gives the gradients.
        traces: the rows of localizers; each localizer is a rule.
        edits: the rows of edits; their facts are looked at.
        window: of the localizers.
        facts: how many a rule sees.
        draws: how often they are drawn.

    Returns:
        See `layer_rules`; the rules are the localizers, `gradient` and `pilot`.
    """
    values = {name: _effects(traces, name, window, setup.config.site) for name in localizers_in(traces)}
    ids = set(edits["fact_id"])
    batch = Batch(setup, [fact for fact in setup.data if fact.fact_id in ids])
    gradients = [gradient_rows(batch, problem).assign(problem=problem) for problem in edits["problem"].unique()]
    return layer_rules(values | {GRADIENT: pd.concat(gradients)}, edits, facts=facts, draws=draws)


def _worth(scores: np.ndarray, seed: int) -> dict[str, float]:
    """See `LayerChoice`; with fewer than three facts nothing can be said."""
    if len(scores) < 3:
        return {}
    means, _ = chosen_by_others(scores, splits(np.arange(len(scores)), seed), np.ones((1, len(scores))))
    return {"chosen": float(means[0]), "any": float(scores.mean()), "oracle": float(scores.max(1).mean())}
