"""MEMIT: one change spread over a window of layers, for one fact or for many at once (Meng et al. 2022b)."""

from collections.abc import Callable, Mapping, Sequence

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from loc_edit.arguments import checked
from loc_edit.editing.editor import EditJob, describe, one_or_many
from loc_edit.editing.problems import EditRequest
from loc_edit.editing.rows import Prefix, PromptRows, make_rows, run_prefix
from loc_edit.editing.settings import MemitSettings, ValueSettings
from loc_edit.editing.update import Edit, WeightUpdate, change
from loc_edit.editing.value import optimize_values
from loc_edit.keys.moments import KeyStats
from loc_edit.models.model import Model
from loc_edit.models.norms import added_for, output_change, output_norm, raw_output
from loc_edit.models.passes import run_layers

Keys = Float[Tensor, "request d_mlp"]
Residuals = Float[Tensor, "request d_model"]
EarlierKeys = Mapping[int, Float[Tensor, "earlier d_mlp"]]
LeftFactor = Callable[[int, Keys], Keys]


@one_or_many
def memit(  # noqa: D417 (the decorator names `request`)
    model: Model,
    requests: list[EditRequest],
    layers: Sequence[int],
    *,
    stats: KeyStats,
    contexts: Sequence[str],
    settings: MemitSettings | None = None,
    earlier: EarlierKeys | None = None,
) -> list[Edit]:
    """An edit of several layers for each request; many requests are computed together and stay independent.

    Args:
        model: any that `check_editable` takes.
        request: from `pose`; one, or several.
        layers: the window, as `window_layers` gives it.
        stats: second moments of the keys at those layers.
        contexts: texts with one `{}` at their end, the bare `"{}"` first; it weighs one half in the keys.
        settings: see `MemitSettings`.
        earlier: by layer, the keys of edits that the model has already (`edit_keys`), in any number.  What they read
            out counts as much as the new value does: K_p^T K_p joins lambda C.  Without them, later edits overwrite it.

    Returns:
        An edit; for several requests, a list of edits.

    Raises:
        BadModel, ValueError: the model or a layer cannot be edited.
        BadKeyStats: no solvable statistics for a layer.
        EditFailed: a number is not finite; names the fact.
    """
    settings = settings or MemitSettings()
    job = EditJob("memit", model, requests, sorted(layers), settings, contexts)
    return independent_edits(job, stats.solve, settings.moment_weight, earlier or {})


