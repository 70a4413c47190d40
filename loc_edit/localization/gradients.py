"""Localizers that estimate every cell's restoration effect to first order, from a few forward and backward passes."""

from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from loc_edit.localization.question import Question
from loc_edit.models.model import Hook
from loc_edit.prompts.batches import resume


def attribution(question: Question) -> Float[Tensor, "layer pos"]:
    """Attribution patching: (clean - corrupted activation) . gradient of the metric in the corrupted run.

    This is the first-order estimate of the effect that `trace` measures at window 1, for all cells at once; it is
    exact where the metric is linear in the site's outputs.  The effects of a window's layers add up: unlike in
    tracing, what one layer does through the next is counted twice.

    Cost: one forward and one backward pass of the K samples.  Source: Nanda 2023; Syed et al. 2023.
    """
    return _first_order(question, [1.0])


def integrated_gradients(question: Question, steps: int = 8) -> Float[Tensor, "layer pos"]:
    """Attribution patching with the gradient averaged along the way from the corrupted to the clean prompt.

    The embeddings go from the corrupted to the clean ones through `steps` midpoints, and the gradient is taken at
    each.  At the residual stream before the first layer, the effects of all positions add up to
    `p_clean - p_corrupted` (completeness), apart from the error of a finite number of steps.

    Cost: `steps` times that of `attribution`.  Source: Sundararajan et al. 2017; Hanna et al. 2024 (EAP-IG, inputs).
    """
    if steps < 1:
        raise ValueError(f"integrated gradients in {steps} steps: expected at least 1")
    return _first_order(question, [(step + 0.5) / steps for step in range(steps)])


def _first_order(question: Question, shares: list[float]) -> Float[Tensor, "layer pos"]:
    """(clean - corrupted) . gradient, averaged over samples and over points with these shares of the noise."""
    points = [question.corrupted if share == 1.0 else question.at_share(share) for share in shares]
    alone = torch.stack([_products(question, point.residual[0]) for point in points]).mean(0)
    return torch.stack([alone[list(layers)].sum(0) for layers in question.windows])


def _products(question: Question, start: Float[Tensor, "sample token d_model"]) -> Float[Tensor, "layer pos"]:
    """(clean - corrupted output) . gradient of each layer alone, averaged over samples.

    Args:
        question: the prompt and target.
        start: the residual stream before the first layer, of the rows in which gradients are taken.
    """
    outputs: list[Tensor] = []

    def keep(value: Tensor, hook: Any) -> Tensor:
        # The first output needs no gradient from what is below it, so the graph begins there.
        outputs.append(value if value.requires_grad else value.detach().requires_grad_())
        return outputs[-1]

    hooks: list[Hook] = [(name, keep) for name in question.hook_names()]
    with torch.enable_grad():
        final = resume(question.model, start.detach(), 0, hooks)
        gradients = torch.autograd.grad(question.metric(final).sum(), outputs)
    rows = []
    for difference, gradient in zip(question.differences, gradients, strict=True):
        change, slope = difference.flatten(2).double(), gradient.flatten(2).double()
        rows.append(einsum(change, slope, "sample pos width, sample pos width -> pos") / len(change))
    return torch.stack(rows)[:, : len(question.prompt)].cpu()
