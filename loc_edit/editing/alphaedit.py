"""AlphaEdit: MEMIT's update kept to the null space of what the layers know already (Fang et al. 2025)."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import overload

from einops import einsum
from transformer_lens import HookedTransformer

from loc_edit.editing.memit import keys_and_residual, wanted_streams
from loc_edit.editing.rome import describe
from loc_edit.editing.update import Edit, WeightUpdate
from loc_edit.keys import KeyStats
from loc_edit.models import fingerprint
from loc_edit.problems import EditRequest
from loc_edit.settings import AlphaEditSettings


@overload
def alphaedit(
    model: HookedTransformer,
    request: EditRequest,
    layers: Sequence[int],
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: AlphaEditSettings | None = ...,
) -> Edit: ...
@overload
def alphaedit(
    model: HookedTransformer,
    request: Sequence[EditRequest],
    layers: Sequence[int],
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: AlphaEditSettings | None = ...,
) -> list[Edit]: ...
def alphaedit(
    model: HookedTransformer,
    request: EditRequest | Sequence[EditRequest],
    layers: Sequence[int],
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: AlphaEditSettings | None = None,
) -> Edit | list[Edit]:
    """One edit of several layers a request; many requests are batched and stay independent.

    delta W = P k (1 + k^T P k)^-1 r, with P the projection on the null space of the keys' second moment: of all
    changes that leave the keys outside that space as they are, the one that minimises ||k delta - r||^2 + ||delta||^2.

    A departure from the source: an eigenvalue counts as zero below `null_space` times the mean of the diagonal of C
    (there: below 2e-2, whatever the model's scale).

    Args and errors are those of `memit`.
    """
    requests = [request] if isinstance(request, EditRequest) else list(request)
    if not requests:
        return []
    settings, layers = settings or AlphaEditSettings(), sorted(layers)
    rows, target = wanted_streams(model, requests, layers, contexts, settings, "alphaedit")
    edits = [Edit(()) for _ in requests]
    for i, layer in enumerate(layers):
        key, residual = keys_and_residual(model, rows, layer, layers[-1], edits)
        left = stats.project(layer, key, settings.null_space)
        weight = 1 + einsum(key, left, "request d_mlp, request d_mlp -> request")
        right = (target - residual) / (len(layers) - i) / weight[:, None]
        edits = [
            Edit((*edit.updates, WeightUpdate(layer, left[f][:, None], right[f][None]))) for f, edit in enumerate(edits)
        ]
    about = {"method": "alphaedit", "settings": asdict(settings), "model": fingerprint(model), "layers": list(layers)}
    finished = [Edit(e.updates, {**about, **describe(r)}) for e, r in zip(edits, requests, strict=True)]
    return finished[0] if isinstance(request, EditRequest) else finished