@checked
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

    The arguments and errors are the same as in `memit`.  The residual is spread over the layers with the keys of all
    requests read from the same, partly edited model.
    """
    settings = settings or MemitSettings()
    job = EditJob("memit", model, requests, sorted(layers), settings, contexts)

    def make_updates(layer: int, keys: Keys, residuals: Residuals) -> list[WeightUpdate]:
        factors = joint_factors(stats, layer, keys, residuals, settings.moment_weight)
        return [WeightUpdate(layer, *factors)] * len(requests)

    updates = tuple(of_layer[0] for of_layer in _spread(job, make_updates))
    record = {**job.about, "method": "memit_joint", "requests": [describe(request) for request in requests]}
    return Edit(updates, record)


def edit_keys(
    model: Model,
    request: EditRequest | Sequence[EditRequest],
    layers: Sequence[int],
    *,
    contexts: Sequence[str],
    method: str = "memit",
) -> dict[int, Float[Tensor, "request d_mlp"]]:
    """The keys of requests at each layer, as MEMIT and AlphaEdit read them: what a later edit takes as `earlier`.

    Args:
        model: with the edits of these requests written into it.
        request: one, or several.
        layers: the window of the edits.
        contexts: the texts that the edits were made with.
        method: the method of the edits; it seeds the noise of noised requests.
    """
    requests, layers = [request] if isinstance(request, EditRequest) else list(request), sorted(layers)
    rows = make_rows(model, requests, contexts, method)
    window = _Window(model, run_prefix(model, rows, layers[0]), layers[-1])
    return {layer: window.keys_and_residual()[0] for layer in layers}


def independent_edits(
    job: EditJob[ValueSettings], left_factor: LeftFactor, constant: float, earlier: EarlierKeys
) -> list[Edit]:
    """An edit of each request, whose update at a layer is outer(left, r) / (constant + k left).

    Args:
        job: of any number of layers.
        left_factor: (layer, keys) -> the left factor of each request's update.
        constant: what the keys that the layer knew already weigh against the new key.
        earlier: by layer, the keys of earlier edits.
    """

    def make_updates(layer: int, keys: Keys, residuals: Residuals) -> list[WeightUpdate]:
        left = held_left_factor(left_factor, constant, layer, keys, earlier.get(layer))
        right = residuals / (constant + einsum(keys, left, "request d_mlp, request d_mlp -> request"))[:, None]
        return [WeightUpdate(layer, *factors) for factors in zip(left[:, :, None], right[:, None], strict=True)]

    return job.edits(zip(*_spread(job, make_updates), strict=True))


def held_left_factor(
    left_factor: LeftFactor, constant: float, layer: int, keys: Keys, earlier: Float[Tensor, "earlier d_mlp"] | None
) -> Keys:
    """The left factors of updates that also hold what earlier keys read out: M k becomes (M^-1 + K_p^T K_p / c)^-1 k.

    M is C^-1 in MEMIT and the projection P in AlphaEdit (whose inverse is taken in the null space), c the constant.
    Updates made one after another with all earlier keys held add up to the joint update of all of them.
    Source: Fang et al. 2025 (arXiv 2410.02355, section 3), solved as a system of one row per earlier key, in float64.
    """
    left = left_factor(layer, keys)
    if earlier is None or not len(earlier):
        return left
    held = earlier.double()
    solved = left_factor(layer, held)
    gram = held @ solved.T
    gram.diagonal().add_(constant)
    return (left.double() - torch.linalg.solve(gram, held @ left.double().T).T @ solved).to(left)


def joint_factors(
    stats: KeyStats, layer: int, keys: Keys, residuals: Residuals, moment_weight: float
) -> tuple[Float[Tensor, "d_mlp request"], Residuals]:
    """Factors of (lambda C + K^T K)^-1 K^T R, as C^-1 K^T and (lambda I + K C^-1 K^T)^-1 R.

    The second form solves a system of one row per request (Woodbury), in float64.
    """
    solved = stats.solve(layer, keys.double())
    gram = keys.double() @ solved.T
    gram.diagonal().add_(moment_weight)
    right = torch.linalg.solve(gram, residuals.double())
    return solved.T.to(keys), right.to(keys)


def _spread(
    job: EditJob[ValueSettings], make_updates: Callable[[int, Keys, Residuals], list[WeightUpdate]]
) -> list[list[WeightUpdate]]:
    """Bring z about layer by layer, each layer taking its share of the residual that is still missing.

    Where a norm follows the MLP, a layer may not be able to take its whole share; it takes as much as it can.

    Args:
        job: its layers, ascending.
        make_updates: (layer, keys, the layer's share of the residuals) -> the update of each request.

    Returns:
        By layer, the update of each request.
    """
    model, layers = job.model, job.layers
    rows = make_rows(model, job.requests, job.contexts, job.method)
    below = run_prefix(model, rows, layers[0])
    z, window, updates = _goals(job, rows, below), _Window(model, below, layers[-1]), []
    for i, layer in enumerate(layers):
        keys, bare_keys, residual = window.keys_and_residual()
        share = (z - residual) / (len(layers) - i)
        updates.append(make_updates(layer, keys, added_for(model, layer, bare_keys, share)))
        window.update(updates[-1])
    return updates


def _goals(job: EditJob[ValueSettings], rows: PromptRows, below: Prefix) -> Float[Tensor, "request d_model"]:
    """z: the residual stream that the bare prompt is to have after the last layer, at the subject's last token."""
    last = job.layers[-1]
    stream, key = f"blocks.{last}.hook_resid_post", f"blocks.{last}.mlp.hook_post"
    if output_norm(job.model, last) is None:  # no hook on the key, which would keep GELU from its fast kernel
        prefix = run_prefix(job.model, rows, last + 1, [stream], below)
        start = prefix.activations[stream][:, 0]
        return start + optimize_values(job, prefix, start, last_updates_when_lowering=False)
    prefix = run_prefix(job.model, rows, last + 1, [stream, key], below)
    start, keys = (prefix.activations[name][:, 0] for name in (stream, key))
    reference = raw_output(job.model, last, keys)
    delta = optimize_values(job, prefix, reference, last_updates_when_lowering=False)
    return start + output_change(job.model, last, keys, delta)


class _Window:
    """The context rows on their way through the edited layers, up to the subject's last token.

    What an edit changes is added behind its layer.  So each layer is computed once for all rows, and once more for
    the bare prompts, whose residual stream after the last layer is needed at every layer.

    Attributes:
        layer: the next layer.
        stream: the residual stream before it, under the updates of the layers below.
    """

    def __init__(self, model: Model, below: Prefix, last: int) -> None:
        rows_per_request, batch = below.rows.contexts + 1, below.batch
        context_rows = torch.arange(len(batch), device=batch.tokens.device).view(-1, rows_per_request)[:, :-1].flatten()
        self.model, self.layer, self.last, self.contexts = model, below.layer, last, below.rows.contexts
        self.at = batch.last_subject[context_rows]
        self.stream = below.residual[context_rows, : int(self.at.max()) + 1]
        self.keys = self.stream[:0]

    @torch.inference_mode()
    def keys_and_residual(self) -> tuple[Keys, Keys, Residuals]:
        """k_bar and the bare prompt's key at the next layer, which is run, and its residual stream after the last."""

        def keep(value: Tensor, hook: object) -> None:
            self.keys = value

        with self.model.hooks(fwd_hooks=[(f"blocks.{self.layer}.mlp.hook_post", keep)]):
            self.stream = run_layers(self.model, self.stream, start=self.layer, stop=self.layer + 1)
        self.layer += 1
        rows = torch.arange(len(self.at), device=self.at.device)
        keys = self.keys[rows, self.at].float().unflatten(0, (-1, self.contexts))
        mean = keys[:, 0] if self.contexts == 1 else (keys[:, 0] + keys[:, 1:].mean(1)) / 2
        bare = run_layers(self.model, self.stream[:: self.contexts], start=self.layer, stop=self.last + 1)
        return mean, keys[:, 0], bare[rows[: len(bare)], self.at[:: self.contexts]].float()

    @torch.inference_mode()
    def update(self, updates: Sequence[WeightUpdate]) -> None:
        """Update the layer that was run, with one update for each request."""
        pairs = zip(self.keys.unflatten(0, (-1, self.contexts)), updates, strict=True)
        added = torch.cat([change(keys, update) for keys, update in pairs])
        self.stream = self.stream + output_change(self.model, self.layer - 1, self.keys, added).to(self.stream)
