"""EMMET: many facts in one layer, each read out exactly, at the least change (Gupta et al. 2024b)."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import overload

from loc_edit.editing.memit import joint_factors
from loc_edit.editing.problems import EditRequest
from loc_edit.editing.rome import describe, keys_and_value
from loc_edit.editing.settings import EmmetSettings
from loc_edit.editing.update import Edit, WeightUpdate
from loc_edit.keys.moments import KeyStats
from loc_edit.models.identity import fingerprint
from loc_edit.models.model import Model, W_out, b_out


@overload
def emmet(
    model: Model,
    request: EditRequest,
    layer: int,
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: EmmetSettings | None = ...,
) -> Edit: ...
@overload
def emmet(
    model: Model,
    request: Sequence[EditRequest],
    layer: int,
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: EmmetSettings | None = ...,
) -> list[Edit]: ...
def emmet(
    model: Model,
    request: EditRequest | Sequence[EditRequest],
    layer: int,
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: EmmetSettings | None = None,
) -> Edit | list[Edit]:
    """One edit a request; many requests are batched and stay independent.

    Of one fact it is R-ROME with the mean key.  `emmet_joint` is what it is for.  Args and errors are those of `rome`.
    """
    requests = [request] if isinstance(request, EditRequest) else list(request)
    edits = _edits(
        model, requests, layer, stats, contexts, settings or EmmetSettings(), [[i] for i in range(len(requests))]
    )
    return edits[0] if isinstance(request, EditRequest) else edits


def emmet_joint(
    model: Model,
    requests: Sequence[EditRequest],
    layer: int,
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: EmmetSettings | None = None,
) -> Edit:
    """Many facts in one edit: delta W = C^-1 K^T (K C^-1 K^T)^-1 R, after which every key reads out its value.

    It is MEMIT's joint edit of one layer with lambda = 0: the values are a constraint, not a wish.  Args and errors
    are those of `rome`; facts whose keys depend on each other linearly cannot all be read out exactly.
    """
    everyone = [list(range(len(requests)))]
    return _edits(model, list(requests), layer, stats, contexts, settings or EmmetSettings(), everyone)[0]


def _edits(
    model: Model,
    requests: list[EditRequest],
    layer: int,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: EmmetSettings,
    together: Sequence[list[int]],
) -> list[Edit]:
    """An edit for each group of requests."""
    if not requests:
        return []
    every, start, delta = keys_and_value(model, requests, layer, contexts, settings, "emmet")
    keys = every.mean(1)
    residuals = start + delta - (keys @ W_out(model, layer).float() + b_out(model, layer).float())
    about = {"method": "emmet", "settings": asdict(settings), "model": fingerprint(model), "layer": layer}
    edits = []
    for some in together:
        left, right = joint_factors(stats, layer, keys[some], residuals[some], 0.0)
        said = [describe(requests[i]) for i in some]
        edits.append(
            Edit((WeightUpdate(layer, left, right),), {**about, **(said[0] if len(said) == 1 else {"requests": said})})
        )
    return edits
