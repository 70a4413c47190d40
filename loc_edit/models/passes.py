"""Running a range of layers: the one place that knows how a model's forward pass is called and cut short."""

import inspect
from collections.abc import Mapping
from typing import Any, cast

from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

Past = TransformerLensKeyValueCache | Mapping[int, Any]
"""Attention keys and values of earlier positions: an entry a layer."""


def takes_past(model: HookedTransformer) -> bool:
    """Whether `run_layers` may be given a `past`: the model's forward pass has a parameter `past_kv_cache`.

    Where it has none, as on a `TransformerBridge`, whole rows are computed again instead: exact, and slower.
    """
    return "past_kv_cache" in inspect.signature(type(model).forward).parameters


def new_past(model: HookedTransformer, n_rows: int) -> TransformerLensKeyValueCache:
    """A past without positions, to which `run_layers` adds."""
    return TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, n_rows)


def run_layers(
    model: HookedTransformer,
    given: Int[Tensor, "row pos"] | Float[Tensor, "row pos d_model"],
    *,
    start: int | None = None,
    stop: int,
    past: Past | None = None,
    mask: Int[Tensor, "row past_and_pos"] | None = None,
) -> Float[Tensor, "row pos d_model"]:
    """The residual stream before layer `stop` (the number of layers: after the last), hooks on the model included.

    Args:
        model: any.
        given: tokens; or, with `start`, the residual stream before that layer.
        start: the first layer.
        stop: the layer that is not run any more.
        past: of positions before the given ones; only where `takes_past`.
        mask: 1 at the real positions, of the past and the given ones together; comes with a past.
    """
    if start == stop:
        return cast(Tensor, given)
    if past is not None:
        return cast(
            Tensor, model(given, start_at_layer=start, stop_at_layer=stop, past_kv_cache=past, attention_mask=mask)
        )
    if stop < model.cfg.n_layers or takes_past(model):
        return cast(Tensor, model(given, start_at_layer=start, stop_at_layer=stop))
    # A bridge does not stop after its last layer, so the stream is read on the way to the logits.
    final: list[Tensor] = []
    with model.hooks(fwd_hooks=[(f"blocks.{stop - 1}.hook_resid_post", lambda value, hook: final.append(value))]):
        model(given, start_at_layer=start)
    return final[-1]
