"""ROME: a rank-one change of one layer's `W_out` (Meng et al. 2022a)."""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from loc_edit.editing.editor import EditJob, one_or_many
from loc_edit.editing.problems import EditRequest
from loc_edit.editing.rows import make_rows, run_prefix
from loc_edit.editing.settings import RomeSettings, ValueSettings
from loc_edit.editing.update import Edit, WeightUpdate
from loc_edit.editing.value import optimize_values
from loc_edit.keys.moments import KeyStats
from loc_edit.models.model import Model, W_out, b_out
from loc_edit.models.norms import output_norm, raw_output

Keys = Float[Tensor, "request d_mlp"]


@one_or_many
def rome(  # noqa: D417 (the decorator names `request`)
    model: Model,
    requests: list[EditRequest],
    layer: int,
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: RomeSettings | None = None,
) -> list[Edit]:
    """A rank-one edit of each request; many requests are computed together and stay independent.

    Args:
        model: any that `check_editable` takes.
        request: from `pose`; one, or several.
        layer: where `W_out` changes.
        stats: second moments of the keys at that layer.
        contexts: texts with one `{}` at their end, the bare `"{}"` first.
        settings: see `RomeSettings`.

    Returns:
        An edit whose only update has rank 1 and after which k* reads out v*; for several requests, a list of edits.

    Raises:
        BadModel, ValueError: the model or the layer cannot be edited.
        BadKeyStats: no solvable statistics for the layer.
        EditFailed: a number is not finite; names the fact.
    """
    job = EditJob("rome", model, requests, [layer], settings or RomeSettings(), contexts)
    return rank_one_edits(job, stats, lambda keys: (keys.mean(1), keys[:, 0]))


def rank_one_edits(
    job: EditJob[ValueSettings],
    stats: KeyStats,
    choose_keys: Callable[[Float[Tensor, "request context d_mlp"]], tuple[Keys, Keys]],
) -> list[Edit]:
    """A rank-one edit of each request, after which its key reads out v*.

    Args:
        job: of one layer.
        stats: second moments of the keys at that layer.
        choose_keys: the keys in every context -> the key that gives the direction, and the one that reads out v*.
    """
    (layer,) = job.layers
    keys_in_contexts, values = keys_and_values(job)
    direction_keys, keys = choose_keys(keys_in_contexts)
    directions = stats.solve(layer, direction_keys)
    W, bias = W_out(job.model, layer).float(), b_out(job.model, layer).float()
    factors = [rank_one_factors(W, bias, *vectors) for vectors in zip(keys, values, directions, strict=True)]
    return job.edits([WeightUpdate(layer, left[:, None], right[None])] for left, right in factors)


def keys_and_values(
    job: EditJob[ValueSettings],
) -> tuple[Float[Tensor, "request context d_mlp"], Float[Tensor, "request d_model"]]:
    """The keys at the subject in every context, and v*: what `W_out` is to put out there for the bare prompt."""
    (layer,) = job.layers
    key_name, value_name = f"blocks.{layer}.mlp.hook_post", f"blocks.{layer}.hook_mlp_out"
    rows = make_rows(job.model, job.requests, job.contexts, job.method)
    prefix = run_prefix(job.model, rows, layer + 1, [key_name, value_name])
    keys, start = prefix.activations[key_name][:, :-1], prefix.activations[value_name][:, 0]
    if output_norm(job.model, layer):
        start = raw_output(job.model, layer, keys[:, 0])
    return keys, start + optimize_values(job, prefix, start, last_updates_when_lowering=True)


def rank_one_factors(
    W: Float[Tensor, "d_mlp d_model"],
    bias: Float[Tensor, " d_model"],
    key: Float[Tensor, " d_mlp"],
    value: Float[Tensor, " d_model"],
    direction: Float[Tensor, " d_mlp"],
) -> tuple[Float[Tensor, " d_mlp"], Float[Tensor, " d_model"]]:
    """Factors of the rank-one change of `W` along `direction` after which `key` reads out `value`.

    Source: Meng et al. 2022a, eq. 2; the length of `direction` cancels.
    """
    right = (value - (key @ W + bias)) / (key @ direction)
    scale = direction.norm()
    return direction / scale, right * scale
