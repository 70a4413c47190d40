"""What localizers are asked: some facts together, whose clean and corrupted runs are computed once, when first used."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.localization.groups import in_groups, measure_runs, window_runs
from loc_edit.localization.hooks import check_traceable, site_name, site_window
from loc_edit.localization.metrics import Scorer
from loc_edit.localization.sweep import Base, Units, run_base
from loc_edit.localization.targets import TargetedPrompt, targeted_prompt
from loc_edit.localization.trace import Trace
from loc_edit.models.adapter import lens
from loc_edit.models.checks import warn_of_hooks
from loc_edit.models.memory import Budget
from loc_edit.models.model import Hook, Model, token_texts
from loc_edit.names import Metric
from loc_edit.prompts.batches import make_batch, run
from loc_edit.prompts.encoding import Prompt
from loc_edit.prompts.grouping import call_cost, group_by_length

log = logging.getLogger(__name__)

NOT_A_NUMBER = "fact {}: its trace is not a number, as the model's logits are NaN or infinite"

CALL = 30
"""What calling a layer once costs; measured with the built-in model, see `call_cost`."""

Grids = list[list[Float[Tensor, "layer _"]]]
"""For each fact and window, the effect of every cell, in units of the metric."""


@dataclass(frozen=True)
class Observed:
    """Activations of some runs of one fact, from a position on.

    Attributes:
        start: the position.  Before it, a corrupted run is the clean run.
        metric: the metric of each run.
        final: the residual stream after the last layer.
        site: the site's output in each layer.
        gradients: the gradient of each run's metric in these outputs; empty if nobody asked for it.
    """

    start: int
    metric: Float[Tensor, " row"]
    final: Float[Tensor, "row pos d_model"]
    site: Sequence[Float[Tensor, "row pos ..."]]
    gradients: Sequence[Float[Tensor, "row pos ..."]] = ()


class Questions:
    """The questions about some facts that share batches; refuses the same sites and models as `trace`.

    Attributes:
        model: the unedited model.
        facts: the prompts, targets and noises.
        site: the hook point whose output makes up the cells.
        windows: the numbers of layers that are taken together, each of which makes a question of its own.
        runs: for each window and layer, the first and the last layer of the window around the layer.
        scorer: measures the targets in a final residual stream.
        budget: limits the positions of one call of a layer.
        failed: by the number of a fact, why a localizer has no effects for it.
    """

    def __init__(
        self,
        model: Model,
        facts: Sequence[TargetedPrompt],
        site: str,
        windows: Sequence[int],
        metric: Metric,
        budget: Budget | None = None,
    ) -> None:
        check_traceable(model, site)
        self.model, self.facts, self.site = model, facts, site
        self.windows = [site_window(site, window) for window in windows]
        self.runs = [window_runs(window, model.cfg.n_layers) for window in self.windows]
        self.scorer, self.budget = Scorer(model, facts, metric), budget or Budget(model)
        self._backward = Budget(model, backward=True)
        self._whole = lens.watched(model) or not lens.takes_past(model)
        self._clean_base: Base | None = None
        self._corrupted: list[Observed] = []
        self.failed: dict[int, str] = {}

    def each(self) -> list[list["Question"]]:
        """For each fact and window, its question."""
        model, site, metric = self.model, self.site, self.scorer.metric
        return [
            [
                Question(
                    **vars(fact), model=model, site=site, window=w, metric=metric, clean=clean, corrupted=corrupted
                )
                for w in self.windows
            ]
            for fact, clean, corrupted in zip(self.facts, self.clean, self.corrupted(), strict=True)
        ]

    def alone(self, i: int) -> "Questions":
        """The questions about one of the facts."""
        return Questions(self.model, [self.facts[i]], self.site, self.windows, self.scorer.metric, self.budget)

    @cached_property
    def base(self) -> Base:
        """The clean run of every fact."""
        return self._run_whole([], list(range(len(self.facts))))

    @torch.no_grad()
    def corrupted_base(self, hooks: Sequence[Hook] = ()) -> Base:
        """The corrupted runs of every fact, with the clean ones in the first rows of the same batch."""
        noisy = [(i, eps) for i, fact in enumerate(self.facts) for eps in fact.noise]
        with self.model.hooks(fwd_hooks=list(hooks)):
            base = self._run_whole(noisy, [i for i, _ in noisy])
        final, fact = base.residual[-1], base.fact
        metric = self.scorer(final, fact=fact, start=torch.zeros_like(fact))
        self._corrupted = [Observed(0, metric[fact == i], final[fact == i], ()) for i in range(len(self.facts))]
        return base

    @torch.no_grad()
    def _run_whole(self, noisy: Sequence[tuple[int, Tensor]], fact: list[int]) -> Base:
        """The base of the clean rows and some noisy ones; `fact` has the number of each row's fact in the base."""
        rows, n = [*self.facts, *(self.facts[i] for i, _ in noisy)], len(self.facts)
        noise = [*(None for _ in self.facts), *(eps for _, eps in noisy)]
        batch = make_batch(self.model, [row.prompt for row in rows], [row.answer for row in rows], noise)
        number = torch.tensor(fact, device=batch.tokens.device)
        self._clean_base = run_base(self.model, batch, number, self.site, n_clean=n, whole=self._whole)
        return self._clean_base

    @cached_property
    @torch.no_grad()
    def clean(self) -> list[Observed]:
        """The clean run of each fact: one row."""
        base = self._clean_base or self.base
        each = torch.arange(len(self.facts), device=base.fact.device)
        metric = self.scorer(base.clean_final, fact=each, start=torch.zeros_like(each))
        runs = zip(metric.split(1), *(values.split(1) for values in (base.clean_final, *base.clean)), strict=True)
        cut = zip(runs, map(len, self.facts), strict=True)
        return [Observed(0, own, final[:, :n], [output[:, :n] for output in site]) for (own, final, *site), n in cut]

    def corrupted(self, *, gradients: bool = False) -> list[Observed]:
        """The corrupted runs of each fact: one row per noise sample."""
        if not self._corrupted or (gradients and not self._corrupted[0].gradients):
            self.at_share(1.0, gradients=gradients)
        return self._corrupted

    def at_share(self, share: float, *, gradients: bool = False, rules: Sequence[Hook] = ()) -> list[Observed]:
        """For each fact, one run per noise sample with this share of the noise.

        Args:
            share: the number that the noise is multiplied by; 1 gives the corrupted runs.
            gradients: whether the gradient of the metric in the site's outputs is needed.
            rules: hooks that change gradients and no values.
        """
        tails = [len(fact) - (0 if self._whole else fact.prompt.subject.start) for fact in self.facts]
        observed: dict[int, Observed] = {}
        call = call_cost(self.model, CALL)
        for group in group_by_length(tails, max(len(fact.noise) for fact in self.facts), call):
            rows = [(i, share * eps) for i in group for eps in self.facts[i].noise]
            tail, parts = max(tails[i] for i in group), list[list[Tensor]]()
            work = partial(self._run_tails, parts, rows, tail, list(rules) if gradients else None)
            (self._backward if gradients else self.budget).spend(len(rows), tail, work)
            samples = [len(self.facts[i].noise) for i in group]
            by_fact = zip(*(torch.cat(some).split(samples) for some in zip(*parts, strict=True)), strict=True)
            for i, (metric, *activations) in zip(group, by_fact, strict=True):
                start, n = max(0, len(self.facts[i]) - tail), self.model.cfg.n_layers
                final, *real = (values[:, : len(self.facts[i]) - start] for values in activations)
                observed[i] = Observed(start, metric, final, real[:n], real[n:])
        runs = [observed[i] for i in range(len(self.facts))]
        if share == 1:
            self._corrupted = [replace(run, gradients=()) for run in runs] if rules else runs
        return runs

    @torch.no_grad()
    def _run_tails(
        self, parts: list[Any], rows: list[tuple[int, Tensor]], tail: int, rules: list[Hook] | None, part: slice
    ) -> None:
        """Append the metric of some rows, their tails' final residual stream and outputs of the site, and gradients.

        Args:
            parts: what is appended to.
            rows: for each row, the number of its fact, and its noise.
            tail: the number of positions that are computed; they end where the row ends, if it is as long.
            rules: see `at_share`; `None` if no gradients are needed.
            part: the rows to run.
        """
        rows, gradients = rows[part], rules is not None
        facts = [self.facts[i] for i, _ in rows]
        batch = make_batch(
            self.model, [fact.prompt for fact in facts], [fact.answer for fact in facts], [noise for _, noise in rows]
        )
        row, start = torch.tensor([i for i, _ in rows], device=batch.tokens.device), (batch.lengths - tail).clamp(min=0)
        columns = (start[:, None] + torch.arange(tail, device=start.device)).clamp(max=batch.tokens.shape[1] - 1)
        stream = run(self.model, batch, stop_at_layer=0)[torch.arange(len(rows), device=start.device)[:, None], columns]
        units, outputs = Units(self.base, row, start, start, tail), list[Tensor]()

        def keep(value: Tensor, hook: Any) -> Tensor:
            # The first output needs no gradient from what is below it, so the graph begins there.
            if gradients and not value.requires_grad:
                value = value.detach().requires_grad_()
            outputs.append(value if gradients else value.clone())
            return value

        hooks: list[Hook] = [(site_name(self.site, layer), keep) for layer in range(self.model.cfg.n_layers)]
        with self.model.hooks(fwd_hooks=[*hooks, *(rules or ())]), torch.set_grad_enabled(gradients):
            for layer in range(self.model.cfg.n_layers):
                stream = units.block(stream[None], layer)[0]
            metric = self.scorer(stream, fact=row, start=start)
            slopes = torch.autograd.grad(metric.sum(), outputs) if gradients else ()
        # Rotated keys may have the past in front of the tail.
        tails = [values[:, values.shape[1] - tail :] for values in (*outputs, *slopes)]
        parts.append([values.detach() for values in (metric, stream, *tails)])

    def measure(self, units: Units, samples: Sequence[int]) -> Grids:
        """For each fact and window, the metric of the runs that patch a window; see `measure_runs`."""
        runs = sorted({run for runs in self.runs for run in runs})
        metrics = measure_runs(units, runs, self.scorer, self.budget, samples)
        return [[metric[[runs.index(run) for run in of_window]] for of_window in self.runs] for metric in metrics]

    def by_window(self, alone: Float[Tensor, "layer pos"]) -> list[Float[Tensor, "layer pos"]]:
        """For each window, the sums over the layers of the windows, of effects that add up."""
        return [torch.stack([alone[first : last + 1].sum(0) for first, last in runs]) for runs in self.runs]


