"""MEMIT: one change spread over a window of layers, for one fact or for many at once (Meng et al. 2022b)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import overload

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from loc_edit.editing.problems import EditRequest
from loc_edit.editing.rome import describe
from loc_edit.editing.rows import Prefix, make_rows, run_prefix
from loc_edit.editing.settings import MemitSettings, ValueSettings
from loc_edit.editing.update import Edit, WeightUpdate, change
from loc_edit.editing.value import optimize_values
from loc_edit.keys.moments import KeyStats
from loc_edit.models.checks import check_editable, check_layers
from loc_edit.models.identity import fingerprint
from loc_edit.models.model import Model
from loc_edit.models.passes import run_layers

Keys = Float[Tensor, "request d_mlp"]


@overload
def memit(
    model: Model,
    request: EditRequest,
    layers: Sequence[int],
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: MemitSettings | None = ...,
) -> Edit: ...
@overload
def memit(
    model: Model,
    request: Sequence[EditRequest],
    layers: Sequence[int],
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: MemitSettings | None = ...,
) -> list[Edit]: ...
def memit(
    model: Model,
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
    settings = settings or MemitSettings()

    def factor(layer: int, key: Keys) -> tuple[Keys, Float[Tensor, " request"]]:
        left = stats.solve(layer, key)
        return left, settings.moment_weight + einsum(key, left, "request d_mlp, request d_mlp -> request")

    edits = spread_edits(model, requests, sorted(layers), contexts, settings, "memit", factor)
    return edits[0] if isinstance(request, EditRequest) else edits


def spread_edits(
    model: Model,
    requests: list[EditRequest],
    layers: list[int],
    contexts: Sequence[str],
    settings: ValueSettings,
    method: str,
    factor: Callable[[int, Keys], tuple[Keys, Float[Tensor, " request"]]],
) -> list[Edit]:
    """An edit a request that brings z about layer by layer, each taking its share of what is still missing.

    Args:
        model: pre-norm.
        requests: any number.
        layers: ascending.
        contexts: the bare `"{}"` first.
        settings: of the value.
        method: seeds the noise of noised requests; recorded.
        factor: (layer, keys) -> the left factor of each request's update, and what its share is divided by.
    """
    if not requests:
        return []
    window, target = _values(model, requests, layers, contexts, settings, method)
    updates: list[list[WeightUpdate]] = []
    for i, layer in enumerate(layers):
        key, residual = window.keys_and_residual()
        left, weight = factor(layer, key)
        right = (target - residual) / (len(layers) - i) / weight[:, None]
        updates.append([WeightUpdate(layer, left[f][:, None], right[f][None]) for f in range(len(requests))])
        window.update(updates[-1])
    about = {"method": method, "settings": asdict(settings), "model": fingerprint(model), "layers": layers}
    return [Edit(mine, {**about, **describe(r)}) for mine, r in zip(zip(*updates, strict=True), requests, strict=True)]


def memit_joint(
    model: Model,
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
    window, target = _values(model, list(requests), layers, contexts, settings, "memit")
    edit = Edit(())
    for i, layer in enumerate(layers):
        key, residual = window.keys_and_residual()
        left, right = joint_factors(stats, layer, key, (target - residual) / (len(layers) - i), settings.moment_weight)
        edit = Edit((*edit.updates, WeightUpdate(layer, left, right)))
        window.update([edit.updates[-1]] * len(requests))
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


def _values(
    model: Model,
    requests: list[EditRequest],
    layers: list[int],
    contexts: Sequence[str],
    settings: ValueSettings,
    method: str,
) -> tuple["_Window", Float[Tensor, "request d_model"]]:
    """The rows at the first layer, and z: the residual stream wanted after the last layer at the subject."""
    check_editable(model)
    check_layers(model, layers)
    rows = make_rows(model, requests, contexts, method)
    below = run_prefix(model, rows, layers[0])
    name = f"blocks.{layers[-1]}.hook_resid_post"
    prefix = run_prefix(model, rows, layers[-1] + 1, [name], below)
    start = prefix.found[name][:, 0]
    delta = optimize_values(model, prefix, start, settings, method=method, last_updates_when_lowering=False)
    return _Window(model, below, layers[-1]), start + delta


class _Window:
    """The context rows on their way through the edited layers, up to the subject's last token.

    What an edit changes is added behind its layer, so that each layer is computed once for all rows, and once more
    for the bare prompts, whose residual stream after the last layer is wanted at every layer.

    Attributes:
        layer: the next layer.
        stream: the residual stream before it, under the updates of the layers below.
    """

    def __init__(self, model: Model, below: Prefix, last: int) -> None:
        each, batch = below.rows.contexts + 1, below.batch
        rows = torch.arange(len(batch), device=batch.tokens.device).view(-1, each)[:, :-1]
        self.model, self.layer, self.last, self.contexts = model, below.layer, last, each - 1
        self.at = batch.last_subject[rows.flatten()]
        self.stream = below.residual[rows.flatten(), : int(self.at.max()) + 1]
        self.keys = self.stream[:0]

    @torch.inference_mode()
    def keys_and_residual(self) -> tuple[Float[Tensor, "request d_mlp"], Float[Tensor, "request d_model"]]:
        """k_bar at the next layer, which is run, and the bare prompt's residual after the last, not yet updated."""

        def keep(value: Tensor, hook: object) -> None:
            self.keys = value

        with self.model.hooks(fwd_hooks=[(f"blocks.{self.layer}.mlp.hook_post", keep)]):
            self.stream = run_layers(self.model, self.stream, start=self.layer, stop=self.layer + 1)
        self.layer += 1
        rows = torch.arange(len(self.at), device=self.at.device)
        keys = self.keys[rows, self.at].float().unflatten(0, (-1, self.contexts))
        mean = keys[:, 0] if self.contexts == 1 else (keys[:, 0] + keys[:, 1:].mean(1)) / 2
        bare = run_layers(self.model, self.stream[:: self.contexts], start=self.layer, stop=self.last + 1)
        return mean, bare[rows[: len(bare)], self.at[:: self.contexts]].float()

    @torch.inference_mode()
    def update(self, updates: Sequence[WeightUpdate]) -> None:
        """Update the layer that was run, with one update a request."""
        changes = [
            change(keys, update)
            for keys, update in zip(self.keys.unflatten(0, (-1, self.contexts)), updates, strict=True)
        ]
        self.stream = self.stream + torch.cat(changes).to(self.stream)
