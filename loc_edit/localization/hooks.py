"""The patches of Causal Tracing as hooks, for `model.hooks(...)` and for the runs of this room."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from einops import repeat
from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache

from loc_edit.models.model import Hook, Model
from loc_edit.prompts.encoding import Prompt

SITES = {
    "mlp_out": "blocks.{layer}.hook_mlp_out",
    "attn_out": "blocks.{layer}.hook_attn_out",
    "resid_post": "blocks.{layer}.hook_resid_post",
}
"""Hook points that have a short name; any other is given as the part after `blocks.<l>.`."""


def corruption_hooks(prompt: Prompt, noise: Float[Tensor, "sample subject d_model"]) -> list[Hook]:
    """Hooks that add `noise` to the embeddings of the prompt's subject.

    For `model.hooks(fwd_hooks=...)` or `run_with_hooks`.  The batch holds one row (it becomes one per
    sample), one row per sample, or several such groups one after another.

    Raises:
        ValueError: the noise does not have the subject's length.
    """
    span, samples = prompt.subject, noise.shape[0]
    if noise.shape[1] != span.stop - span.start:
        raise ValueError(
            f"fact {prompt.fact_id}: noise of shape {list(noise.shape)} for a subject of "
            f"{span.stop - span.start} tokens; [sample, subject, d_model] is wanted"
        )

    def corrupt(value: Float[Tensor, "batch pos d_model"], hook: Any) -> Float[Tensor, "batch2 pos d_model"]:
        rows = value.shape[0]
        if rows == 1:
            value = repeat(value, "1 pos d_model -> sample pos d_model", sample=samples)
        elif rows % samples:
            raise ValueError(f"{samples} noise samples do not fit a batch of {rows} rows")
        groups = value.shape[0] // samples
        value = value.clone()
        value[:, span] += repeat(noise.to(value), "sample subject d -> (group sample) subject d", group=groups)
        return value

    return [("hook_embed", corrupt)]


def restoration_hooks(
    clean_cache: Mapping[str, Tensor] | ActivationCache,
    *,
    layers: Sequence[int],
    pos: Sequence[int],
    site: str = "mlp_out",
) -> list[Hook]:
    """Hooks that overwrite a site's output with its clean value, at every (layer, position) given.

    Args:
        clean_cache: activations of the clean run by hook name (an `ActivationCache` will do); row 0 counts.
        layers: layers whose site is restored, in every row of the batch.
        pos: positions that are restored.
        site: `mlp_out`, `attn_out`, `resid_post`, or what follows `blocks.<l>.` in a hook name.
    """
    where = list(pos)

    def restore(clean: Tensor) -> Callable[..., Tensor]:
        def hook_fn(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            value[:, where] = clean[0, where].to(value)
            return value

        return hook_fn

    return [(site_name(site, layer), restore(clean_cache[site_name(site, layer)])) for layer in layers]


def check_site(model: Model, site: str) -> None:
    """Refuse a site that is no hook point of the model's layers."""
    if site_name(site, 0) not in model.hook_dict:
        raise ValueError(f"site {site!r}: the model has no hook point {site_name(site, 0)}")


def check_traceable(model: Model, site: str) -> None:
    """Refuse what tracing would compute wrongly: a site without positions in place, a model that is not causal."""
    check_site(model, site)
    if site.endswith(("hook_pattern", "hook_attn_scores")):
        raise ValueError(f"site {site!r}: activations of shape [batch, pos, ...] are wanted, not [batch, head, ...]")
    if model.cfg.attention_dir != "causal" or model.cfg.positional_embedding_type == "shortformer":
        raise ValueError(
            f"model {model.cfg.model_name}: a causal model whose position embeddings are added once is wanted, not "
            f"{model.cfg.attention_dir} attention with {model.cfg.positional_embedding_type} embeddings"
        )


def site_name(site: str, layer: int) -> str:
    """The hook point's full name."""
    return SITES.get(site, "blocks.{layer}." + site).format(layer=layer)


def window_layers(center: int, window: int, n_layers: int) -> range:
    """The layers of the window around `center`, clipped at the model's edges and not shifted (spec 1.3)."""
    if window < 1:
        raise ValueError(f"window {window}: at least 1 layer is wanted")
    first = center - window // 2
    return range(max(0, first), min(n_layers, first + window))
