"""`trace` and `trace_many`: checks, batches of bounded size, and the results; `sweep` is what makes them fast."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.localization.hooks import check_traceable, corruption_hooks, window_layers
from loc_edit.localization.metrics import Scorer, check_metric, make_scorer
from loc_edit.localization.sweep import LOCAL, Base, Layers, Units, enter, plan, run_base, sweep
from loc_edit.localization.trace import Trace
from loc_edit.models.memory import Budget
from loc_edit.models.model import Model, token_texts
from loc_edit.models.passes import takes_past
from loc_edit.names import Metric
from loc_edit.prompts.batches import make_batch
from loc_edit.prompts.encoding import BadPrompt, Prompt, target_tokens

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
    """Causal Tracing of one prompt, every layer and position.

    Args:
        model: any pre-norm or post-norm `HookedTransformer`.
        prompt: from `encode`.
        target: the text (or token ids) whose probability is traced; several tokens multiply.
        noise: what is added to the subject's embeddings, one row of the batch per sample.
        site: the hook point that is restored; `mlp_out`, `attn_out`, `resid_post`, or what follows
            `blocks.<l>.` in a hook name.
        window: layers restored together, `l - w // 2` to `l - w // 2 + w - 1`, clipped; `resid_post` takes 1.
        metric: `probability`, `log_probability` (mean over samples), or `logit_difference` (first token of the
            target minus first token of `foil`).
        foil: the other answer of `logit_difference`.
        batch_size: see `trace_many`.

    Raises:
        ValueError: an unknown site, a window below 1, noise of another shape; the model's logits are not numbers.
    """
    (found,) = trace_many(
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
    if found[0].is_nan:
        raise ValueError(NOT_A_NUMBER.format(prompt.fact_id))
    return found[0]


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
    """Causal Tracing of many prompts with many windows: what `trace` gives for each, with shared work.

    Hooks of your own on the model are part of all runs.  Prompts are then taken one by one and whole; only the final
    norm and the unembedding see no more than the positions that predict the target.

    Args:
        model: see `trace`.
        prompts: from `encode`.
        targets: one a prompt.
        noises: one a prompt.
        site: see `trace`.
        windows: the windows to trace with.
        metric: see `trace`.
        foils: one a prompt.
        batch_size: token positions in one call of a layer, rows times their length, about; by default what suits
            the device.  Where memory does not suffice it is halved, with a warning in the log; what it came to is
            kept in `Trace.batch_size`.

    Returns:
        For each prompt its traces, one a window, in the order given; where the model's logits are not numbers, nor
        is the trace, with a warning in the log that names the fact.

    Raises:
        ValueError: see `trace`; lists of different lengths.
    """
    n = len(prompts)
    foils = [None] * n if foils is None else foils
    if not n == len(targets) == len(noises) == len(foils):
        raise ValueError(f"{n} prompts, {len(targets)} targets, {len(noises)} noises and {len(foils)} foils are given")
    windows = [1 if site == "resid_post" else window for window in windows]
    centers = range(model.cfg.n_layers)
    layers = {w: [window_layers(center, w, model.cfg.n_layers) for center in centers] for w in windows}
    check_traceable(model, site)
    check_metric(metric, prompts, foils)
    answers = [
        target_tokens(model, prompt.text, target) if isinstance(target, str) else target.to(model.cfg.device)
        for prompt, target in zip(prompts, targets, strict=True)
    ]
    for prompt, answer, noise in zip(prompts, answers, noises, strict=True):
        corruption_hooks(prompt, noise)  # refuses noise of another length
        if len(prompt) + len(answer) - 1 > model.cfg.n_ctx:
            raise BadPrompt(f"fact {prompt.fact_id}: {prompt.text!r} and its target exceed the context")
    runs = sorted({_ends(some) for window in windows for some in layers[window]})
    job = _Job(model, prompts, answers, noises, foils, site, metric, runs, Budget(model, batch_size))
    traces = []
    for i, (p_clean, p_corrupted, means) in enumerate(job.results()):
        target, prompt = targets[i], prompts[i]
        text = target if isinstance(target, str) else "".join(token_texts(model, answers[i])).strip()
        labels = token_texts(model, prompt.tokens)
        mine = []
        for window in windows:
            grid = torch.full((len(centers), len(prompt)), p_corrupted, dtype=torch.float32)
            grid[:, prompt.subject.start :] = means[[runs.index(_ends(some)) for some in layers[window]]]
            one = Trace(prompt, text, p_clean, p_corrupted, grid, window, site, metric, labels)
            mine.append(replace(one, batch_size=job.budget.positions))
        if any(one.is_nan for one in mine):
            log.warning(NOT_A_NUMBER.format(prompt.fact_id))
        traces.append(mine)
    return traces


def _ends(layers: range) -> Layers:
    return layers[0], layers[-1]


Result = tuple[float, float, Float[Tensor, "run pos"]]
"""Clean metric, corrupted metric, and each run's restored metric at each position from the subject on."""


