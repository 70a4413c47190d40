"""Causal Tracing of one prompt (`trace`) or of many (`trace_many`), in batches that fit into memory.

This file checks the arguments and computes the clean and the corrupted runs of a group of facts; `groups` forms the
groups and measures the restored runs; `sweep` computes a batch of them.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.localization.groups import in_groups, measure_runs, watched, window_runs
from loc_edit.localization.hooks import check_traceable, site_name, site_window
from loc_edit.localization.metrics import Scorer
from loc_edit.localization.sweep import Base, Layers, Patch, Units, run_base
from loc_edit.localization.targets import TargetedPrompt, targeted_prompt
from loc_edit.localization.trace import Trace
from loc_edit.models.memory import Budget
from loc_edit.models.model import Hook, Model, token_texts
from loc_edit.models.passes import takes_past
from loc_edit.names import TRACING, Metric
from loc_edit.prompts.batches import make_batch
from loc_edit.prompts.encoding import Prompt

log = logging.getLogger(__name__)

NOT_A_NUMBER = "fact {}: its trace is not a number, as the model's logits are NaN or infinite"


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
    severed: Literal["mlp", "attn"] | None = None,
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
        severed: the kind of module that is severed, if any: at a restored position, the outputs of these modules in all
            layers after the restored ones are frozen at their corrupted values, so that the restored state can reach
            the answer only through the other kind of module (Meng et al. 2022a, section 2.2 and figure 3, where the
            site is `resid_post`).
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
    runs = {window: window_runs(window, n_layers) for window in windows}
    check_traceable(model, site)
    questions = zip(prompts, targets, noises, foils, strict=True)
    facts = [targeted_prompt(model, prompt, target, noise, metric, foil) for prompt, target, noise, foil in questions]
    distinct = sorted({run for window in windows for run in runs[window]})
    job = _Job(model, facts, site, metric, distinct, Budget(model, batch_size), severed)
    numbers = in_groups(model, facts, job.budget, job.measure)
    return [
        [job.trace(fact, window, runs[window], numbers_of_fact) for window in windows]
        for fact, numbers_of_fact in zip(facts, numbers, strict=True)
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
    severed: Literal["mlp", "attn"] | None = None

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
            f"severed_{self.severed}" if self.severed else TRACING,
            batch_size=self.budget.positions,
        )
        if traced.is_nan:
            log.warning(NOT_A_NUMBER.format(prompt.fact_id))
        return traced

    def measure(self, group: Sequence[int]) -> list[_Numbers]:
        """The numbers of some facts, which share their clean and corrupted runs."""
        facts, device = [self.facts[i] for i in group], self.model.cfg.device
        noisy = [(i, eps) for i, fact in enumerate(facts) for eps in fact.noise]
        rows = [*facts, *(facts[i] for i, _ in noisy)]
        noise = [*(None for _ in facts), *(eps for _, eps in noisy)]
        batch = make_batch(self.model, [row.prompt for row in rows], [row.answer for row in rows], noise)
        number, n = torch.tensor([i for i, _ in noisy], device=device), len(facts)
        whole, outputs = watched(self.model) or not takes_past(self.model), _Outputs(self.severed, n)
        with self.model.hooks(fwd_hooks=outputs.hooks(self.model.cfg.n_layers)):
            base = run_base(self.model, batch, number, self.site, n_clean=n, whole=whole)
        scorer = Scorer(self.model, facts, self.metric)
        each = torch.arange(n, device=device)
        clean = scorer(base.clean_final, fact=each, start=torch.zeros_like(each)).tolist()
        corrupted = scorer(base.residual[-1], fact=number, start=torch.zeros_like(number)).double()
        means = [corrupted[number == i].mean().item() for i in range(n)]
        samples = [len(fact.noise) for fact in facts]
        restored = measure_runs(_all_units(base, facts, outputs), self.runs, scorer, self.budget, samples)
        return [_Numbers(*numbers) for numbers in zip(clean, means, restored, strict=True)]


@dataclass
class _Outputs:
    """The outputs of one kind of module in the corrupted rows, which come after `n_clean` rows; of none, for `None`."""

    module: str | None
    n_clean: int
    by_layer: list[Float[Tensor, "row pos d_model"]] = field(default_factory=list)

    def hooks(self, n_layers: int) -> list[Hook]:
        """The hooks that collect them."""
        return [(site_name(f"{self.module}_out", layer), self._keep) for layer in range(n_layers) if self.module]

    def _keep(self, value: Tensor, hook: Any) -> Tensor:
        self.by_layer.append(value[self.n_clean :].clone())
        return value


def _all_units(base: Base, facts: Sequence[TargetedPrompt], outputs: _Outputs) -> Units:
    """Every restored position of every corrupted row: fact by fact, position by position, sample by sample."""
    pairs = []
    for i, fact in enumerate(facts):
        positions = torch.arange(fact.prompt.subject.start, len(fact.prompt), device=base.fact.device)
        pairs.append(torch.cartesian_prod(positions, (base.fact == i).nonzero()[:, 0]))
    pos, row = torch.cat(pairs).T.contiguous()
    n_pos = base.residual[0].shape[1]
    restored = Patch(base.site, [value.flatten(0, 1) for value in base.clean], base.fact[row] * n_pos + pos)
    frozen = [value.flatten(0, 1) for value in outputs.by_layer]
    return Units(
        base,
        row,
        pos,
        start=torch.zeros_like(pos) if base.whole else pos,
        restored=restored,
        frozen=Patch(f"{outputs.module}_out", frozen, row * n_pos + pos) if frozen else None,
    )
