"""ROME: a rank-one change of one layer's `W_out` (Meng et al. 2022a)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import overload

from jaxtyping import Float
from torch import Tensor

from loc_edit.editing.problems import EditRequest
from loc_edit.editing.rows import make_rows, run_prefix
from loc_edit.editing.settings import RomeSettings
from loc_edit.editing.update import Edit, WeightUpdate
from loc_edit.editing.value import optimize_values
from loc_edit.keys.moments import KeyStats
from loc_edit.models.checks import check_editable, check_layers
from loc_edit.models.identity import fingerprint
from loc_edit.models.model import Model, W_out, b_out


@overload
def rome(
    model: Model,
    request: EditRequest,
    layer: int,
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: RomeSettings | None = ...,
) -> Edit: ...
@overload
def rome(
    model: Model,
    request: Sequence[EditRequest],
    layer: int,
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: RomeSettings | None = ...,
) -> list[Edit]: ...
def rome(
    model: Model,
    request: EditRequest | Sequence[EditRequest],
    layer: int,
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: RomeSettings | None = None,
) -> Edit | list[Edit]:
    """One rank-one edit a request; many requests are batched and stay independent.

    Args:
        model: pre-norm.
        request: from `pose`; or several.
        layer: where `W_out` changes.
        stats: second moments of the keys at that layer.
        contexts: texts with one `{}` at their end, the bare `"{}"` first.
        settings: see `RomeSettings`.

    Returns:
        An edit whose one update has rank 1 and after which k* reads out v*.

    Raises:
        BadModel, ValueError: the model or the layer cannot be edited.
        BadKeyStats: no solvable statistics for the layer.
        EditFailed: a number is not finite; names the fact.
    """
    requests = [request] if isinstance(request, EditRequest) else list(request)
    edits = rank_one_edits(
        model,
        requests,
        layer,
        stats=stats,
        contexts=contexts,
        settings=settings or RomeSettings(),
        method="rome",
        keys_of=lambda keys: (keys.mean(1), keys[:, 0]),
    )
    return edits[0] if isinstance(request, EditRequest) else edits


Keys = Float[Tensor, "request d_mlp"]


def rank_one_edits(
    model: Model,
    requests: Sequence[EditRequest],
    layer: int,
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: RomeSettings,
    method: str,
    keys_of: Callable[[Float[Tensor, "request context d_mlp"]], tuple[Keys, Keys]],
) -> list[Edit]:
    """A rank-one edit a request, after which its key reads out v*.

    Args:
        model: pre-norm.
        requests: any number.
        layer: where `W_out` changes.
        stats: second moments of the keys at that layer.
        contexts: texts with one `{}` at their end, the bare `"{}"` first.
        settings: of the value.
        method: seeds the noise of noised requests; recorded.
        keys_of: the keys in every context -> the key that gives the direction, and the one that reads out v*.
    """
    if not requests:
        return []
    keys, start, delta = keys_and_value(model, requests, layer, contexts, settings, method)
    direction_key, key = keys_of(keys)
    direction = stats.solve(layer, direction_key)
    about = {"method": method, "settings": asdict(settings), "model": fingerprint(model)}
    edits = []
    for i, one in enumerate(requests):
        left, right = rank_one_factors(
            W_out(model, layer).float(), b_out(model, layer).float(), key[i], start[i] + delta[i], direction[i]
        )
        update = WeightUpdate(layer, left[:, None], right[None])
        edits.append(Edit((update,), {**about, **describe(one), "layer": layer}))
    return edits


def keys_and_value(
    model: Model,
    requests: Sequence[EditRequest],
    layer: int,
    contexts: Sequence[str],
    settings: RomeSettings,
    method: str,
) -> tuple[Float[Tensor, "request context d_mlp"], Float[Tensor, "request d_model"], Float[Tensor, "request d_model"]]:
    """The keys at the subject in every context, the bare prompt's MLP output there, and what v* adds to it."""
    check_editable(model)
    check_layers(model, [layer])
    rows = make_rows(model, requests, contexts, method)
    key_name, value_name = f"blocks.{layer}.mlp.hook_post", f"blocks.{layer}.hook_mlp_out"
    prefix = run_prefix(model, rows, layer + 1, [key_name, value_name])
    start = prefix.found[value_name][:, 0]
    delta = optimize_values(model, prefix, start, settings, method=method, last_updates_when_lowering=True)
    return prefix.found[key_name], start, delta


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


def describe(request: EditRequest) -> dict[str, object]:
    """The request in plain values, to be kept with the edit."""
    return {
        "fact_id": request.fact_id,
        "prompt": request.prompt.text,
        "subject": request.prompt.subject_text,
        "target": request.target,
        "objective": request.objective,
        "noise_scale": request.noise_scale,
        "seed": request.seed,
    }