@dataclass(frozen=True)
class _Job:
    """What all batches of one call of `trace_many` need."""

    model: Model
    prompts: Sequence[Prompt]
    answers: Sequence[Int[Tensor, " _"]]
    noises: Sequence[Float[Tensor, "_ _ d_model"]]
    foils: Sequence[str | None]
    site: str
    metric: Metric
    runs: list[Layers]
    budget: Budget

    def results(self) -> list[Result]:
        """The numbers of every prompt, in order."""
        found: dict[int, Result] = {}
        rows = [len(p) + len(a) - 1 for p, a in zip(self.prompts, self.answers, strict=True)]
        positions = [row * (len(noise) + 1) for row, noise in zip(rows, self.noises, strict=True)]
        order = sorted(range(len(rows)), key=rows.__getitem__)  # rows of like length together: little padding
        cfg, most = self.model.cfg, 1
        if not self._hooked:
            kept = 4 * cfg.n_layers * cfg.d_model * self.model.W_E.element_size()
            most = max(1, CACHED // (kept * max(positions, default=1)))

        def work(some: slice) -> None:
            found.update(zip(order[some], self._some(order[some]), strict=True))

        self.budget.spend(len(order), max(positions, default=1), work, most)
        return [found[i] for i in range(len(rows))]

    @cached_property
    def _hooked(self) -> bool:
        """Whether someone listens to, or changes, what the model computes."""
        return any(module._forward_hooks or module._forward_pre_hooks for module in self.model.modules())

    @cached_property
    def _whole(self) -> bool:
        """Whether whole rows are computed, in place of their tails."""
        return self._hooked or not takes_past(self.model)

    def _some(self, which: Sequence[int]) -> list[Result]:
        """The numbers of some prompts, which share their clean and corrupted runs."""
        model, device = self.model, self.model.cfg.device
        prompts, answers = [self.prompts[i] for i in which], [self.answers[i] for i in which]
        noises = [self.noises[i] for i in which]
        copies = [(i, eps) for i, noise in enumerate(noises) for eps in noise]
        batch = make_batch(
            model,
            [*prompts, *(prompts[i] for i, _ in copies)],
            [*answers, *(answers[i] for i, _ in copies)],
            [*(None for _ in prompts), *(eps for _, eps in copies)],
        )
        fact = torch.tensor([i for i, _ in copies], device=device)
        base = run_base(model, batch, fact, self.site, whole=self._whole)
        scorer = make_scorer(model, prompts, answers, self.metric, [self.foils[i] for i in which])
        everyone = torch.arange(len(prompts), device=device)
        clean = scorer(base.clean_final, everyone, torch.zeros_like(everyone)).tolist()
        corrupted = scorer(base.residual[-1], fact, torch.zeros_like(fact)).double()
        restored = self._restored(base, scorer, batch.lengths[: len(prompts)], prompts)
        means = [corrupted[fact == i].mean().item() for i in range(len(prompts))]
        return list(zip(clean, means, restored, strict=True))

    def _restored(
        self, base: Base, scorer: Scorer, lengths: Int[Tensor, " fact"], prompts: Sequence[Prompt]
    ) -> list[Float[Tensor, "run pos"]]:
        """The mean restored metric of each prompt, run and position from the subject on."""
        units = _all_units(base, prompts, whole=self._whole)
        tails = lengths[base.fact[units.row]] - units.start
        entered = None if self._whole or self.site not in LOCAL else self._entered(base, units)
        steps = plan(self.runs, self.model.cfg.n_layers, entered=entered is not None)
        peak = max(len(step.source) for step in steps)
        values = torch.empty(len(self.runs), len(units), device=lengths.device)
        for tail in tails.unique().tolist():
            alike = (tails == tail).nonzero()[:, 0]
            alike = alike[units.start[alike].argsort(stable=True)]  # pasts of like length together: little padding

            def work(some: slice, alike: Tensor = alike, tail: int = tail) -> None:
                which = alike[some]
                few = units.some(which, tail)
                known = entered and {first: after[which] for first, after in entered.items()}
                final = sweep(self.model, base, steps, few, self.site, known)
                n, fact = len(final), base.fact[few.row]
                values[:, which] = scorer(final.flatten(0, 1), fact.repeat(n), few.start.repeat(n)).view(n, len(few))

            self.budget.spend(len(alike), peak * tail, work)
        samples = [int((base.fact == i).sum()) for i in range(len(prompts))]
        sizes = [(len(p) - p.subject.start, k) for p, k in zip(prompts, samples, strict=True)]
        parts = values.double().split([n * k for n, k in sizes], dim=1)
        return [part.unflatten(1, size).mean(-1).float().cpu() for part, size in zip(parts, sizes, strict=True)]

    def _entered(self, base: Base, units: Units) -> dict[int, Float[Tensor, "unit d_model"]]:
        """By first layer of the runs, what `enter` gives for all units."""
        firsts = sorted({first for first, _ in self.runs})
        after = base.residual[0].new_empty(len(firsts), len(units), self.model.cfg.d_model)

        def work(some: slice) -> None:
            after[:, some] = enter(self.model, base, firsts, units.row[some], units.pos[some], self.site)

        self.budget.spend(len(units), 1, work)
        return dict(zip(firsts, after, strict=True))


def _all_units(base: Base, prompts: Sequence[Prompt], *, whole: bool) -> Units:
    """Every restored position of every corrupted row: fact by fact, position by position, sample by sample.

    Their tails have no common length yet.
    """
    row, pos = [], []
    for i, prompt in enumerate(prompts):
        samples = (base.fact == i).nonzero()[:, 0]
        where = torch.arange(prompt.subject.start, len(prompt), device=base.fact.device)
        row.append(samples.repeat(len(where)))
        pos.append(where.repeat_interleave(len(samples)))
    at = torch.cat(pos)
    return Units(torch.cat(row), at, torch.zeros_like(at) if whole else at, 0)
