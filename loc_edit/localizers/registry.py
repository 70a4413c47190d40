"""The localisers by name, and `localize`, which asks any of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from loc_edit.localizers.direct import direct, random
from loc_edit.localizers.gradients import attribution, integrated_gradients
from loc_edit.localizers.patching import mean_ablation, resample_ablation, severed, zero_ablation
from loc_edit.localizers.question import ask
from loc_edit.prompts import Prompt
from loc_edit.tracing.metrics import Metric
from loc_edit.tracing.result import Trace
from loc_edit.tracing.runs import trace

TRACING = "causal_tracing"


@dataclass(frozen=True)
class Localizer:
    """A way to weigh cells.

    Attributes:
        effect: (question, **options) -> what each cell is worth, in units of the metric.
        cost: in forward passes of one row, in words; L layers, T positions, K noise samples.
        metric: of the target, in a grid.
        options: its own options in a grid; a cell's name holds them.
        references: how many other facts' prompts it takes in a grid, as option `reference`.
        seeded: whether it draws, and so takes the option `seed`.
    """

    effect: Callable[..., Float[Tensor, "layer pos"]]
    cost: str
    metric: Metric = "probability"
    options: Mapping[str, Any] = field(default_factory=dict)
    references: int = 0
    seeded: bool = False


LOCALIZERS: dict[str, Localizer] = {
    "attribution": Localizer(attribution, "K forward, K backward"),
    "integrated_gradients": Localizer(integrated_gradients, "8 times that of attribution", options={"steps": 8}),
    "zero_ablation": Localizer(zero_ablation, "L x T"),
    "mean_ablation": Localizer(mean_ablation, "L x T, and one a reference prompt", references=20),
    "resample_ablation": Localizer(
        resample_ablation,
        "10 x L x T, and one a reference prompt",
        options={"samples": 10},
        references=20,
        seeded=True,
    ),
    "severed_mlp": Localizer(partial(severed, module="mlp"), "K x L x T"),
    "severed_attn": Localizer(partial(severed, module="attn"), "K x L x T"),
    "direct": Localizer(direct, "K + 1", metric="logit_difference"),
    "random": Localizer(random, "K + 1", seeded=True),
}
"""The localisers by name; Causal Tracing, the first, is `loc_edit.trace`."""


def localize(
    model: HookedTransformer,
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
        localizer: `causal_tracing`, or one of `LOCALIZERS`.
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
        raise ValueError(f"localizer {localizer!r}: one of {', '.join([TRACING, *LOCALIZERS])} is wanted")
    question = ask(model, prompt, target, noise, site, window, metric, foil)
    return question.trace(LOCALIZERS[localizer].effect(question, **options), localizer)
