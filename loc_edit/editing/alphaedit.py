"""AlphaEdit: MEMIT's update kept to the null space of what the layers know already (Fang et al. 2025)."""

from collections.abc import Sequence

from loc_edit.editing.editor import EditJob, one_or_many
from loc_edit.editing.memit import EarlierKeys, Keys, independent_edits
from loc_edit.editing.problems import EditRequest
from loc_edit.editing.settings import AlphaEditSettings
from loc_edit.editing.update import Edit
from loc_edit.keys.moments import KeyStats
from loc_edit.models.model import Model


@one_or_many
def alphaedit(
    model: Model,
    requests: list[EditRequest],
    layers: Sequence[int],
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: AlphaEditSettings | None = None,
    earlier: EarlierKeys | None = None,
) -> list[Edit]:
    """An edit of several layers for each request; many requests are computed together and stay independent.

    delta W = P k (1 + k^T P k)^-1 r, with P the projection on the null space of the keys' second moment: of all
    changes that leave the keys outside that space as they are, the one that minimizes ||k delta - r||^2 + ||delta||^2.

    With `earlier`, the keys K_p of edits that the model has already, ||K_p delta||^2 joins this sum: so the method is
    meant to be used for edits in sequence.  P stays as it was at the start, as it depends on `stats` only.

    A departure from the source: an eigenvalue counts as zero below `null_space` times the mean of the diagonal of C
    (there: below 2e-2, whatever the model's scale).

    The arguments and errors are the same as in `memit`.
    """
    settings = settings or AlphaEditSettings()
    job = EditJob("alphaedit", model, requests, sorted(layers), settings, contexts)

    def project(layer: int, keys: Keys) -> Keys:
        return stats.project(layer, keys, settings.null_space)

    return independent_edits(job, project, 1.0, earlier or {})
