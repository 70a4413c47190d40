"""`trace` and `trace_many`: checks, batches of bounded size, and the results; `sweep` is what makes them fast."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from loc_edit.batching import Budget, make_batch
from loc_edit.models import token_texts
from loc_edit.prompts import BadPrompt, Prompt, target_tokens
from loc_edit.tracing.hooks import check_site, corruption_hooks, window_layers
from loc_edit.tracing.metrics import Metric, Scorer, make_scorer
from loc_edit.tracing.result import Trace
from loc_edit.tracing.sweep import LOCAL, Base, Layers, Units, enter, plan, run_base, sweep

CACHED = 2**30
"""Bytes of corrupted activations that are kept at a time."""


def trace(
    model: HookedTransformer,
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
        ValueError: an unknown site, a window below 1, noise of another shape.
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
    return found[0]


@torch.inference_mode()
def trace_many(
    model: HookedTransformer,
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

    Hooks of your own on the model are part of all runs; prompts are then taken one by one and whole.

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
            the device.  Where memory does not suffice it is halved, with a warning in the log.

    Returns:
        For each prompt its traces, one a window, in the order given.

    Raises:
        ValueError: see `trace`; lists of different lengths.
    """
    n_layers, n = model.cfg.n_layers, len(prompts)
    foils = [None] * n if foils is None else foils
    if not n == len(targets) == len(noises) == len(foils):
        raise ValueError(f"{n} prompts, {len(targets)} targets, {len(noises)} noises and {len(foils)} foils are given")
    windows = [1 if site == "resid_post" else window for window in windows]
    layers = {w: [window_layers(layer, w, n_layers) for layer in range(n_layers)] for w in windows}
    check_site(model, site)
    answers = [
        target_tokens(model, prompt.text, target) if isinstance(target, str) else target.to(model.cfg.device)
        for prompt, target in zip(prompts, targets, strict=True)
    ]
    for prompt, answer, noise in zip(prompts, answers, noises, strict=True):
        corruption_hooks(prompt, noise)  # refuses noise of another length
        if len(prompt) + len(answer) - 1 > model.cfg.n_ctx:
            raise BadPrompt(f"fact {prompt.fact_id}: {prompt.text!r} and its target exceed the context")
    runs = sorted({(some[0], some[-1]) for window in windows for some in layers[window]})
    job = _Job(model, prompts, answers, noises, foils, site, metric, runs, Budget(model, batch_size))
    results = job.results()
    traces = []
    for prompt, target, answer, (p_clean, p_corrupted, means) in zip(prompts, targets, answers, results, strict=True):
        text = target if isinstance(target, str) else "".join(token_texts(model, answer)).strip()
        labels = token_texts(model, prompt.tokens)
        mine = []
        for window in windows:
            grid = torch.full((n_layers, len(prompt)), p_corrupted, dtype=torch.float32)
            grid[:, prompt.subject.start :] = means[[runs.index((some[0], some[-1])) for some in layers[window]]]
            mine.append(Trace(prompt, text, p_clean, p_corrupted, grid, window, site, metric, labels))
        traces.append(mine)
    return traces


Result = tuple[float, float, Float[Tensor, "run pos"]]
"""Clean metric, corrupted metric, and each run's restored metric at each position from the subject on."""


@dataclass(frozen=True)
class _Job:
    """What all batches of one call of `trace_many` need."""

    model: HookedTransformer
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
        base = run_base(model, batch, fact, self.site)
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
        device, model = lengths.device, self.model
        row, pos, sizes = [], [], []
        for i, prompt in enumerate(prompts):
            samples = (base.fact == i).nonzero()[:, 0]
            where = torch.arange(prompt.subject.start, len(prompt), device=device)
            row.append(samples.repeat(len(where)))
            pos.append(where.repeat_interleave(len(samples)))
            sizes.append((len(where), len(samples)))
        rows, at = torch.cat(row), torch.cat(pos)
        start = torch.zeros_like(at) if self._hooked else at
        tails = lengths[base.fact[rows]] - start
        firsts = sorted({first for first, _ in self.runs})
        entered = None
        if self.site in LOCAL and not self._hooked:
            entered = torch.empty(len(firsts), len(rows), model.cfg.d_model, dtype=model.cfg.dtype, device=device)
            alone = Units(rows, at, at, 1)

            def begin(some: slice) -> None:
                entered[:, some] = enter(model, base, firsts, alone[some], self.site)

            self.budget.spend(len(rows), 1, begin)
        steps = plan(self.runs, model.cfg.n_layers, entered=entered is not None)
        values = torch.empty(len(self.runs), len(rows), device=device)
        peak = max(len(step.source) for step in steps)
        for tail in tails.unique().tolist():
            alike = (tails == tail).nonzero()[:, 0]
            alike = alike[start[alike].argsort(stable=True)]  # pasts of like length together: little padding
            units = Units(rows[alike], at[alike], start[alike], tail)

            def work(some: slice, alike: Tensor = alike, units: Units = units) -> None:
                known = None if entered is None else dict(zip(firsts, entered[:, alike[some]], strict=True))
                final = sweep(model, base, steps, units[some], self.site, known)
                fact, begins = base.fact[units.row[some]], units.start[some]
                n = len(final)
                values[:, alike[some]] = scorer(final.flatten(0, 1), fact.repeat(n), begins.repeat(n)).view(n, -1)

            self.budget.spend(len(alike), peak * tail, work)
        parts = values.double().split([n * k for n, k in sizes], dim=1)
        return [part.unflatten(1, size).mean(-1).float().cpu() for part, size in zip(parts, sizes, strict=True)]
