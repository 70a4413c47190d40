"""Facts in groups that share batches, and the metric of every patched run of a group."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from loc_edit import events
from loc_edit.localization.hooks import window_layers
from loc_edit.localization.metrics import Scorer
from loc_edit.localization.sweep import LOCAL, Layers, Step, Units, enter, plan, sweep
from loc_edit.localization.targets import TargetedPrompt
from loc_edit.models.adapter import lens
from loc_edit.models.memory import Budget
from loc_edit.models.model import Model

T = TypeVar("T")

CACHED = 2**30
"""Bytes of activations that are kept at a time."""


def in_groups(
    model: Model, facts: Sequence[TargetedPrompt], budget: Budget, work: Callable[[list[int]], Sequence[T]]
) -> list[T]:
    """The results of all facts, in their order.

    Args:
        model: the model.
        facts: the facts.  Facts of similar length share a group; while a hook is on the model, each has its own.
        budget: limits the positions of a group's clean and corrupted rows.
        work: computes the results of a group, given the numbers of its facts.
    """
    order = sorted(range(len(facts)), key=lambda i: len(facts[i]))  # similar lengths: little padding
    positions = max((len(fact) * (len(fact.noise) + 1) for fact in facts), default=1)
    results: dict[int, T] = {}

    def measure(part: slice) -> None:
        results.update(zip(order[part], work(order[part]), strict=True))

    kept = 4 * model.cfg.n_layers * model.cfg.d_model * model.W_E.element_size()
    budget.spend(len(order), positions, measure, 1 if lens.watched(model) else max(1, CACHED // (kept * positions)))
    return [results[i] for i in range(len(order))]


def window_runs(window: int, n_layers: int) -> list[Layers]:
    """For each layer, the run that patches the window around it."""
    windows = [window_layers(center, window, n_layers) for center in range(n_layers)]
    return [(layers[0], layers[-1]) for layers in windows]


@torch.inference_mode()
def measure_runs(
    units: Units, runs: Sequence[Layers], scorer: Scorer, budget: Budget, samples: Sequence[int]
) -> list[Float[Tensor, "run _"]]:
    """The metric of each fact, run and position, averaged over samples.

    Args:
        units: fact by fact, position by position, sample by sample; their tails may differ in length.
        runs: the runs, all different.
        scorer: measures the facts' targets.
        budget: limits the positions of one call of a layer.
        samples: for each fact, the number of units that a position has.
    """
    base = units.base
    if base.site in LOCAL and not base.whole:
        units = replace(units, entered=_entered(units, sorted({first for first, _ in runs}), budget))
    steps = plan(runs, base.model.cfg.n_layers, entered=bool(units.entered))
    values = torch.empty(len(runs), len(units), device=units.row.device)
    tails = base.lengths[units.row] - units.start
    for tail in tails.unique().tolist():
        events.step("patched tokens", int((tails < tail).sum()), len(tails))
        alike = (tails == tail).nonzero()[:, 0]
        alike = alike[units.start[alike].argsort(stable=True)]  # pasts of similar lengths: little padding
        values[:, alike] = _swept(units.select(alike, tail), steps, scorer, budget)
    return [values[:, units.fact == i].double().unflatten(1, (-1, n)).mean(-1).cpu() for i, n in enumerate(samples)]


def _entered(units: Units, firsts: Sequence[int], budget: Budget) -> dict[int, Float[Tensor, "unit d_model"]]:
    """By first layer of the runs, what `enter` computes for all units."""
    after = units.base.residual[0].new_empty(len(firsts), len(units), units.base.model.cfg.d_model)

    def work(part: slice) -> None:
        after[:, part] = enter(units.select(part), firsts)

    budget.spend(len(units), 1, work)
    return dict(zip(firsts, after, strict=True))


def _swept(units: Units, steps: Sequence[Step], scorer: Scorer, budget: Budget) -> Float[Tensor, "run unit"]:
    """The metric of every run of units whose tails have one length."""
    n = len(steps[-1].source)
    values = torch.empty(n, len(units), device=units.row.device)

    def work(part: slice) -> None:
        batch = units.select(part)
        final = sweep(batch, steps).flatten(0, 1)
        values[:, part] = scorer(final, batch.fact.repeat(n), batch.start.repeat(n)).view(n, len(batch))

    budget.spend(len(units), max(len(step.source) for step in steps) * units.tail, work)
    return values
