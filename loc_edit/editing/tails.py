"""Rows from one position each on: what comes before stays as it is, and is computed once."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from loc_edit.models import Past, new_past, run_layers, takes_past


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
    past: Past | None = None
    mask: Int[Tensor, "row before_and_tail"] | None = None

    def add(self, delta: Float[Tensor, "row d_model"]) -> Float[Tensor, "row tail d_model"]:
        """The residual stream with `delta` added at each row's first position."""
        at = torch.arange(len(self.first), device=delta.device)
        return self.residual.index_put((at, self.first), delta.to(self.residual), accumulate=True)


@torch.no_grad()
def make_tails(
    model: HookedTransformer,
    residual: Float[Tensor, "row pos d_model"],
    layer: int,
    start: Int[Tensor, " row"],
    lengths: Int[Tensor, " row"],
) -> Tails:
    """The tails of rows from `start` on, given their residual stream before `layer`.

    The positions before `start` are run once from there, to keep their keys and values.
    """
    if not takes_past(model):
        return Tails(torch.zeros_like(start), start, residual, layer)
    n_before, n_tail = int(start.max()), int((lengths - start).max())
    whole = new_past(model, len(residual))
    if layer < model.cfg.n_layers and n_before:
        known = residual[:, :n_before]
        ones = torch.ones(known.shape[:2], dtype=torch.long, device=residual.device)
        run_layers(model, known, start=layer, stop=model.cfg.n_layers, past=whole, mask=ones)
    before = start[:, None] - n_before + torch.arange(n_before, device=residual.device)
    tail = (start[:, None] + torch.arange(n_tail, device=residual.device)).clamp(max=residual.shape[1] - 1)
    at = torch.arange(len(residual), device=residual.device)[:, None]
    kept = new_past(model, len(residual))
    for entry, full in zip(kept.entries[layer:], whole.entries[layer:], strict=True):
        entry.past_keys = full.past_keys[at, before.clamp(min=0)]
        entry.past_values = full.past_values[at, before.clamp(min=0)]
    kept.freeze()
    mask = torch.cat([before >= 0, torch.ones_like(tail, dtype=torch.bool)], dim=1).long()
    return Tails(start, torch.zeros_like(start), residual[at, tail], layer, kept, mask)


def resume_tails(
    model: HookedTransformer, tails: Tails, residual: Float[Tensor, "row tail d_model"]
) -> Float[Tensor, "row tail d_model"]:
    """The final residual stream of the tails, from `residual` in place of theirs."""
    return run_layers(model, residual, start=tails.layer, stop=model.cfg.n_layers, past=tails.past, mask=tails.mask)