@dataclass(frozen=True)
class Question(TargetedPrompt):
    """The question about one fact: how much does the metric of the target depend on each cell?

    A cell is a layer and a position.  The prompt, its target and its noise are the attributes of `TargetedPrompt`.

    Attributes:
        model: the unedited model.
        site: the hook point whose output makes up the cells.
        window: the number of layers that are taken together, centered on the cell's layer and clipped at the edges.
        metric: what is measured of the target.
        clean: the clean run: one row.
        corrupted: the corrupted runs, from the subject or an earlier position on: one row per noise sample.
    """

    model: Model
    site: str
    window: int
    metric: Metric
    clean: Observed
    corrupted: Observed

    @property
    def tokens(self) -> Int[Tensor, " pos"]:
        """The prompt and its target, without the target's last token."""
        return torch.cat([self.prompt.tokens, self.answer[:-1]])

    @property
    def windows(self) -> list[range]:
        """For each layer, the layers of the window around it."""
        return [range(first, last + 1) for first, last in window_runs(self.window, self.model.cfg.n_layers)]

    @property
    def p_clean(self) -> float:
        """The metric of the clean run."""
        return self.clean.metric.item()

    @property
    def p_corrupted(self) -> float:
        """The mean of the metric over the corrupted runs."""
        return self.corrupted.metric.double().mean().item()

    @property
    def differences(self) -> list[Float[Tensor, "sample pos ..."]]:
        """The site's clean output minus its corrupted output, by layer; 0 before the corrupted runs' first position."""
        start, changes = self.corrupted.start, []
        for clean, noisy in zip(self.clean.site, self.corrupted.site, strict=True):
            changes.append(clean.repeat(len(noisy), *[1] * (clean.ndim - 1)))
            changes[-1][:, :start] = 0
            changes[-1][:, start:] -= noisy
        return changes

    def trace(self, effect: Float[Tensor, "layer pos"], localizer: str, batch_size: int, reason: str) -> Trace:
        """The trace of a localizer that measured this effect, in units of the metric; if it is NaN, the log says so."""
        traced = Trace(
            self.prompt,
            self.target,
            self.p_clean,
            self.p_corrupted,
            (self.p_corrupted + effect.double()).float().cpu(),
            self.window,
            self.site,
            self.metric,
            token_texts(self.model, self.prompt.tokens),
            localizer,
            batch_size,
            reason,
        )
        if traced.is_nan:
            log.warning("%s", reason or NOT_A_NUMBER.format(self.prompt.fact_id))
        return traced


