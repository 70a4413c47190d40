"""Localizers that estimate every cell's restoration effect to first order, from a few forward and backward passes."""

from collections.abc import Iterable, Sequence

import torch
from torch.nn.functional import pad

from loc_edit.arguments import Count, checked
from loc_edit.localization.question import Grids, Observed, Questions


def attribution(questions: Questions) -> Grids:
    """Attribution patching: (clean - corrupted activation) . gradient of the metric in the corrupted run.

    This is the first-order estimate of the effect that `trace` measures at window 1, for all cells at once; it is
    exact where the metric is linear in the site's outputs.  The effects of a window's layers add up: unlike in
    tracing, what one layer does through the next is counted twice.

    Cost: one forward and one backward pass of the K samples.  Source: Nanda 2023; Syed et al. 2023.
    """
    return _first_order(questions, [questions.corrupted(gradients=True)])


@checked
def integrated_gradients(questions: Questions, steps: Count = 8) -> Grids:
    """Attribution patching with the gradient averaged along the way from the corrupted to the clean prompt.

    The embeddings go from the corrupted to the clean ones through `steps` midpoints, and the gradient is taken at
    each.  At the residual stream before the first layer, the effects of all positions add up to
    `p_clean - p_corrupted` (completeness), apart from the error of a finite number of steps.

    Cost: `steps` times that of `attribution`.  Source: Sundararajan et al. 2017; Hanna et al. 2024 (EAP-IG, inputs).
    """
    points = (questions.at_share((step + 0.5) / steps, gradients=True) for step in range(steps))
    return _first_order(questions, points)


def _first_order(questions: Questions, points: Iterable[Sequence[Observed]]) -> Grids:
    """(clean - corrupted) . gradient, averaged over samples and over points at which the gradients are taken."""
    each, products = list(zip(questions.facts, questions.clean, questions.corrupted(), strict=True)), []
    for point in points:
        for (fact, clean, corrupted), there in zip(each, point, strict=True):
            start, stop = corrupted.start, len(fact.prompt)
            rows = [
                ((own[:, start:] - noisy) * gradient).flatten(2).sum(2, dtype=torch.float64).mean(0)
                for own, noisy, gradient in zip(clean.site, corrupted.site, there.gradients, strict=True)
            ]
            products.append(pad(torch.stack(rows), (start, 0))[:, :stop].cpu())
    n = len(each)
    return [questions.by_window(torch.stack(products[i::n]).mean(0)) for i in range(n)]
