"""Localisers in a grid: what one is given for each fact, what its numbers depend on, and the trace of nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from loc_edit.facts.fact import Fact
from loc_edit.localization.references import references
from loc_edit.localization.trace import Trace
from loc_edit.models.model import Model, token_texts
from loc_edit.names import LOCALIZERS, TRACING
from loc_edit.prompts.encoding import Prompt


@dataclass(frozen=True)
class Localization:
    """A cell of a grid's traces: a localiser, and the window of layers that it takes together."""

    localizer: str
    window: int

    def __str__(self) -> str:
        return f"{'tracing' if self.localizer == TRACING else self.localizer}, window {self.window}"

    @property
    def needs_references(self) -> bool:
        """Whether its numbers depend on other facts' prompts."""
        return self.localizer != TRACING and LOCALIZERS[self.localizer].references > 0

    @property
    def metric(self) -> str:
        """The metric of its trace rows."""
        return "probability" if self.localizer == TRACING else LOCALIZERS[self.localizer].metric

    def about(self, prompts: str) -> Mapping[str, Any]:
        """All that its numbers depend on, but for model, site, noise, seed and fact.

        Args:
            prompts: a digest of the prompts that reference prompts are drawn from.
        """
        if self.localizer == TRACING:
            return {"window": self.window}
        about = LOCALIZERS[self.localizer]
        found: dict[str, Any] = {"localizer": self.localizer, "window": self.window, "metric": about.metric}
        found |= {"options": dict(about.options)} if about.options else {}
        return found | ({"references": [about.references, prompts]} if about.references else {})


def grid_options(
    localizer: str, model: Model, fact: Fact, facts: Sequence[Fact] = (), seed: int = 0
) -> dict[str, Any]:
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


def no_trace(model: Model, prompt: Prompt, target: str, what: Localization, site: str) -> Trace:
    """The trace of a fact that a localiser can say nothing about: every number is NaN, so that none can be used."""
    nothing = torch.full((model.cfg.n_layers, len(prompt)), torch.nan)
    window, nan = 1 if site == "resid_post" else what.window, float("nan")
    texts = token_texts(model, prompt.tokens)
    return Trace(prompt, target, nan, nan, nothing, window, site, what.metric, texts, what.localizer)
