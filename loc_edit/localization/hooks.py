"""The patches of Causal Tracing as TransformerLens hooks: noise on the subject, and clean outputs put back."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from einops import repeat
from jaxtyping import Float
from torch import Tensor
from transformer_lens import ActivationCache

from loc_edit.arguments import Count, checked
from loc_edit.models.model import Hook, Model, hook_points
from loc_edit.prompts.encoding import Prompt
from loc_edit.prompts.noise import check_noise

NAMED_SITES = ("mlp_out", "attn_out", "resid_post")
"""Hook points that go without their `hook_`; any other site is given as the part of its name after `blocks.<l>.`."""


@checked
def corruption_hooks(prompt: Prompt, noise: Float[Tensor, "sample subject d_model"]) -> list[Hook]:
    """Hooks that add `noise` to the embeddings of the prompt's subject.

    For `model.hooks(fwd_hooks=...)` or `run_with_hooks`.  The batch may hold one row, which becomes one row per
    sample; or one row per sample; or several such groups of rows, one after another.

    Raises:
        ValueError: the noise does not have the subject's length.
    """
    span, samples = prompt.subject, noise.shape[0]
    check_noise(prompt, noise)

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


@checked
def restoration_hooks(
    clean_cache: Mapping[str, Tensor] | ActivationCache,
    *,
    layers: Sequence[int],
    pos: Sequence[int],
    site: str = "mlp_out",
) -> list[Hook]:
    """Hooks that overwrite a site's output with its clean value, at every given layer and position.

    Args:
        clean_cache: activations of the clean run by hook name, such as an `ActivationCache`; row 0 is used.
        layers: layers whose site is restored, in every row of the batch.
        pos: positions that are restored.
        site: `mlp_out`, `attn_out`, `resid_post`, or what follows `blocks.<l>.` in a hook name.
    """
    positions = list(pos)

    def restore(value: Tensor, hook: Any, clean: Tensor) -> Tensor:
        value = value.clone()
        value[:, positions] = clean[0, positions].to(value)
        return value

    names = [site_name(site, layer) for layer in layers]
    if missing := [name for name in names if name not in clean_cache]:
        raise ValueError(f"expected a clean cache with {', '.join(names)}, got one without {', '.join(missing)}")
    return [(name, partial(restore, clean=clean_cache[name])) for name in names]


def check_site(model: Model, site: str) -> None:
    """Refuse a site that is not a hook point of the model's layers."""
    if site_name(site, 0) not in hook_points(model):
        raise ValueError(f"site {site!r}: the model has no hook point {site_name(site, 0)}")


def check_traceable(model: Model, site: str) -> None:
    """Refuse what tracing would compute wrongly: a site whose axis 1 is not the position, or a model not causal."""
    check_site(model, site)
    if site.endswith(("hook_pattern", "hook_attn_scores")):
        raise ValueError(f"site {site!r}: expected activations of shape [batch, pos, ...], got [batch, head, ...]")
    if model.cfg.attention_dir != "causal" or model.cfg.positional_embedding_type == "shortformer":
        raise ValueError(
            f"model {model.cfg.model_name}: expected a causal model that adds position embeddings once, got "
            f"{model.cfg.attention_dir} attention with {model.cfg.positional_embedding_type} embeddings"
        )


def site_name(site: str, layer: int) -> str:
    """The hook point's full name."""
    return f"blocks.{layer}.hook_{site}" if site in NAMED_SITES else f"blocks.{layer}.{site}"


def site_window(site: str, window: int) -> int:
    """The window that is used at a site: 1 at `resid_post`, where restoring one layer overwrites all below it."""
    return 1 if site == "resid_post" else window


@checked
def window_layers(center: int, window: Count, n_layers: int) -> range:
    """The layers of the window around `center`, clipped at the model's edges and not shifted (spec 1.3)."""
    first = center - window // 2
    return range(max(0, first), min(n_layers, first + window))
