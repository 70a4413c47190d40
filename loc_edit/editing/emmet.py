"""EMMET: many facts in one layer, each read out exactly, at the least change (Gupta et al. 2024b)."""

from collections.abc import Sequence

from loc_edit.arguments import checked
from loc_edit.editing.editor import EditJob, describe, one_or_many
from loc_edit.editing.memit import joint_factors
from loc_edit.editing.problems import EditRequest
from loc_edit.editing.rome import keys_and_values
from loc_edit.editing.settings import EmmetSettings
from loc_edit.editing.update import Edit, WeightUpdate
from loc_edit.keys.moments import KeyStats
from loc_edit.models.model import Model, W_out, b_out


@one_or_many
def emmet(
    model: Model,
    requests: list[EditRequest],
    layer: int,
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: EmmetSettings | None = None,
) -> list[Edit]:
    """An edit of each request; many requests are computed together and stay independent.

    For one fact, EMMET is R-ROME with the mean key; `emmet_joint` is what sets it apart.  The arguments and errors
    are the same as in `rome`.
    """
    job = EditJob("emmet", model, requests, [layer], settings or EmmetSettings(), contexts)
    return job.edits([update] for update in _updates(job, stats, [[i] for i in range(len(requests))]))


@checked
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

    It is MEMIT's joint edit of one layer with lambda = 0: the values are a constraint, not a wish.  The arguments and
    errors are the same as in `rome`; facts whose keys depend on each other linearly cannot all be read out exactly.
    """
    job = EditJob("emmet", model, requests, [layer], settings or EmmetSettings(), contexts)
    updates = _updates(job, stats, [list(range(len(requests)))])
    if len(requests) == 1:
        return job.edits([updates])[0]
    return Edit(tuple(updates), {**job.about, "requests": [describe(request) for request in requests]})


def _updates(job: EditJob[EmmetSettings], stats: KeyStats, groups: Sequence[list[int]]) -> list[WeightUpdate]:
    """The update of each group of requests, which reads out every value of its group."""
    (layer,) = job.layers
    keys_in_contexts, values = keys_and_values(job)
    keys = keys_in_contexts.mean(1)
    residuals = values - (keys @ W_out(job.model, layer).float() + b_out(job.model, layer).float())
    return [WeightUpdate(layer, *joint_factors(stats, layer, keys[group], residuals[group], 0.0)) for group in groups]
