"""Attention keys and values of earlier positions, so that later positions can be computed without them."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.models.model import Model


class PastEntry:
    """One layer's keys and values of earlier positions; keys are rotated, where positions are rotary.

    Stands in for TransformerLens' own entry, which copies everything at every append.

    Args:
        keys: of the positions so far; none by default.
        values: likewise.
        room: positions that memory is reserved for at the first append.
        frozen: whether appending leaves the entry as it is.
    """

    def __init__(
        self,
        keys: Float[Tensor, "row pos kv_head d_head"] | None = None,
        values: Float[Tensor, "row pos kv_head d_head"] | None = None,
        *,
        room: int = 0,
        frozen: bool = False,
    ) -> None:
        self.room, self.frozen = room, frozen
        self.length = 0 if keys is None else keys.shape[1]
        self._kept = None if keys is None or values is None else (keys, values)

    @property
    def parts(self) -> tuple[Tensor, Tensor] | tuple[()]:
        """The keys and the values, each [row, pos, kv_head, d_head]; nothing before the first append."""
        if self._kept is None:
            return ()
        keys, values = self._kept
        return keys[:, : self.length], values[:, : self.length]

    @property
    def past_keys(self) -> Float[Tensor, "row pos kv_head d_head"]:
        """The keys, by the name under which TransformerLens' attention asks how many there are."""
        return self.parts[0] if self.parts else torch.empty(0, 0, 0, 0)

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of all positions; unless frozen, the entry then holds them.

        A frozen entry may have fewer rows: then the new rows are several states of each of its rows, state by state.
        """
        if self.frozen:
            if not self.parts:
                return keys, values
            earlier_keys, earlier_values = self.parts
            return _join(earlier_keys, keys), _join(earlier_values, values)
        old, end = self.length, self.length + keys.shape[1]
        if self._kept is None or self._kept[0].shape[1] < end:
            room = max(self.room, end)
            grown = (
                keys.new_empty(len(keys), room, *keys.shape[2:]),
                values.new_empty(len(keys), room, *values.shape[2:]),
            )
            for more, part in zip(grown, self.parts, strict=False):
                more[:, :old] = part
            self._kept = grown
        for kept, new in zip(self._kept, (keys, values), strict=True):
            kept[:, old:end] = new
        self.length = end
        return self._kept[0][:, :end], self._kept[1][:, :end]

    def select(self, rows: Int[Tensor, " some"] | slice) -> None:
        """Keep some of the rows only."""
        if self._kept is not None:
            keys, values = self._kept
            self._kept = keys[rows], values[rows]

    def gather(self, rows: Int[Tensor, "row #pos"], positions: Int[Tensor, "row pos"]) -> "PastEntry":
        """A frozen entry of some positions of some rows."""
        return PastEntry(*(part[rows, positions] for part in self.parts), frozen=True)


Past = Sequence[PastEntry] | Mapping[int, PastEntry]
"""Attention keys and values of earlier positions, with an entry for each layer."""


def new_past(model: Model, room: int = 0) -> list[PastEntry]:
    """An empty past, to which `run_layers` adds positions; memory is reserved for `room` positions at once."""
    return [PastEntry(room=room) for _ in range(model.cfg.n_layers)]


def _join(past: Tensor, new: Tensor) -> Tensor:
    units, n_past = past.shape[:2]
    if units == len(new):
        return torch.cat([past, new], 1)
    joined = new.new_empty(len(new), n_past + new.shape[1], *new.shape[2:])
    joined[:, n_past:] = new
    joined.view(-1, units, *joined.shape[1:])[:, :, :n_past] = past
    return joined
