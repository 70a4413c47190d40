"""Rows from one position each on: what comes before stays as it is, and is computed once."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

from loc_edit.models.model import Model
from loc_edit.models.passes import new_past, run_answers, run_layers, takes_past


@dataclass(frozen=True)
class Tails:
    """Rows from one position each on, and the attention keys and values of what comes before.

    For when what comes before stays as it is: only the tails are computed again.  Where a model takes no keys and
    values of earlier positions, the tails are the whole rows.

    Attributes:
        start: first position of each row's tail, in the row.
        first: the position in the tail from which on a row may change: 0, but for tails that are whole rows.
        residual: residual stream of the tails before `layer`, padded on the right.
        layer: where the tails go on.
        past: keys and values of the positions before, from `layer` on, padded on the left; frozen.
        mask: 1 where a position, of the part before and the tail together, is a real one.
    """

    start: Int[Tensor, " row"]
    first: Int[Tensor, " row"]
    residual: Float[Tensor, "row tail d_model"]
    layer: int
    past: TransformerLensKeyValueCache | None = None
    mask: Int[Tensor, "row before_and_tail"] | None = None

    def add(self, delta: Float[Tensor, "row d_model"]) -> Float[Tensor, "row tail d_model"]:
        """The residual stream with `delta` added at each row's first position."""
        at = torch.arange(len(self.first), device=delta.device)
        return self.residual.index_put((at, self.first), delta.to(self.residual), accumulate=True)


@torch.no_grad()
def make_tails(
    model: Model,
    residual: Float[Tensor, "row pos d_model"],
    layer: int,
    start: Int[Tensor, " row"],
    lengths: Int[Tensor, " row"],
    earlier: Tails | None = None,
) -> Tails:
    """The tails of rows from `start` on, given their residual stream before `layer`.

    The positions before `start` are run once from there, to keep their keys and values.

    Args:
        model: the model.
        residual: the rows; with `earlier`, from its tails' first positions on.
        layer: the layer.
        start: first position of each row's tail, in the row.
        lengths: of the rows.
        earlier: longer tails of the same rows: what comes before them is known from `layer` on.
    """
    if not takes_past(model):
        return Tails(torch.zeros_like(start), start, residual, layer)
    n_before, n_tail = int(start.max()), int((lengths - start).max())
    origin, n_known, past = torch.zeros_like(start), 0, new_past(model, len(residual))
    if earlier is not None and earlier.past is not None and earlier.mask is not None:
        origin, n_known = earlier.start, earlier.mask.shape[1] - earlier.residual.shape[1]
        for entry, known in zip(past.entries, earlier.past.entries, strict=True):
            entry.past_keys, entry.past_values = known.past_keys, known.past_values
    between = residual[:, : int((start - origin).max())]
    if layer < model.cfg.n_layers and between.shape[1]:
        mask = torch.ones(len(residual), n_known + between.shape[1], dtype=torch.long, device=residual.device)
        if n_known and earlier is not None and earlier.mask is not None:
            mask = earlier.mask[:, : mask.shape[1]]
        run_layers(model, between, start=layer, stop=model.cfg.n_layers, past=past, mask=mask)
    at = torch.arange(len(residual), device=residual.device)[:, None]
    before = start[:, None] - n_before + torch.arange(n_before, device=residual.device)
    columns = (before - origin[:, None] + n_known).clamp(min=0)
    for entry in past.entries[layer:]:
        entry.past_keys, entry.past_values = entry.past_keys[at, columns], entry.past_values[at, columns]
    past.freeze()
    tail = (start - origin)[:, None] + torch.arange(n_tail, device=residual.device)
    mask = torch.cat([before >= 0, torch.ones_like(tail, dtype=torch.bool)], dim=1).long()
    some = residual[at, tail.clamp(max=residual.shape[1] - 1)]
    return Tails(start, torch.zeros_like(start), some, layer, past, mask)


def resume_tails(
    model: Model,
    tails: Tails,
    residual: Float[Tensor, "row tail d_model"],
    at: Int[Tensor, "row answer"],
    lengths: Int[Tensor, " row"],
    *,
    alone: bool,
) -> Float[Tensor, "row answer d_model"]:
    """The final residual stream at some positions of the rows, from `residual` in place of the tails' own.

    Args:
        model: the model.
        tails: the rows from one position each on.
        residual: see `Tails.add`.
        at: the positions, in the row.
        lengths: of the rows.
        alone: see `run_answers`.
    """
    return run_answers(
        model,
        residual,
        at - tails.start[:, None],
        lengths - tails.start,
        start=tails.layer,
        alone=alone,
        past=tails.past,
        mask=tails.mask,
    )
