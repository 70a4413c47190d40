"""AlphaEdit: MEMIT's update kept to the null space of what the layers know already (Fang et al. 2025)."""

from collections.abc import Sequence
from typing import overload

from einops import einsum
from jaxtyping import Float
from torch import Tensor

from loc_edit.editing.memit import Keys, spread_edits
from loc_edit.editing.problems import EditRequest
from loc_edit.editing.settings import AlphaEditSettings
from loc_edit.editing.update import Edit
from loc_edit.keys.moments import KeyStats
from loc_edit.models.model import Model


@overload
def alphaedit(
    model: Model,
    request: EditRequest,
    layers: Sequence[int],
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: AlphaEditSettings | None = ...,
) -> Edit: ...
@overload
def alphaedit(
    model: Model,
    request: Sequence[EditRequest],
    layers: Sequence[int],
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: AlphaEditSettings | None = ...,
) -> list[Edit]: ...
def alphaedit(
    model: Model,
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
    settings = settings or AlphaEditSettings()

    def factor(layer: int, key: Keys) -> tuple[Keys, Float[Tensor, " request"]]:
        left = stats.project(layer, key, settings.null_space)
        return left, 1 + einsum(key, left, "request d_mlp, request d_mlp -> request")

    edits = spread_edits(model, requests, sorted(layers), contexts, settings, "alphaedit", factor)
    return edits[0] if isinstance(request, EditRequest) else edits
