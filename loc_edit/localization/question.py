"""A localizer's question: one prompt and target, whose clean and corrupted runs are computed once, when first used."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.localization.hooks import check_traceable, corruption_hooks, site_name, site_window, window_layers
from loc_edit.localization.metrics import Scorer
from loc_edit.localization.targets import TargetedPrompt
from loc_edit.localization.trace import Trace
from loc_edit.models.model import Hook, Model, token_texts
from loc_edit.names import Metric


@dataclass(frozen=True)
class Observed:
    """Activations of some rows of the prompt and its target.

    Attributes:
        residual: the residual stream before each layer, and after the last.
        site: the site's output in each layer.
    """

    residual: tuple[Float[Tensor, "row pos d_model"], ...]
    site: tuple[Float[Tensor, "row pos ..."], ...]


@dataclass(frozen=True)
class Question(TargetedPrompt):
    """The question that a localizer answers: how much does the metric of the target depend on each cell?

    A cell is a layer and a position.  The prompt, its target and its noise are the attributes of `TargetedPrompt`.

    Attributes:
        model: the unedited model.
        site: the hook point whose output makes up the cells.
        window: the number of layers that are taken together, centered on the cell's layer and clipped at the edges.
        scorer: measures the target in a final residual stream; see `metric`.
    """

    model: Model
    site: str
    window: int
    scorer: Scorer

    @property
    def tokens(self) -> Int[Tensor, " pos"]:
        """The prompt and its target, without the target's last token."""
        return torch.cat([self.prompt.tokens, self.answer[:-1]])

    @property
    def windows(self) -> list[range]:
        """For each layer, the layers of the window around it."""
        n_layers = self.model.cfg.n_layers
        return [window_layers(center, self.window, n_layers) for center in range(n_layers)]

    def hook_names(self, site: str | None = None) -> list[str]:
        """The full name of a site in each layer, by default of the question's own."""
        return [site_name(site or self.site, layer) for layer in range(self.model.cfg.n_layers)]

    def metric(self, final: Float[Tensor, "row pos d_model"]) -> Float[Tensor, " row"]:
        """The metric of whole rows, from their final residual stream."""
        zeros = torch.zeros(len(final), dtype=torch.long, device=final.device)
        return self.scorer(final, fact=zeros, start=zeros)

    @cached_property
    def clean(self) -> Observed:
        """The clean run: one row."""
        return self._observe([])

    @cached_property
    def corrupted(self) -> Observed:
        """The corrupted runs: one row per noise sample."""
        return self.at_share(1.0)

    @cached_property
    def p_clean(self) -> float:
        """The metric of the clean run."""
        return self.metric(self.clean.residual[-1]).item()

    @cached_property
    def p_corrupted(self) -> float:
        """The mean of the metric over the corrupted runs."""
        return self.metric(self.corrupted.residual[-1]).double().mean().item()

    @property
    def differences(self) -> list[Float[Tensor, "sample pos ..."]]:
        """The site's clean output minus its corrupted output, by layer."""
        return [clean - noisy for clean, noisy in zip(self.clean.site, self.corrupted.site, strict=True)]

    def at_share(self, share: float, site: str | None = None) -> Observed:
        """One run per noise sample with this share of the noise: 1 gives the corrupted runs, 0 the clean run.

        Args:
            share: the number that the noise is multiplied by.
            site: the site whose output is kept, by default the question's own.
        """
        return self._observe(corruption_hooks(self.prompt, share * self.noise), site)

    @torch.no_grad()
    def _observe(self, hooks: list[Hook], site: str | None = None) -> Observed:
        """Run the row once, or with corrupting hooks its noisy copies, and keep the residual stream and a site."""
        n_layers, sites = self.model.cfg.n_layers, self.hook_names(site)
        residuals = [*self.hook_names("hook_resid_pre"), site_name("resid_post", n_layers - 1)]
        names = [*sites, *residuals]
        with self.model.hooks(fwd_hooks=hooks):
            _, cache = self.model.run_with_cache(self.tokens[None], names_filter=names, stop_at_layer=n_layers)
        return Observed(tuple(cache[name] for name in residuals), tuple(cache[name] for name in sites))

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
            self.scorer.metric,
            token_texts(self.model, self.prompt.tokens),
            localizer,
        )


def ask(model: Model, fact: TargetedPrompt, site: str, window: int, metric: Metric) -> Question:
    """The question about a prompt and its target at a site; it refuses the same sites and models as `trace`."""
    check_traceable(model, site)
    scorer = Scorer(model, [fact], metric)
    return Question(**vars(fact), model=model, site=site, window=site_window(site, window), scorer=scorer)
