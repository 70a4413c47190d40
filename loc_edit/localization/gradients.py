"""Localizers that estimate every cell's restoration effect to first order, from a few forward and backward passes."""

from collections.abc import Iterable, Sequence

import torch
from torch.nn.functional import pad

from loc_edit.arguments import Count, checked
from loc_edit.localization.hooks import site_name
from loc_edit.localization.question import Grids, Observed, Questions
from loc_edit.models.relevance import HELD, relevance_rules


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


def relp(questions: Questions) -> Grids:
    """Relevance patching: attribution patching with coefficients of relevance propagation in place of the gradient.

    The coefficients come from the same backward pass of the corrupted run, in which scales of norms, attention
    patterns and the ratios of activation functions to their inputs are held constant, and gated products are halved;
    see `loc_edit.models.relevance`.  They say how the metric depends on an output through maps that are linear once
    the corrupted run is given, so that a function that is flat at this run but not on the way to the clean one counts.

    Cost: the same as `attribution`.  Source: Rezaei Jafari et al. 2025 (arXiv 2508.21258), with two departures: the
    rules begin at the logits, so that a metric which is not linear in them (and a soft cap) enters by its gradient,
    where the paper has a difference of logits; and windows, whose layers' effects add up as in `attribution`.

    Raises:
        ValueError: the site is held constant, such as queries and keys, which have no relevance.
    """
    if site_name(questions.site, 0).endswith(HELD):
        raise ValueError(f"site {questions.site!r}: relevance propagation holds it constant, so it has no relevance")
    with relevance_rules(questions.model) as rules:
        return _first_order(questions, [questions.at_share(1.0, gradients=True, rules=rules)])


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
