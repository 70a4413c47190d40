"""The localizers by name, and `localize` and `localize_many`, which apply any of them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.arguments import Window, checked
from loc_edit.contract import BadPlugin
from loc_edit.facts.fact import Fact
from loc_edit.localization.ablation import mean_ablation, resample_ablation, zero_ablation
from loc_edit.localization.contract import EFFECTS, localizer
from loc_edit.localization.direct import direct, random
from loc_edit.localization.gradients import attribution, integrated_gradients, relp
from loc_edit.localization.layerwise import layer_integrated_gradients
from loc_edit.localization.lens import logit_lens, tuned_lens
from loc_edit.localization.question import NOT_A_NUMBER, localize_by
from loc_edit.localization.references import references
from loc_edit.localization.trace import Trace
from loc_edit.localization.tracing import restored
from loc_edit.models.model import Model
from loc_edit.names import LOCALIZERS, TRACING, Metric, nearest
from loc_edit.prompts.encoding import Prompt

_OWN: dict[str, Callable[..., Any]] = {
    TRACING: restored,
    "attribution": attribution,
    "integrated_gradients": integrated_gradients,
    "layer_integrated_gradients": layer_integrated_gradients,
    "relp": relp,
    "zero_ablation": zero_ablation,
    "mean_ablation": mean_ablation,
    "resample_ablation": resample_ablation,
    "severed_mlp": partial(restored, severed="mlp"),
    "severed_attn": partial(restored, severed="attn"),
    "direct": direct,
    "logit_lens": logit_lens,
    "tuned_lens": tuned_lens,
    "random": random,
}
_OF_ONE_QUESTION = (direct, random)
for _name, _effects in _OWN.items():
    localizer(_name, batched=_effects not in _OF_ONE_QUESTION)(_effects)


@checked
def localize(
    model: Model,
    prompt: Prompt,
    target: str,
    *,
    noise: Float[Tensor, "sample subject d_model"],
    localizer: str = TRACING,
    site: str = "mlp_out",
    window: Window = 5,
    metric: Metric = "probability",
    foil: str | None = None,
    reference: Sequence[Prompt] = (),
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
        reference: other prompts, from which mean and resample ablation take outputs.
        options: the localizer's own, such as `steps` of integrated gradients.

    Returns:
        A `Trace`, whose `effect` is the effect of each cell, and whose `p_restored` is `p_corrupted` plus the effect.

    Raises:
        ValueError: the localizer or option does not exist; see `trace` for more.
        BadPlugin: a localizer of yours failed, or returned something else than a grid of numbers.
        ModelChanged: it left the model in another state.
    """
    ((traced,),) = localize_many(
        model,
        [prompt],
        [target],
        noises=[noise],
        localizer=localizer,
        site=site,
        windows=[window],
        metric=metric,
        foils=[foil],
        references=[reference],
        **options,
    )
    if traced.reason:
        raise BadPlugin(traced.reason)
    if localizer == TRACING and traced.is_nan:
        raise ValueError(NOT_A_NUMBER.format(prompt.fact_id))
    return traced


@checked
def localize_many(
    model: Model,
    prompts: Sequence[Prompt],
    targets: Sequence[str | Int[Tensor, " _"]],
    *,
    noises: Sequence[Float[Tensor, "_ _ d_model"]],
    localizer: str = TRACING,
    site: str = "mlp_out",
    windows: Sequence[int] = (5,),
    metric: Metric = "probability",
    foils: Sequence[str | None] | None = None,
    references: Sequence[Sequence[Prompt]] | None = None,
    **options: Any,
) -> list[list[Trace]]:
    """The grids of many prompts with many windows: the same as from `localize`, which has the rest, with shared work.

    Targets, noises, foils and references (some prompts) are one per prompt; so are the traces that are returned, and
    each has one trace per window.
    """
    if localizer not in EFFECTS:
        raise ValueError(f"localizer {localizer!r}: {nearest(localizer, LOCALIZERS)}")
    known = LOCALIZERS[localizer]
    own = {*known.options, *["seed"] * known.seeded, *["facts"] * known.facts}
    if unknown := sorted(set(options) - own):
        expected = f"options among {', '.join(sorted(own))}" if own else "no options"
        raise ValueError(f"localizer {localizer!r}: expected {expected}, got {', '.join(unknown)}")
    asked: dict[str, Any] = {"site": site, "windows": windows, "metric": metric, "foils": foils, **options}
    return localize_by(EFFECTS[localizer], localizer, model, prompts, targets, noises, references=references, **asked)


def grid_options(localizer: str, model: Model, fact: Fact, facts: Sequence[Fact] = (), seed: int = 0) -> dict[str, Any]:
    """The options that `localize` gets in a grid and in `loc-edit trace`: metric, foil, prompts and its own options.

    The reference prompts of a fact are drawn per (seed, fact) among `facts`; so they depend on the data set and on
    nothing else.

    Args:
        localizer: one of `loc_edit.names.LOCALIZERS`.
        model: whose tokenizer encodes the reference prompts.
        fact: the fact that is localized.
        facts: the whole data set, for localizers that need it or reference prompts of it.
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
    if known.facts:
        options["facts"] = facts
    return options
