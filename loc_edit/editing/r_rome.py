"""R-ROME: ROME with one key wherever the closed form has k* (Gupta et al. 2024a, "Rebuilding ROME")."""

from collections.abc import Sequence
from typing import overload

from loc_edit.editing.problems import EditRequest
from loc_edit.editing.rome import rank_one_edits
from loc_edit.editing.settings import RRomeSettings
from loc_edit.editing.update import Edit
from loc_edit.keys.moments import KeyStats
from loc_edit.models.model import Model


@overload
def r_rome(
    model: Model,
    request: EditRequest,
    layer: int,
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: RRomeSettings | None = ...,
) -> Edit: ...
@overload
def r_rome(
    model: Model,
    request: Sequence[EditRequest],
    layer: int,
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: RRomeSettings | None = ...,
) -> list[Edit]: ...
def r_rome(
    model: Model,
    request: EditRequest | Sequence[EditRequest],
    layer: int,
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: RRomeSettings | None = None,
) -> Edit | list[Edit]:
    """One rank-one edit a request; many requests are batched and stay independent.

    ROME takes the direction of its update from the key's mean over contexts, and scales it by the bare prompt's key;
    where the two differ much the scale explodes, and the model with it.  Here one key serves both, so that the update
    is the least change, in the norm of C, after which that key reads out v*.

    Args and errors are those of `rome`.
    """
    requests = [request] if isinstance(request, EditRequest) else list(request)
    settings = settings or RRomeSettings()
    if settings.key not in ("bare", "mean"):
        raise ValueError(f"r_rome: key {settings.key!r}; 'bare' or 'mean' is wanted")
    edits = rank_one_edits(
        model,
        requests,
        layer,
        stats=stats,
        contexts=contexts,
        settings=settings,
        method="r_rome",
        keys_of=lambda keys: (keys[:, 0],) * 2 if settings.key == "bare" else (keys.mean(1),) * 2,
    )
    return edits[0] if isinstance(request, EditRequest) else edits
