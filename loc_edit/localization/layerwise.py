"""Integrated gradients over the activations themselves, one layer at a time."""

from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.arguments import Count, checked
from loc_edit.localization.hooks import site_name
from loc_edit.localization.question import Grids, Questions
from loc_edit.localization.sweep import Units
from loc_edit.models.memory import Budget
from loc_edit.models.model import Hook


@checked
def layer_integrated_gradients(questions: Questions, steps: Count = 5) -> Grids:
    """Integrated gradients over a layer's outputs: its site goes from corrupted to clean at all positions at once.

    For each layer alone, the site's corrupted outputs are moved to the clean ones through `steps` midpoints in the
    corrupted run, and the gradient is taken at each.  The effects of all positions of a layer add up to what restoring
    the whole layer does to the metric (completeness), apart from the error of a finite number of steps.  The effects
    of a window's layers add up, as in `attribution`.

    Cost: `steps` forward and backward passes of the K samples from each layer on, about L / 2 times `steps` times that
    of `attribution`.  Source: Hanna et al. 2024 and Mueller et al. 2025 (MIB), EAP-IG over activations, with effects
    of nodes in place of edges; Marks et al. 2024.  Unlike there, the metric is any of the question's.

    Args:
        questions: the prompts and targets.
        steps: the number of midpoints.
    """
    n_facts, n_layers, corrupted = len(questions.facts), questions.model.cfg.n_layers, list[Tensor]()
    names = [site_name(questions.site, layer) for layer in range(n_layers)]
    keep: list[Hook] = [(name, lambda value, hook: corrupted.append(value[n_facts:].clone())) for name in names]
    base = questions.corrupted_base(keep)
    starts = torch.tensor([fact.prompt.subject.start for fact in questions.facts], device=base.fact.device)
    row = torch.arange(len(base.fact), device=base.fact.device)
    start = torch.zeros_like(row) if base.whole else starts[base.fact]
    units, tails = Units(base, row, start, start), base.lengths - start
    shares = (torch.arange(steps, device=row.device) + 0.5) / steps
    budget, n_pos = Budget(questions.model, backward=True), int(base.lengths.max())
    effects = torch.zeros(n_layers, len(row), n_pos, dtype=torch.float64, device=row.device)
    for tail in tails.unique().tolist():
        alike = (tails == tail).nonzero()[:, 0]

        def work(part: slice, alike: Int[Tensor, " unit"] = alike, tail: int = tail) -> None:
            chosen = alike[part]
            own = units.select(chosen, tail)
            columns = own.start[:, None] + torch.arange(tail, device=row.device)
            for layer in range(n_layers):
                noisy, clean = corrupted[layer][chosen[:, None], columns], base.clean[layer][own.fact[:, None], columns]
                effect = (clean - noisy) * _mean_gradient(questions, own, layer, noisy, clean, shares)
                effects[layer, chosen[:, None], columns] = effect.flatten(2).sum(2, dtype=torch.float64)

        budget.spend(len(alike), steps * tail, work)
    means = [effects[:, base.fact == i, : len(fact.prompt)].mean(1).cpu() for i, fact in enumerate(questions.facts)]
    return [questions.by_window(effect) for effect in means]


@torch.no_grad()
def _mean_gradient(
    questions: Questions,
    units: Units,
    layer: int,
    noisy: Float[Tensor, "unit tail ..."],
    clean: Float[Tensor, "unit tail ..."],
    shares: Float[Tensor, " step"],
) -> Float[Tensor, "unit tail ..."]:
    """The gradient of the metric in one layer's outputs, averaged over steps from the corrupted to the clean ones."""
    model, n_steps = questions.model, len(shares)
    way = shares.to(noisy).view(-1, *[1] * noisy.ndim)
    outputs = rearrange(noisy + way * (clean - noisy), "step unit ... -> (step unit) ...").requires_grad_()

    def put(value: Tensor, hook: Any) -> Tensor:
        return torch.cat([value[:, : value.shape[1] - units.tail], outputs], 1)  # rotated keys have the past in front

    states = repeat(units.residual(layer), "unit tail d -> step unit tail d", step=n_steps)
    with model.hooks(fwd_hooks=[(site_name(questions.site, layer), put)]), torch.enable_grad():
        for above in range(layer, model.cfg.n_layers):
            states = units.block(states, above)
        metric = questions.scorer(states.flatten(0, 1), units.fact.repeat(n_steps), units.start.repeat(n_steps))
        (gradient,) = torch.autograd.grad(metric.sum(), outputs)
    return gradient.unflatten(0, (n_steps, -1)).mean(0)
