"""The clean, the corrupted and the restored runs of one prompt.

`trace` patches the same hook points as `corruption_hooks` and `restoration_hooks` give to users.
"""

from typing import Any, Literal, cast

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from loc_edit.batching import Hook
from loc_edit.models import logits_at, token_texts
from loc_edit.prompts import BadPrompt, Prompt, target_tokens
from loc_edit.tracing.hooks import check_site, corruption_hooks, site_name, window_layers
from loc_edit.tracing.result import Trace

Metric = Literal["probability", "log_probability", "logit_difference"]


@torch.inference_mode()
def trace(
    model: HookedTransformer,
    prompt: Prompt,
    target: str | Int[Tensor, " target"],
    *,
    noise: Float[Tensor, "sample subject d_model"],
    site: str = "mlp_out",
    window: int = 5,
    metric: Metric = "probability",
    foil: str | None = None,
    batch_size: int = 256,
) -> Trace:
    """Causal Tracing of one prompt, every layer and position.

    The corrupted run is computed once; a restored run starts at the first layer of its window from the
    corrupted residual stream, many positions and all samples in one batch.

    Args:
        model: any pre-norm or post-norm `HookedTransformer`.
        prompt: from `encode`.
        target: the text (or token ids) whose probability is traced; several tokens multiply.
        noise: what is added to the subject's embeddings, one row of the batch per sample.
        site: the hook point that is restored; `mlp_out`, `attn_out`, `resid_post`, or what follows
            `blocks.<l>.` in a hook name.
        window: layers restored together, `l - w // 2` to `l - w // 2 + w - 1`, clipped; `resid_post` takes 1.
        metric: `probability`, `log_probability` (mean over samples), or `logit_difference` (first token of the
            target minus first token of `foil`).
        foil: the other answer of `logit_difference`.
        batch_size: rows per forward pass.

    Raises:
        ValueError: an unknown site, a window below 1, noise of another shape.
    """
    window = 1 if site == "resid_post" else window
    window_layers(0, window, model.cfg.n_layers)
    check_site(model, site)
    text = target if isinstance(target, str) else "".join(token_texts(model, target)).strip()
    answer = target_tokens(model, prompt.text, target) if isinstance(target, str) else target.to(model.cfg.device)
    scorer = _Scorer(model, prompt, answer, metric, foil)
    clean, p_clean = _clean_run(model, scorer, site)
    residuals, p_corrupted = _corrupted_run(model, scorer, corruption_hooks(prompt, noise))
    p_restored = torch.full((model.cfg.n_layers, len(prompt)), p_corrupted, dtype=torch.float32)
    for layer in range(model.cfg.n_layers):
        layers = window_layers(layer, window, model.cfg.n_layers)
        start = prompt.subject.start
        p_restored[layer, start:] = _restored_runs(
            model, scorer, residuals[layers[0]], clean, layers, range(start, len(prompt)), site, batch_size
        )
    return Trace(
        prompt,
        text,
        p_clean,
        p_corrupted,
        p_restored,
        window,
        site,
        metric,
        token_texts(model, prompt.tokens),
    )


class _Scorer:
    """Prompt and target as one row of tokens, and the metric of its final residual stream."""

    def __init__(
        self,
        model: HookedTransformer,
        prompt: Prompt,
        answer: Int[Tensor, " target"],
        metric: str,
        foil: str | None,
    ) -> None:
        self.model, self.metric, self.answer = model, metric, answer
        self.tokens = torch.cat([prompt.tokens, answer[:-1]])
        self.positions = slice(len(prompt) - 1, len(self.tokens))
        if len(self.tokens) > model.cfg.n_ctx:
            raise BadPrompt(f"fact {prompt.fact_id}: {prompt.text!r} and its target exceed the context")
        if metric == "logit_difference":
            if foil is None:
                raise ValueError("metric 'logit_difference' needs a foil, the other answer")
            self.foil = target_tokens(model, prompt.text, foil)[0]
        elif metric not in ("probability", "log_probability"):
            raise ValueError(f"metric {metric!r}: probability, log_probability or logit_difference is wanted")

    def __call__(self, residual: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, " batch"]:
        logits = logits_at(self.model, residual[:, self.positions]).float()
        if self.metric == "logit_difference":
            return logits[:, 0, self.answer[0]] - logits[:, 0, self.foil]
        index = repeat(self.answer, "target -> batch target 1", batch=len(logits))
        log_p = logits.log_softmax(-1).gather(-1, index).sum((1, 2))
        return log_p if self.metric == "log_probability" else log_p.exp()


def _clean_run(model: HookedTransformer, scorer: _Scorer, site: str) -> tuple[dict[int, Tensor], float]:
    """The site's clean output by layer, each [pos, ...], and the clean metric."""
    names = {site_name(site, layer): layer for layer in range(model.cfg.n_layers)}
    final, cache = model.run_with_cache(scorer.tokens[None], names_filter=list(names), stop_at_layer=model.cfg.n_layers)
    if silent := [name for name in names if name not in cache.cache_dict]:
        raise ValueError(f"site {site!r}: hook point {silent[0]} does not fire in this model's configuration")
    clean = {layer: cache[name][0] for name, layer in names.items()}
    if clean[0].shape[0] != len(scorer.tokens):
        raise ValueError(f"site {site!r}: activations of shape [batch, pos, ...] are wanted, got {clean[0].shape}")
    return clean, scorer(cast(Tensor, final)).item()


def _corrupted_run(
    model: HookedTransformer, scorer: _Scorer, hooks: list[Hook]
) -> tuple[list[Float[Tensor, "sample pos d_model"]], float]:
    """The residual stream before every layer of the corrupted run, and the mean metric."""
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)]
    with model.hooks(fwd_hooks=hooks):
        final, cache = model.run_with_cache(scorer.tokens[None], names_filter=names, stop_at_layer=model.cfg.n_layers)
    return [cache[name] for name in names], scorer(cast(Tensor, final)).double().mean().item()


def _restored_runs(
    model: HookedTransformer,
    scorer: _Scorer,
    residual: Float[Tensor, "sample pos d_model"],
    clean: dict[int, Tensor],
    layers: range,
    positions: range,
    site: str,
    batch_size: int,
) -> Float[Tensor, " restored"]:
    """The mean metric with `site` restored at each position, all `layers` together.

    `residual` is the corrupted stream before the first of `layers`.
    """
    samples = residual.shape[0]
    results = []
    for some in torch.tensor(list(positions)).split(max(1, batch_size // samples)):
        where = repeat(some, "pos -> (pos sample)", sample=samples)
        rows = torch.arange(len(where))

        def restore(value: Tensor, hook: Any, rows: Tensor = rows, where: Tensor = where) -> Tensor:
            value = value.clone()
            value[rows, where] = clean[hook.layer()][where].to(value)
            return value

        start = repeat(residual, "sample pos d -> (n sample) pos d", n=len(some))
        final = model.run_with_hooks(
            start,
            start_at_layer=layers[0],
            stop_at_layer=model.cfg.n_layers,
            fwd_hooks=[(site_name(site, layer), restore) for layer in layers],
        )
        results.append(rearrange(scorer(final), "(n sample) -> n sample", sample=samples).double().mean(1))
    return torch.cat(results).float().cpu()
