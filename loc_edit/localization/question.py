"""What localizers are asked: some facts together, whose clean and corrupted runs are computed once, when first used."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.localization.groups import watched, window_runs
from loc_edit.localization.hooks import check_traceable, site_name, site_window
from loc_edit.localization.metrics import Scorer
from loc_edit.localization.sweep import Base, Layers, Units, run_base
from loc_edit.localization.targets import TargetedPrompt
from loc_edit.localization.trace import Trace
from loc_edit.models.memory import Budget
from loc_edit.models.model import Hook, Model, token_texts
from loc_edit.models.passes import takes_past
from loc_edit.names import Metric
from loc_edit.prompts.batches import make_batch, run
from loc_edit.prompts.grouping import group_by_length

CALL = 30
"""What one call of a layer costs, in positions: for short tails as much as about so many of them."""

Grids = list[list[Float[Tensor, "layer pos"]]]
"""For each fact and window, the effect of every cell, in units of the metric."""


@dataclass(frozen=True)
class Observed:
    """Activations of some runs of one fact, from a position on.

    Attributes:
        start: the position.  Before it, a corrupted run is the clean run.
        metric: the metric of each run.
        residual: the residual stream before each layer, and after the last.
        site: the site's output in each layer.
        gradients: the gradient of each run's metric in these outputs; empty if nobody asked for it.
    """

    start: int
    metric: Float[Tensor, " row"]
    residual: Sequence[Float[Tensor, "row pos d_model"]]
    site: Sequence[Float[Tensor, "row pos ..."]]
    gradients: Sequence[Float[Tensor, "row pos ..."]] = ()


class Questions:
    """The questions about some facts that share batches; refuses the same sites and models as `trace`.

    Attributes:
        model: the unedited model.
        facts: the prompts, targets and noises.
        site: the hook point whose output makes up the cells.
        windows: the numbers of layers that are taken together, each of which makes a question of its own.
        scorer: measures the targets in a final residual stream.
        budget: limits the positions of one call of a layer.
    """

    def __init__(
        self, model: Model, facts: Sequence[TargetedPrompt], site: str, windows: Sequence[int], metric: Metric
    ) -> None:
        check_traceable(model, site)
        self.model, self.facts, self.site = model, facts, site
        self.windows = [site_window(site, window) for window in windows]
        self.scorer, self.budget, self._backward = (
            Scorer(model, facts, metric),
            Budget(model),
            Budget(model, backward=True),
        )
        self._whole = watched(model) or not takes_past(model)
        self._corrupted: list[Observed] = []

    def each(self) -> list[list["Question"]]:
        """For each fact and window, its question."""
        return [
            [Question(**vars(fact), questions=self, number=i, window=window) for window in self.windows]
            for i, fact in enumerate(self.facts)
        ]

    @property
    def runs(self) -> list[list[Layers]]:
        """For each window and layer, the first and the last layer of the window around the layer."""
        return [window_runs(window, self.model.cfg.n_layers) for window in self.windows]

    @cached_property
    @torch.no_grad()
    def base(self) -> Base:
        """The clean run of every fact."""
        batch = make_batch(self.model, [fact.prompt for fact in self.facts], [fact.answer for fact in self.facts])
        n = len(self.facts)
        return run_base(self.model, batch, torch.arange(n), self.site, n_clean=n, whole=self._whole)

    @cached_property
    def clean(self) -> list[Observed]:
        """The clean run of each fact: one row."""
        base, lengths = self.base, self.base.lengths.tolist()
        metric = self._score(base.clean_final, base.fact, torch.zeros_like(base.fact))
        return [
            Observed(
                0,
                metric[i : i + 1],
                [stream[i : i + 1, :length] for stream in base.residual],
                [output[i : i + 1, :length] for output in base.clean],
            )
            for i, length in enumerate(lengths)
        ]

    def corrupted(self, *, gradients: bool = False) -> list[Observed]:
        """The corrupted runs of each fact: one row per noise sample."""
        if not self._corrupted or (gradients and not self._corrupted[0].gradients):
            self._corrupted = self.at_share(1.0, gradients=gradients)
        return self._corrupted

    def at_share(self, share: float, *, gradients: bool = False) -> list[Observed]:
        """For each fact, one run per noise sample with this share of the noise.

        Args:
            share: the number that the noise is multiplied by; 1 gives the corrupted runs.
            gradients: whether the gradient of the metric in the site's outputs is needed.
        """
        tails = [len(fact) - (0 if self._whole else fact.prompt.subject.start) for fact in self.facts]
        observed: dict[int, Observed] = {}
        for group in group_by_length(tails, max(len(fact.noise) for fact in self.facts), CALL):
            rows = [(i, share * eps) for i in group for eps in self.facts[i].noise]
            tail, parts = max(tails[i] for i in group), list[list[Tensor]]()

            def work(part: slice, rows: list[tuple[int, Tensor]] = rows, tail: int = tail) -> None:
                parts.append(self._run_tails(rows[part], tail, gradients))

            (self._backward if gradients else self.budget).spend(len(rows), tail, work)
            samples = [len(self.facts[i].noise) for i in group]
            by_fact = zip(*(torch.cat(some).split(samples) for some in zip(*parts, strict=True)), strict=True)
            for i, (metric, *activations) in zip(group, by_fact, strict=True):
                length, n_layers = len(self.facts[i]), self.model.cfg.n_layers
                start = max(0, length - tail)
                real = [values[:, : length - start] for values in activations]
                observed[i] = Observed(start, metric, real[: n_layers + 1], *_halves(real[n_layers + 1 :], n_layers))
        return [observed[i] for i in range(len(self.facts))]

    @torch.no_grad()
    def _run_tails(self, rows: Sequence[tuple[int, Tensor]], tail: int, gradients: bool) -> list[Tensor]:
        """The metric of some rows, their tails' residual streams and outputs of the site, and if asked the gradients.

        Args:
            rows: for each row, the number of its fact, and its noise.
            tail: the number of positions that are computed; they end where the row ends, if it is as long.
            gradients: whether gradients are needed.
        """
        facts = [self.facts[i] for i, _ in rows]
        batch = make_batch(
            self.model, [fact.prompt for fact in facts], [fact.answer for fact in facts], [noise for _, noise in rows]
        )
        row, start = torch.tensor([i for i, _ in rows], device=batch.tokens.device), (batch.lengths - tail).clamp(min=0)
        columns = (start[:, None] + torch.arange(tail, device=start.device)).clamp(max=batch.tokens.shape[1] - 1)
        stream = run(self.model, batch, stop_at_layer=0)[torch.arange(len(rows), device=start.device)[:, None], columns]
        units, residual, outputs = Units(self.base, row, start, start, tail), [stream], list[Tensor]()

        def keep(value: Tensor, hook: Any) -> Tensor:
            # The first output needs no gradient from what is below it, so the graph begins there.
            if gradients and not value.requires_grad:
                value = value.detach().requires_grad_()
            outputs.append(value if gradients else value.clone())
            return value

        hooks: list[Hook] = [(site_name(self.site, layer), keep) for layer in range(self.model.cfg.n_layers)]
        with self.model.hooks(fwd_hooks=hooks), torch.set_grad_enabled(gradients):
            for layer in range(self.model.cfg.n_layers):
                residual.append(units.block(residual[-1][None], layer)[0])
            metric = self._score(residual[-1], row, start)
            slopes = torch.autograd.grad(metric.sum(), outputs) if gradients else ()
        # Keys and values have the past in front of the tail.
        tails = [values[:, values.shape[1] - tail :] for values in (*outputs, *slopes)]
        return [values.detach() for values in (metric, *residual, *tails)]

    def _score(self, final: Tensor, fact: Tensor, start: Tensor) -> Float[Tensor, " row"]:
        return self.scorer(final, fact=fact, start=start)

    def by_window(self, alone: Float[Tensor, "layer pos"]) -> list[Float[Tensor, "layer pos"]]:
        """For each window, the sums over the layers of the windows, of effects that add up."""
        return [torch.stack([alone[first : last + 1].sum(0) for first, last in runs]) for runs in self.runs]

    def traces(self, grids: Grids, localizer: str) -> list[list[Trace]]:
        """For each fact and window, the trace of a localizer that measured these effects."""
        return [
            [question.trace(effect, localizer) for question, effect in zip(questions, effects, strict=True)]
            for questions, effects in zip(self.each(), grids, strict=True)
        ]


@dataclass(frozen=True)
class Question(TargetedPrompt):
    """The question about one fact: how much does the metric of the target depend on each cell?

    A cell is a layer and a position.  The prompt, its target and its noise are the attributes of `TargetedPrompt`.

    Attributes:
        questions: the questions about this fact and others, whose runs are computed together.
        number: the number of the fact among these.
        window: the number of layers that are taken together, centered on the cell's layer and clipped at the edges.
    """

    questions: Questions
    number: int
    window: int

    @property
    def model(self) -> Model:
        """The unedited model."""
        return self.questions.model

    @property
    def site(self) -> str:
        """The hook point whose output makes up the cells."""
        return self.questions.site

    @property
    def metric(self) -> Metric:
        """What is measured of the target."""
        return self.questions.scorer.metric

    @property
    def tokens(self) -> Int[Tensor, " pos"]:
        """The prompt and its target, without the target's last token."""
        return torch.cat([self.prompt.tokens, self.answer[:-1]])

    @property
    def windows(self) -> list[range]:
        """For each layer, the layers of the window around it."""
        return [range(first, last + 1) for first, last in window_runs(self.window, self.model.cfg.n_layers)]

    @property
    def clean(self) -> Observed:
        """The clean run: one row."""
        return self.questions.clean[self.number]

    @property
    def corrupted(self) -> Observed:
        """The corrupted runs, from the subject or an earlier position on: one row per noise sample."""
        return self.questions.corrupted()[self.number]

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
        start, pairs = self.corrupted.start, zip(self.clean.site, self.corrupted.site, strict=True)
        return [
            torch.cat([noisy.new_zeros(len(noisy), start, *noisy.shape[2:]), clean[:, start:] - noisy], 1)
            for clean, noisy in pairs
        ]

    def trace(self, effect: Float[Tensor, "layer pos"], localizer: str) -> Trace:
        """The trace of a localizer that measured this effect, in units of the metric."""
        return Trace(
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
        )


def _halves(values: list[Tensor], n: int) -> tuple[list[Tensor], list[Tensor]]:
    return values[:n], values[n:]
