"""MEMIT: one change spread over a window of layers, for one fact or for many at once (Meng et al. 2022b)."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import overload

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from loc_edit.editing.rome import describe
from loc_edit.editing.update import Edit, WeightUpdate, edit_hooks
from loc_edit.editing.value import Rows, context_activations, make_rows, optimize_values
from loc_edit.keys import KeyStats
from loc_edit.models import check_editable, check_layers, fingerprint
from loc_edit.problems import EditRequest
from loc_edit.settings import MemitSettings, ValueSettings


@overload
def memit(
    model: HookedTransformer,
    request: EditRequest,
    layers: Sequence[int],
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: MemitSettings | None = ...,
) -> Edit: ...
@overload
def memit(
    model: HookedTransformer,
    request: Sequence[EditRequest],
    layers: Sequence[int],
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: MemitSettings | None = ...,
) -> list[Edit]: ...
def memit(
    model: HookedTransformer,
    request: EditRequest | Sequence[EditRequest],
    layers: Sequence[int],
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: MemitSettings | None = None,
) -> Edit | list[Edit]:
    """One edit of several layers a request; many requests are batched and stay independent.

    Args:
        model: pre-norm.
        request: from `pose`; or several.
        layers: the window, as `window_layers` gives it.
        stats: second moments of the keys at those layers.
        contexts: texts with one `{}` at their end, the bare `"{}"` first; it weighs one half in the keys.
        settings: see `MemitSettings`.

    Raises:
        BadModel, ValueError: the model or a layer cannot be edited.
        BadKeyStats: no solvable statistics for a layer.
        EditFailed: a number is not finite; names the fact.
    """
    requests = [request] if isinstance(request, EditRequest) else list(request)
    if not requests:
        return []
    settings, layers = settings or MemitSettings(), sorted(layers)
    rows, target = wanted_streams(model, requests, layers, contexts, settings, "memit")
    edits = [Edit(()) for _ in requests]
    for i, layer in enumerate(layers):
        key, residual = keys_and_residual(model, rows, layer, layers[-1], edits)
        left = stats.solve(layer, key)
        weight = settings.moment_weight + einsum(key, left, "request d_mlp, request d_mlp -> request")
        right = (target - residual) / (len(layers) - i) / weight[:, None]
        edits = [
            Edit((*edit.updates, WeightUpdate(layer, left[f][:, None], right[f][None]))) for f, edit in enumerate(edits)
        ]
    about = {
        "method": "memit",
        "settings": asdict(settings),
        "model": fingerprint(model),
        "layers": list(layers),
    }
    finished = [Edit(e.updates, {**about, **describe(r)}) for e, r in zip(edits, requests, strict=True)]
    return finished[0] if isinstance(request, EditRequest) else finished


def memit_joint(
    model: HookedTransformer,
    requests: Sequence[EditRequest],
    layers: Sequence[int],
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: MemitSettings | None = None,
) -> Edit:
    """Many facts in one edit: delta W = (lambda C + K^T K)^-1 K^T R (Meng et al. 2022b, eq. 14).

    Arguments and errors are those of `memit`.  The residual is spread over the layers with the keys of all
    requests read from the same, partly edited model.
    """
    settings, layers = settings or MemitSettings(), sorted(layers)
    rows, target = wanted_streams(model, list(requests), layers, contexts, settings, "memit")
    edit = Edit(())
    for i, layer in enumerate(layers):
        key, residual = keys_and_residual(model, rows, layer, layers[-1], [edit] * len(requests))
        left, right = joint_factors(stats, layer, key, (target - residual) / (len(layers) - i), settings.moment_weight)
        edit = Edit((*edit.updates, WeightUpdate(layer, left, right)))
    about = {"method": "memit_joint", "settings": asdict(settings), "model": fingerprint(model)}
    return Edit(edit.updates, {**about, "layers": list(layers), "requests": [describe(r) for r in requests]})


def joint_factors(
    stats: KeyStats,
    layer: int,
    keys: Float[Tensor, "request d_mlp"],
    residuals: Float[Tensor, "request d_model"],
    moment_weight: float,
) -> tuple[Float[Tensor, "d_mlp request"], Float[Tensor, "request d_model"]]:
    """Factors of (lambda C + K^T K)^-1 K^T R, as C^-1 K^T and (lambda I + K C^-1 K^T)^-1 R.

    The second form solves a system of one row per request (Woodbury), in float64.
    """
    solved = stats.solve(layer, keys.double())
    gram = keys.double() @ solved.T
    gram.diagonal().add_(moment_weight)
    right = torch.linalg.solve(gram, residuals.double())
    return solved.T.to(keys), right.to(keys)


def wanted_streams(
    model: HookedTransformer,
    requests: list[EditRequest],
    layers: list[int],
    contexts: Sequence[str],
    settings: ValueSettings,
    method: str,
) -> tuple[Rows, Float[Tensor, "request d_model"]]:
    """The rows, and z: the residual stream wanted after the last layer at the subject."""
    check_editable(model)
    check_layers(model, layers)
    rows = make_rows(model, requests, contexts, method)
    name = f"blocks.{layers[-1]}.hook_resid_post"
    start = context_activations(model, rows, [name], layers[-1])[name][:, 0]
    delta = optimize_values(model, rows, layers[-1], start, settings, method=method, last_updates_when_lowering=False)
    return rows, start + delta


def keys_and_residual(
    model: HookedTransformer, rows: Rows, layer: int, last: int, edits: Sequence[Edit]
) -> tuple[Float[Tensor, "request d_mlp"], Float[Tensor, "request d_model"]]:
    """k_bar at `layer` and the bare prompt's residual after `last`, on the partly edited model."""
    key_name, residual_name = f"blocks.{layer}.mlp.hook_post", f"blocks.{last}.hook_resid_post"
    found = context_activations(model, rows, [key_name, residual_name], last, lambda owner: edit_hooks(edits, owner))
    keys = found[key_name]
    mean = keys[:, 0] if rows.contexts == 1 else (keys[:, 0] + keys[:, 1:].mean(1)) / 2
    return mean, found[residual_name][:, 0]
