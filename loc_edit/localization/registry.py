"""The localisers by name, and `localize`, which asks any of them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from loc_edit.facts.fact import Fact
from loc_edit.localization.ablation import mean_ablation, resample_ablation, severed, zero_ablation
from loc_edit.localization.direct import direct, random
from loc_edit.localization.gradients import attribution, integrated_gradients
from loc_edit.localization.question import ask
from loc_edit.localization.references import references
from loc_edit.localization.trace import Trace
from loc_edit.localization.tracing import trace
from loc_edit.models.model import Model
from loc_edit.names import LOCALIZERS, TRACING, Metric, nearest
from loc_edit.prompts.encoding import Prompt

EFFECTS: dict[str, Callable[..., Float[Tensor, "layer pos"]]] = {
    "attribution": attribution,
    "integrated_gradients": integrated_gradients,
    "zero_ablation": zero_ablation,
    "mean_ablation": mean_ablation,
    "resample_ablation": resample_ablation,
    "severed_mlp": partial(severed, module="mlp"),
    "severed_attn": partial(severed, module="attn"),
    "direct": direct,
    "random": random,
}
"""(question, **options) -> what each cell is worth, in units of the metric, by localizer; Causal Tracing is `trace`."""


def localize(
    model: Model,
    prompt: Prompt,
    target: str,
    *,
    noise: Float[Tensor, "sample subject d_model"],
    localizer: str = TRACING,
    site: str = "mlp_out",
    window: int = 5,
    metric: Metric = "probability",
    foil: str | None = None,
    **options: Any,
) -> Trace:
    """A prompt's layer x position grid by any localiser.

    Args:
        model: any pre-norm or post-norm `HookedTransformer`.
        prompt: from `encode`.
        target: the text whose metric is localised.
        noise: what corrupts the subject; also of localisers that do not use the corrupted run, for the denominator.
        localizer: one of `loc_edit.names.LOCALIZERS`.
        site: see `trace`.
        window: see `trace`.
        metric: see `trace`.
        foil: see `trace`.
        options: the localiser's own, such as `reference` (prompts) of mean and resample ablation.

    Returns:
        A `Trace`, whose `effect` is what a cell is worth, and whose `p_restored` is `p_corrupted` plus that.

    Raises:
        ValueError: no such localiser or option; see `trace`.
    """
    if localizer == TRACING:
        return trace(model, prompt, target, noise=noise, site=site, window=window, metric=metric, foil=foil, **options)
    if localizer not in LOCALIZERS:
        raise ValueError(f"localizer {localizer!r}: {nearest(localizer, LOCALIZERS)}")
    question = ask(model, prompt, target, noise, site, window, metric, foil)
    return question.trace(EFFECTS[localizer](question, **options), localizer)


def grid_options(localizer: str, model: Model, fact: Fact, facts: Sequence[Fact] = (), seed: int = 0) -> dict[str, Any]:
    """What `localize` is given of a localiser in a grid, and by `loc-edit trace`: metric, foil, prompts, its options.

    The reference prompts of a fact are drawn per (seed, fact) among `facts`; so they depend on the data set and on
    nothing else.

    Args:
        localizer: `causal_tracing`, or one of `LOCALIZERS`.
        model: whose tokens the reference prompts are.
        fact: the fact that is localised.
        facts: the whole data set, for localisers with reference prompts.
        seed: start of the draws.
    """
    if localizer == TRACING:
        return {}
    about = LOCALIZERS[localizer]
    found: dict[str, Any] = {**about.options, "metric": about.metric}
    if about.metric == "logit_difference":
        found["foil"] = fact.target_new
    if about.references:
        found["reference"] = references(model, fact, facts, about.references, seed)
    return found | ({"seed": seed} if about.seeded else {})
