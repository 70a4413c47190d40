"""The tails of rows: each row from one position on, if the positions before never change and are computed once."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.models.adapter import lens
from loc_edit.models.model import Model
from loc_edit.models.passes import run_layers
from loc_edit.models.past import PastEntry, new_past


@dataclass(frozen=True)
class Tails:
    """Each row from one position on, and the attention keys and values of the positions before.

    The positions before stay as they are, so that only the tails are computed again.  If a model takes no keys and
    values of earlier positions, the tails are the whole rows.

    Attributes:
        start: first position of each row's tail, in the row.
        first: the position in the tail from which a row may change: 0, except in tails that are whole rows.
        residual: residual stream of the tails before `layer`, padded on the right.
        layer: the layer that runs next.
        past: keys and values of the positions before, from `layer` on, padded on the left; frozen.
        mask: 1 at real positions, of the part before and the tail together.
        key_below: the key at each row's first position in the layer below, where a norm follows its MLP.
    """

    start: Int[Tensor, " row"]
    first: Int[Tensor, " row"]
    residual: Float[Tensor, "row tail d_model"]
    layer: int
    past: list[PastEntry] | None = None
    mask: Int[Tensor, "row before_and_tail"] | None = None
    key_below: Float[Tensor, "row d_mlp"] | None = None

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

    The positions before `start` are run once from `layer` on, to keep their keys and values.

    Args:
        model: the model.
        residual: the residual stream of the rows; with `earlier`, of its tails.
        layer: the layer.
        start: first position of each row's tail, in the row.
        lengths: the rows' lengths.
        earlier: longer tails of the same rows, whose past is known from `layer` on.
    """
    if not lens.takes_past(model):
        return Tails(torch.zeros_like(start), start, residual, layer)
    n_before, n_tail = int(start.max()), int((lengths - start).max())
    origin, n_known, past = torch.zeros_like(start), 0, new_past(model)
    mask = torch.ones(residual.shape[:2], dtype=torch.long, device=residual.device)
    if earlier is not None and earlier.past is not None and earlier.mask is not None:
        origin, n_known, mask = earlier.start, earlier.mask.shape[1] - earlier.residual.shape[1], earlier.mask
        past = [PastEntry(*known.parts) for known in earlier.past]
    n_between = int((start - origin).max())
    if layer < model.cfg.n_layers and n_between:
        known_and_between = mask[:, : n_known + n_between]
        run_layers(
            model, residual[:, :n_between], start=layer, stop=model.cfg.n_layers, past=past, mask=known_and_between
        )
    rows = torch.arange(len(residual), device=residual.device)[:, None]
    before = start[:, None] - n_before + torch.arange(n_before, device=residual.device)
    columns = (before - origin[:, None] + n_known).clamp(min=0)
    past = [entry.gather(rows, columns) if number >= layer else entry for number, entry in enumerate(past)]
    tail = (start - origin)[:, None] + torch.arange(n_tail, device=residual.device)
    mask = torch.cat([before >= 0, torch.ones_like(tail, dtype=torch.bool)], dim=1).long()
    residual = residual[rows, tail.clamp(max=residual.shape[1] - 1)]
    return Tails(start, torch.zeros_like(start), residual, layer, past, mask)
