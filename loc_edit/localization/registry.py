"""The localizers by name, and `localize`, which applies any of them."""

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
from loc_edit.localization.targets import targeted_prompt
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
"""By localizer, the function from a `Question` and options to each cell's effect, in units of the metric.

Causal Tracing has none, as `trace` computes it.
"""


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
    """The layer x position grid of one prompt by any localizer.

    Args:
        model: any pre-norm or post-norm model.
        prompt: from `encode`.
        target: the text whose metric is localized.
        noise: what corrupts the subject; localizers without corrupted runs need it for the denominator of fractions.
        localizer: one of `loc_edit.names.LOCALIZERS`.
        site: see `trace`.
        window: see `trace`.
        metric: see `trace`.
        foil: see `trace`.
        options: the localizer's own, such as `reference` (prompts) of mean and resample ablation.

    Returns:
        A `Trace`, whose `effect` is the effect of each cell, and whose `p_restored` is `p_corrupted` plus the effect.

    Raises:
        ValueError: the localizer or option does not exist; see `trace` for more.
    """
    if localizer == TRACING:
        return trace(model, prompt, target, noise=noise, site=site, window=window, metric=metric, foil=foil, **options)
    if localizer not in LOCALIZERS:
        raise ValueError(f"localizer {localizer!r}: {nearest(localizer, LOCALIZERS)}")
    question = ask(model, targeted_prompt(model, prompt, target, noise, metric, foil), site, window, metric)
    return question.trace(EFFECTS[localizer](question, **options), localizer)


def grid_options(localizer: str, model: Model, fact: Fact, facts: Sequence[Fact] = (), seed: int = 0) -> dict[str, Any]:
    """The options that `localize` gets in a grid and in `loc-edit trace`: metric, foil, prompts and its own options.

    The reference prompts of a fact are drawn per (seed, fact) among `facts`; so they depend on the data set and on
    nothing else.

    Args:
        localizer: one of `loc_edit.names.LOCALIZERS`.
        model: whose tokenizer encodes the reference prompts.
        fact: the fact that is localized.
        facts: the whole data set, for localizers with reference prompts.
        seed: start of the draws.
    """
    if localizer == TRACING:
        return {}
    known = LOCALIZERS[localizer]
    options: dict[str, Any] = {**known.options, "metric": known.metric}
    if known.metric == "logit_difference":
        options["foil"] = fact.target_new
    if known.references:
        options["reference"] = references(model, fact, facts, known.references, seed)
    if known.seeded:
        options["seed"] = seed
    return options
