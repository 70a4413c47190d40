"""Causal Tracing of one prompt (`trace`) or of many (`trace_many`), in batches that fit into memory.

This file checks the arguments, forms the batches and averages over noise samples; `sweep` computes a batch.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.localization.hooks import check_traceable, site_window, window_layers
from loc_edit.localization.metrics import Scorer
from loc_edit.localization.sweep import LOCAL, Base, Layers, Step, Units, enter, plan, run_base, sweep
from loc_edit.localization.targets import TargetedPrompt, targeted_prompt
from loc_edit.localization.trace import Trace
from loc_edit.models.memory import Budget
from loc_edit.models.model import Model, token_texts
from loc_edit.models.passes import takes_past
from loc_edit.names import Metric
from loc_edit.prompts.batches import make_batch
from loc_edit.prompts.encoding import Prompt

log = logging.getLogger(__name__)

NOT_A_NUMBER = "fact {}: its trace is not a number, as the model's logits are NaN or infinite"

CACHED = 2**30
"""Bytes of corrupted activations that are kept at a time."""


def trace(
    model: Model,
    prompt: Prompt,
    target: str | Int[Tensor, " target"],
    *,
    noise: Float[Tensor, "sample subject d_model"],
    site: str = "mlp_out",
    window: int = 5,
    metric: Metric = "probability",
    foil: str | None = None,
    batch_size: int | None = None,
) -> Trace:
    """Causal Tracing of one prompt, at every layer and position.

    Args:
        model: any pre-norm or post-norm model.
        prompt: from `encode`.
        target: the text (or token ids) whose probability is traced; the probabilities of several tokens multiply.
        noise: what is added to the subject's embeddings, one row of the batch per sample.
        site: the hook point that is restored; `mlp_out`, `attn_out`, `resid_post`, or what follows
            `blocks.<l>.` in a hook name.
        window: the number of layers restored together, from `l - w // 2` to `l - w // 2 + w - 1`, clipped to the
            model; `resid_post` always takes 1.
        metric: `probability`, `log_probability` (mean over samples), or `logit_difference` (first token of the
            target minus first token of `foil`).
        foil: the other answer of `logit_difference`.
        batch_size: see `trace_many`.

    Raises:
        ValueError: an unknown site, a window below 1, noise of another shape, or a model whose logits are not numbers.
    """
    ((traced,),) = trace_many(
        model,
        [prompt],
        [target],
        noises=[noise],
        site=site,
        windows=[window],
        metric=metric,
        foils=[foil],
        batch_size=batch_size,
    )
    if traced.is_nan:
        raise ValueError(NOT_A_NUMBER.format(prompt.fact_id))
    return traced


@torch.inference_mode()
def trace_many(
    model: Model,
    prompts: Sequence[Prompt],
    targets: Sequence[str | Int[Tensor, " _"]],
    *,
    noises: Sequence[Float[Tensor, "_ _ d_model"]],
    site: str = "mlp_out",
    windows: Sequence[int] = (5,),
    metric: Metric = "probability",
    foils: Sequence[str | None] | None = None,
    batch_size: int | None = None,
) -> list[list[Trace]]:
    """Causal Tracing of many prompts with many windows: the same traces as from `trace`, with shared work.

    Your own hooks on the model are part of all runs.  Prompts are then computed one by one and whole; only the final
    norm and the unembedding are limited to the positions that predict the target.

    Args:
        model: see `trace`.
        prompts: from `encode`.
        targets: one per prompt.
        noises: one per prompt.
        site: see `trace`.
        windows: the windows to trace with.
        metric: see `trace`.
        foils: one per prompt.
        batch_size: about how many token positions (rows times their length) one call of a layer computes; the default
            suits the device.  If memory does not suffice, it is halved, with a warning in the log; the final value
            is kept in `Trace.batch_size`.

    Returns:
        For each prompt its traces, one per window, in the given order.  If the model's logits are not numbers, the
        traces are not either, and a warning in the log names the fact.

    Raises:
        ValueError: see `trace`; lists of different lengths.
    """
    n, n_layers = len(prompts), model.cfg.n_layers
    foils = [None] * n if foils is None else foils
    if not n == len(targets) == len(noises) == len(foils):
        raise ValueError(
            f"expected lists of one length, got {n} prompts, {len(targets)} targets, {len(noises)} noises and "
            f"{len(foils)} foils"
        )
    windows = [site_window(site, window) for window in windows]
    layers = {window: [window_layers(center, window, n_layers) for center in range(n_layers)] for window in windows}
    runs = {window: [(restored[0], restored[-1]) for restored in layers[window]] for window in windows}
    check_traceable(model, site)
    questions = zip(prompts, targets, noises, foils, strict=True)
    facts = [targeted_prompt(model, prompt, target, noise, metric, foil) for prompt, target, noise, foil in questions]
    distinct = sorted({run for window in windows for run in runs[window]})
    job = _Job(model, facts, site, metric, distinct, Budget(model, batch_size))
    return [
        [job.trace(fact, window, runs[window], numbers) for window in windows]
        for fact, numbers in zip(facts, job.results(), strict=True)
    ]


@dataclass(frozen=True)
class _Numbers:
    """The clean, corrupted and restored metric of one fact; restored for each run and position from the subject on."""

    p_clean: float
    p_corrupted: float
    p_restored: Float[Tensor, "run pos"]


@dataclass(frozen=True)
class _Job:
    """One call of `trace_many`: its facts, the runs that all of them share, and the limit on a batch."""

    model: Model
    facts: Sequence[TargetedPrompt]
    site: str
    metric: Metric
    runs: list[Layers]
    budget: Budget

    def trace(self, fact: TargetedPrompt, window: int, runs: Sequence[Layers], numbers: _Numbers) -> Trace:
        """The trace of a fact with one window, of which `runs` holds each layer's run."""
        prompt = fact.prompt
        restored = torch.full((len(runs), len(prompt)), numbers.p_corrupted, dtype=torch.float32)
        restored[:, prompt.subject.start :] = numbers.p_restored[[self.runs.index(run) for run in runs]]
        traced = Trace(
            prompt,
            fact.target,
            numbers.p_clean,
            numbers.p_corrupted,
            restored,
            window,
            self.site,
            self.metric,
            token_texts(self.model, prompt.tokens),
            batch_size=self.budget.positions,
        )
        if traced.is_nan:
            log.warning(NOT_A_NUMBER.format(prompt.fact_id))
        return traced

    def results(self) -> list[_Numbers]:
        """The numbers of every fact, in order."""
        order = sorted(range(len(self.facts)), key=lambda i: len(self.facts[i]))  # similar lengths: little padding
        positions = max((len(fact) * (len(fact.noise) + 1) for fact in self.facts), default=1)
        numbers: dict[int, _Numbers] = {}

        def work(part: slice) -> None:
            numbers.update(zip(order[part], self._measure([self.facts[i] for i in order[part]]), strict=True))

        cfg, most = self.model.cfg, 1
        if not self._hooked:
            kept = 4 * cfg.n_layers * cfg.d_model * self.model.W_E.element_size()
            most = max(1, CACHED // (kept * positions))
        self.budget.spend(len(order), positions, work, most)
        return [numbers[i] for i in range(len(order))]

    @cached_property
    def _hooked(self) -> bool:
        """Whether hooks observe or change what the model computes."""
        return any(module._forward_hooks or module._forward_pre_hooks for module in self.model.modules())

    @cached_property
    def _whole(self) -> bool:
        """Whether whole rows are computed instead of their tails."""
        return self._hooked or not takes_past(self.model)

    def _measure(self, facts: Sequence[TargetedPrompt]) -> list[_Numbers]:
        """The numbers of some facts, which share their clean and corrupted runs."""
        device = self.model.cfg.device
        noisy = [(i, eps) for i, fact in enumerate(facts) for eps in fact.noise]
        rows = [*facts, *(facts[i] for i, _ in noisy)]
        noise = [*(None for _ in facts), *(eps for _, eps in noisy)]
        batch = make_batch(self.model, [row.prompt for row in rows], [row.answer for row in rows], noise)
        number = torch.tensor([i for i, _ in noisy], device=device)
        base = run_base(self.model, batch, number, self.site, whole=self._whole)
        scorer = Scorer(self.model, facts, self.metric)
        each = torch.arange(len(facts), device=device)
        clean = scorer(base.clean_final, fact=each, start=torch.zeros_like(each)).tolist()
        corrupted = scorer(base.residual[-1], fact=number, start=torch.zeros_like(number)).double()
        means = [corrupted[number == i].mean().item() for i in range(len(facts))]
        restored = self._restored(base, scorer, facts)
        return [_Numbers(*numbers) for numbers in zip(clean, means, restored, strict=True)]

    def _restored(self, base: Base, scorer: Scorer, facts: Sequence[TargetedPrompt]) -> list[Float[Tensor, "run pos"]]:
        """The restored metric of each fact, run and position from the subject on, averaged over noise samples."""
        units = _all_units(base, facts, whole=self._whole)
        if self.site in LOCAL and not self._whole:
            units = replace(units, entered=self._entered(units))
        steps = plan(self.runs, self.model.cfg.n_layers, entered=bool(units.entered))
        values = torch.empty(len(self.runs), len(units), device=units.row.device)
        tails = base.lengths[units.row] - units.start
        for tail in tails.unique().tolist():
            alike = (tails == tail).nonzero()[:, 0]
            alike = alike[units.start[alike].argsort(stable=True)]  # pasts of similar lengths: little padding
            values[:, alike] = self._swept(units.select(alike, tail), steps, scorer)
        return [
            values[:, units.fact == i].double().unflatten(1, (-1, len(fact.noise))).mean(-1).float().cpu()
            for i, fact in enumerate(facts)
        ]

    def _entered(self, units: Units) -> dict[int, Float[Tensor, "unit d_model"]]:
        """By first layer of the runs, what `enter` computes for all units."""
        firsts = sorted({first for first, _ in self.runs})
        after = units.base.residual[0].new_empty(len(firsts), len(units), self.model.cfg.d_model)

        def work(part: slice) -> None:
            after[:, part] = enter(units.select(part), firsts)

        self.budget.spend(len(units), 1, work)
        return dict(zip(firsts, after, strict=True))

    def _swept(self, units: Units, steps: Sequence[Step], scorer: Scorer) -> Float[Tensor, "run unit"]:
        """The metric of every run of units whose tails have one length."""
        values = torch.empty(len(self.runs), len(units), device=units.row.device)

        def work(part: slice) -> None:
            batch = units.select(part)
            final, n = sweep(batch, steps).flatten(0, 1), len(self.runs)
            values[:, part] = scorer(final, batch.fact.repeat(n), batch.start.repeat(n)).view(n, len(batch))

        most_states = max(len(step.source) for step in steps)
        self.budget.spend(len(units), most_states * units.tail, work)
        return values


def _all_units(base: Base, facts: Sequence[TargetedPrompt], *, whole: bool) -> Units:
    """Every restored position of every corrupted row: fact by fact, position by position, sample by sample."""
    pairs = []
    for i, fact in enumerate(facts):
        positions = torch.arange(fact.prompt.subject.start, len(fact.prompt), device=base.fact.device)
        pairs.append(torch.cartesian_prod(positions, (base.fact == i).nonzero()[:, 0]))
    pos, row = torch.cat(pairs).T.contiguous()
    return Units(base, row, pos, start=torch.zeros_like(pos) if whole else pos)
