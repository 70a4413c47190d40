"""Running a range of layers: the one place that knows how a model's forward pass is called and cut short."""

import inspect
from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
from transformer_lens.cache.key_value_cache_entry import TransformerLensKeyValueCacheEntry

from loc_edit.models.kernels import hooked, one_kernel_each, plain
from loc_edit.models.model import Model

Past = TransformerLensKeyValueCache | Mapping[int, Any]
"""Attention keys and values of earlier positions: an entry a layer."""


def takes_past(model: Model) -> bool:
    """Whether `run_layers` may be given a `past`: the model's forward pass has a parameter `past_kv_cache`.

    Where it has none, as on a `TransformerBridge`, whole rows are computed again instead: exact, and slower.
    """
    return "past_kv_cache" in inspect.signature(type(model).forward).parameters


def new_past(model: Model, n_rows: int) -> TransformerLensKeyValueCache:
    """A past without positions, to which `run_layers` adds."""
    return TransformerLensKeyValueCache.init_cache(model.cfg, model.cfg.device, n_rows)


def run_layers(
    model: Model,
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
    options = {} if past is None else {"past_kv_cache": past, "attention_mask": mask}
    with one_kernel_each(list(model.blocks)[start or 0 : stop]):
        if stop < model.cfg.n_layers or takes_past(model):
            return cast(Tensor, model(given, start_at_layer=start, stop_at_layer=stop, **options))
        # A bridge does not stop after its last layer, so the stream is read on the way to the logits.
        final: list[Tensor] = []
        with model.hooks(fwd_hooks=[(f"blocks.{stop - 1}.hook_resid_post", lambda value, hook: final.append(value))]):
            model(given, start_at_layer=start)
        return final[-1]


def answers_alone(model: Model) -> bool:
    """Whether `run_answers` may compute the last layer for some positions only.

    Not where the model takes no past, where hooks are on its last layer, as they may count positions, or where that
    layer's attention does more than to project what it is given and to rotate it.  To be asked before an editor's own
    hooks, which do not count positions, are on the model.
    """
    last = model.blocks[-1]
    return (
        takes_past(model)
        and plain(last.attn)
        and last.attn.attn_type == "global"
        and not any(hooked(module) for module in last.modules())
    )


def run_answers(
    model: Model,
    given: Float[Tensor, "row pos d_model"],
    at: Int[Tensor, "row answer"],
    lengths: Int[Tensor, " row"],
    *,
    start: int,
    alone: bool,
    past: Past | None = None,
    mask: Int[Tensor, "row past_and_pos"] | None = None,
) -> Float[Tensor, "row answer d_model"]:
    """The final residual stream at some positions near the ends of rows.

    The last layer needs the others for their keys and values only.  So the rows, which are padded on the right, are
    moved to the right until they end together; keys and values of what comes before the first position that is wanted
    in any row are computed and added to the past, and queries and the MLP are left to the rest.

    Args:
        model: any.
        given: the residual stream before layer `start`.
        at: the wanted positions, in `given`.
        lengths: of the rows, without padding, in `given`.
        start: the first layer.
        alone: what `answers_alone` says; where it is false all layers are computed for all positions.
        past: see `run_layers`.
        mask: see `run_layers`.
    """
    n_layers, n_pos, rows = model.cfg.n_layers, given.shape[1], torch.arange(len(given), device=given.device)[:, None]
    n = int((lengths[:, None] - at).max())
    if not alone or start == n_layers or n == n_pos:
        return run_layers(model, given, start=start, stop=n_layers, past=past, mask=mask)[rows, at]
    last = model.blocks[-1]
    stream = run_layers(model, given, start=start, stop=n_layers - 1, past=past, mask=mask)
    moved = lengths[:, None] + torch.arange(-n_pos, 0, device=given.device)
    stream, real = stream[rows, moved.clamp(min=0)], (moved >= 0).long()
    with one_kernel_each([last]):
        before = last.ln1(stream[:, :-n])
        _, keys, values = last.attn.calculate_qkv_matrices(before[:, :0], before, before)
    if past is not None and mask is not None:
        known = past[n_layers - 1]
        keys, values = torch.cat([known.past_keys, keys], 1), torch.cat([known.past_values, values], 1)
        real = torch.cat([mask[:, : known.past_keys.shape[1]], real], 1)
    entry = TransformerLensKeyValueCacheEntry(keys, values, frozen=True)
    final = run_layers(model, stream[:, -n:], start=n_layers - 1, stop=n_layers, past={n_layers - 1: entry}, mask=real)
    return final[rows, at - (lengths[:, None] - n)]
