"""R-ROME: ROME with the same key everywhere in the closed form (Gupta et al. 2024a, "Rebuilding ROME")."""

from collections.abc import Sequence

from loc_edit.editing.editor import EditJob, one_or_many
from loc_edit.editing.problems import EditRequest
from loc_edit.editing.rome import rank_one_edits
from loc_edit.editing.settings import RRomeSettings
from loc_edit.editing.update import Edit
from loc_edit.keys.moments import KeyStats
from loc_edit.models.model import Model


@one_or_many
def r_rome(
    model: Model,
    requests: list[EditRequest],
    layer: int,
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: RRomeSettings | None = None,
) -> list[Edit]:
    """A rank-one edit of each request; many requests are computed together and stay independent.

    ROME takes the direction of its update from the key's mean over contexts, and scales it by the bare prompt's key;
    where the two differ much the scale explodes, and the model with it.  Here one key serves both, so that the update
    is the least change, in the norm of C, after which that key reads out v*.

    The arguments and errors are the same as in `rome`.
    """
    settings = settings or RRomeSettings()
    job = EditJob("r_rome", model, requests, [layer], settings, contexts)
    return rank_one_edits(job, stats, lambda keys: (keys[:, 0] if settings.key == "bare" else keys.mean(1),) * 2)