def localize_by(
    effects: Callable[..., Grids],
    localizer: str,
    model: Model,
    prompts: Sequence[Prompt],
    targets: Sequence[str | Int[Tensor, " _"]],
    noises: Sequence[Float[Tensor, "_ _ d_model"]],
    *,
    site: str,
    windows: Sequence[int],
    metric: Metric,
    foils: Sequence[str | None] | None,
    references: Sequence[Sequence[Prompt]] | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> list[list[Trace]]:
    """The traces of `effects`, the function of a localizer from `Questions` and its options; see `localize_many`."""
    n = len(prompts)
    foils, references = foils or [None] * n, references or [()] * n
    if not n == len(targets) == len(noises) == len(foils) == len(references):
        raise ValueError(
            f"expected lists of one length, got {n} prompts, {len(targets)} targets, {len(noises)} noises, "
            f"{len(foils)} foils and {len(references)} lists of references"
        )
    check_traceable(model, site)
    warn_of_hooks(model)
    facts = [
        targeted_prompt(model, prompt, target, noise, metric, foil, reference)
        for prompt, target, noise, foil, reference in zip(prompts, targets, noises, foils, references, strict=True)
    ]
    budget = Budget(model, batch_size)

    def work(group: list[int]) -> list[list[Trace]]:
        questions = Questions(model, [facts[i] for i in group], site, windows, metric, budget)
        grids = effects(questions, **options)
        reasons = [questions.failed.get(i, "") for i in range(len(group))]
        return [
            [
                question.trace(effect, localizer, budget.positions, reason)
                for question, effect in zip(*rows, strict=True)
            ]
            for *rows, reason in zip(questions.each(), grids, reasons, strict=True)
        ]

    return in_groups(model, facts, budget, work)
