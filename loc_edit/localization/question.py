"""One prompt to be localised: its clean and its corrupted runs, computed once, and the trace that comes out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.localization.hooks import check_traceable, corruption_hooks, site_name, window_layers
from loc_edit.localization.metrics import Scorer, check_metric, make_scorer
from loc_edit.localization.trace import Trace
from loc_edit.models.model import Hook, Model, token_texts
from loc_edit.names import Metric
from loc_edit.prompts.encoding import BadPrompt, Prompt, target_tokens


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
class Question:
    """What a localiser is asked: which cells does the target's metric hang on?

    Attributes:
        model: unedited.
        prompt: from `encode`.
        answer: the target's tokens.
        noise: added to the subject's embeddings in the corrupted run, one row a sample.
        site: the hook point whose cells are weighed.
        window: layers taken together, centred on a cell's layer and clipped at the edges.
        scorer: the metric of a final residual stream.
    """

    model: Model
    prompt: Prompt
    target: str
    answer: Int[Tensor, " target"]
    noise: Float[Tensor, "sample subject d_model"]
    site: str
    window: int
    scorer: Scorer

    @property
    def tokens(self) -> Int[Tensor, " pos"]:
        """The prompt and its target, without the target's last token."""
        return torch.cat([self.prompt.tokens, self.answer[:-1]])

    @property
    def windows(self) -> list[range]:
        """The layers of each centre's window."""
        n_layers = self.model.cfg.n_layers
        return [window_layers(center, self.window, n_layers) for center in range(n_layers)]

    def metric(self, final: Float[Tensor, "row pos d_model"]) -> Float[Tensor, " row"]:
        """The metric of whole rows, from their final residual stream."""
        nought = torch.zeros(len(final), dtype=torch.long, device=final.device)
        return self.scorer(final, nought, nought)

    @cached_property
    def clean(self) -> Observed:
        """The clean run: one row."""
        return self._observe([], self.site)

    @cached_property
    def corrupted(self) -> Observed:
        """The corrupted runs: a row a sample."""
        return self.at_share(1.0)

    @cached_property
    def p_clean(self) -> float:
        """The metric of the clean run."""
        return self.metric(self.clean.residual[-1]).item()

    @cached_property
    def p_corrupted(self) -> float:
        """The metric's mean over the corrupted runs."""
        return self.metric(self.corrupted.residual[-1]).double().mean().item()

    def at_share(self, share: float) -> Observed:
        """Runs with this share of the noise: 1 is the corrupted run, 0 the clean one, once a sample."""
        return self._observe(corruption_hooks(self.prompt, share * self.noise), self.site)

    def corrupted_outputs(self, site: str) -> tuple[Float[Tensor, "sample pos ..."], ...]:
        """Another site's output in the corrupted runs, by layer."""
        return self._observe(corruption_hooks(self.prompt, self.noise), site).site

    @torch.no_grad()
    def _observe(self, hooks: Sequence[Hook], site: str) -> Observed:
        """Run the row (with hooks, its copies) once, and keep the residual stream and a site's outputs."""
        n_layers = self.model.cfg.n_layers
        sites = [site_name(site, layer) for layer in range(n_layers)]
        residuals = [site_name("hook_resid_pre", layer) for layer in range(n_layers)]
        residuals.append(site_name("hook_resid_post", n_layers - 1))
        with self.model.hooks(fwd_hooks=list(hooks)):
            _, cache = self.model.run_with_cache(
                self.tokens[None], names_filter=[*sites, *residuals], stop_at_layer=n_layers
            )
        return Observed(tuple(cache[name] for name in residuals), tuple(cache[name] for name in sites))

    def trace(self, effect: Float[Tensor, "layer pos"], localizer: str) -> Trace:
        """The trace of a localiser that finds this effect, in units of the metric."""
        restored = (self.p_corrupted + effect.double()).float().cpu()
        return Trace(
            self.prompt,
            self.target,
            self.p_clean,
            self.p_corrupted,
            restored,
            self.window,
            self.site,
            self.scorer.metric,
            token_texts(self.model, self.prompt.tokens),
            localizer,
        )


def ask(
    model: Model,
    prompt: Prompt,
    target: str,
    noise: Float[Tensor, "sample subject d_model"],
    site: str,
    window: int,
    metric: Metric,
    foil: str | None,
) -> Question:
    """The question of `localize`'s arguments, refused as `trace` refuses them."""
    check_traceable(model, site)
    check_metric(metric, [prompt], [foil])
    corruption_hooks(prompt, noise)  # refuses noise of another length
    answer = target_tokens(model, prompt.text, target)
    if len(prompt) + len(answer) - 1 > model.cfg.n_ctx:
        raise BadPrompt(f"fact {prompt.fact_id}: {prompt.text!r} and its target exceed the context")
    scorer = make_scorer(model, [prompt], [answer], metric, [foil])
    return Question(model, prompt, target, answer, noise, site, 1 if site == "resid_post" else window, scorer)
