"""The fast path of Causal Tracing: all restored runs of many facts in one sweep over the layers.

A restored run differs from the corrupted one only above its window's first layer and from the restored position
on.  What is left of it is computed once, and many runs in one batch:

1. **Base** (`run_base`): the clean and the corrupted rows of some facts in one batch.  Kept are the clean output of
   the site, and before every layer the corrupted residual stream and, in it, the attention's keys and values.
2. **Positions**: a *unit* is one corrupted row (fact and noise sample) and one position that is restored.  Of it only
   the *tail*, that position and what follows, is computed; the positions before enter through the kept keys and
   values.  Units with tails of equal length share a batch; where they begin at different positions, the shorter
   past is padded on the left and masked.
3. **Layers** (`plan`): the runs of a unit are told apart by the first and the last restored layer.  All enter at
   their first layer, from the corrupted residual, and those with the same first layer are one state as long as all
   of them restore: a run leaves it after its last restored layer.  So several windows share their runs, windows
   clipped at an edge are computed once, and each block is called once with all states of all units of a batch.
4. **Entering** (`enter`): where the site's output reaches no other position within its layer (`LOCAL`), a run's first
   layer changes the restored position alone; it is computed for that position, all units of all tails in one call.
5. **Patches** are hooks at the site's hook point, which overwrite the unit's position in the states that restore.
6. Only the positions that predict the target are unembedded (`Scorer`).

A user's own hooks fire in every call.  They may count positions or rows; so while there are any, facts go one by
one and every tail is the whole row.  Tails are whole rows as well where the model takes no keys and values of earlier
positions (`takes_past`).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.localization.hooks import site_name
from loc_edit.models.model import Hook, Model
from loc_edit.models.passes import run_layers
from loc_edit.prompts.batches import Batch, run

Layers = tuple[int, int]
"""The first and the last restored layer of a run."""

LOCAL = ("mlp_out", "attn_out", "resid_post", "mlp.hook_pre", "mlp.hook_post", "attn.hook_z")
"""Sites at which a patch reaches no other position before the next layer."""


@dataclass(frozen=True)
class Step:
    """What one layer does to the states of a sweep.

    Attributes:
        layer: the layer; the number of layers stands for what follows the last.
        source: for each state before the layer, the state after the layer below that it goes on from; one past the
            last of these stands for a run that enters.
        n_restored: the first so many states are restored in this layer.
    """

    layer: int
    source: tuple[int, ...]
    n_restored: int


def plan(runs: Collection[Layers], n_layers: int, *, entered: bool) -> list[Step]:
    """The steps of a sweep after which the states are `runs`, in their order.

    Args:
        runs: the runs, no two alike.
        n_layers: the model's layers.
        entered: whether runs enter above their first layer, which `enter` has computed; else below it.
    """
    last = {first: max(end for start, end in runs if start == first) for first, _ in runs}
    previous: list[tuple[int, int | None]] = []  # (first, last) of a run that is free; None: it restores
    steps = []
    for layer in range(n_layers + 1):
        restoring = [(first, None) for first in last if first + entered <= layer <= last[first]]
        states = [*restoring, *((first, end) for first, end in runs if end < layer)]
        came = [(first, None) if end == layer - 1 else (first, end) for first, end in states]
        source = [previous.index(old) if old in previous else len(previous) for old in came]
        steps.append(Step(layer, tuple(source), len(restoring)))
        previous = states
    return steps


@dataclass(frozen=True)
class Base:
    """The corrupted rows of some facts before every layer, and the site's clean output in it.

    Attributes:
        fact: which fact a row is about.
        residual: by layer, the residual stream before it; after the last layer too.
        keys: by layer, the attention's keys, as its cache takes them; none where tails are whole rows.
        values: by layer, its values; likewise.
        clean: by layer, the site's clean output, one row a fact.
        clean_final: the residual stream of the clean rows after the last layer.
    """

    fact: Int[Tensor, " row"]
    residual: list[Float[Tensor, "row pos d_model"]]
    keys: list[Float[Tensor, "row pos kv_head d_head"]]
    values: list[Float[Tensor, "row pos kv_head d_head"]]
    clean: list[Float[Tensor, "fact pos ..."]]
    clean_final: Float[Tensor, "fact pos d_model"]


class _Past:
    """Stands in for TransformerLens's cache entry of one layer: gives the past of each unit to all its states.

    The entry's own `append` would need a copy of the past for every state first.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.past_keys, self.past_values = keys, values

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return self._join(self.past_keys, keys), self._join(self.past_values, values)

    @staticmethod
    def _join(past: Tensor, new: Tensor) -> Tensor:
        units, n_past = past.shape[:2]
        joined = new.new_empty(len(new), n_past + new.shape[1], *new.shape[2:])
        joined[:, n_past:] = new
        joined.view(-1, units, *joined.shape[1:])[:, :, :n_past] = past
        return joined


class _Record(_Past):
    """No past; keeps the keys and values that come."""

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.keys, self.values = keys, values
        return keys, values


def run_base(model: Model, batch: Batch, fact: Int[Tensor, " row"], site: str, *, whole: bool) -> Base:
    """The base of a batch that holds one clean row a fact, and then the corrupted rows of facts `fact`.

    Args:
        model: the model.
        batch: the rows.
        fact: which fact each corrupted row is about.
        site: the hook point that is restored.
        whole: whether tails are whole rows, so that no keys and values are kept.

    Raises:
        ValueError: the site does not fire, or its activations do not have the batch and the position in front.
    """
    n_clean, n_layers = len(batch) - len(fact), model.cfg.n_layers
    clean: dict[int, Tensor] = {}

    def keep(value: Tensor, hook: Any, layer: int) -> Tensor:
        clean[layer] = value[:n_clean].clone()
        return value

    stream = run(model, batch, stop_at_layer=0)
    wanted = stream.shape[:2]
    residual, entries = [stream[n_clean:]], [_Record(stream[:, :0, None], stream[:, :0, None]) for _ in range(n_layers)]
    for layer in range(n_layers):
        with model.hooks(fwd_hooks=[(site_name(site, layer), partial(keep, layer=layer))]):
            stream = _block(model, stream, layer, None if whole else entries[layer])
        residual.append(stream[n_clean:])
        if layer not in clean:
            raise ValueError(
                f"site {site!r}: hook point {site_name(site, layer)} does not fire in this model's configuration"
            )
        if clean[layer].shape[:2] != (n_clean, wanted[1]):
            raise ValueError(
                f"site {site!r}: activations of shape [batch, pos, ...] are wanted, got {list(clean[layer].shape)}"
            )
    return Base(
        fact,
        residual,
        [] if whole else [entry.keys[n_clean:] for entry in entries],
        [] if whole else [entry.values[n_clean:] for entry in entries],
        [clean[layer] for layer in range(n_layers)],
        stream[:n_clean],
    )


@dataclass(frozen=True)
class Units:
    """Corrupted rows with a position each that is restored, and tails of one length.

    Attributes:
        row: row of the base.
        pos: the restored position, in the row.
        start: first position of the tail.
        tail: length of the tails; they end where their rows end.
    """

    row: Int[Tensor, " unit"]
    pos: Int[Tensor, " unit"]
    start: Int[Tensor, " unit"]
    tail: int

    def __len__(self) -> int:
        return len(self.row)

    def some(self, which: Int[Tensor, " some"], tail: int) -> "Units":
        """Some of them, whose tails have this length."""
        return Units(self.row[which], self.pos[which], self.start[which], tail)


class _Tails:
    """The units' tails in their rows, and what comes before them."""

    def __init__(self, base: Base, units: Units) -> None:
        device, n_past = units.row.device, int(units.start.max())
        before = units.start[:, None] - n_past + torch.arange(n_past, device=device)
        self.base, self.row = base, units.row[:, None]
        self.at = units.start[:, None] + torch.arange(units.tail, device=device)
        self.before = before.clamp(min=0)
        self.padded = bool((before < 0).any())
        self.real = torch.cat([before >= 0, torch.ones_like(self.at, dtype=torch.bool)], dim=1).long()

    def corrupted(self, layer: int) -> Float[Tensor, "unit tail d_model"]:
        """The corrupted residual stream before the layer."""
        return self.base.residual[layer][self.row, self.at]

    def block(
        self, model: Model, states: Float[Tensor, "state unit tail d_model"], layer: int
    ) -> Float[Tensor, "state unit tail d_model"]:
        """One layer of all states."""
        past, mask = None, None
        if self.before.shape[1]:
            keys, values = self.base.keys[layer], self.base.values[layer]
            past = _Past(keys[self.row, self.before], values[self.row, self.before])
        if self.padded:
            mask = repeat(self.real, "unit key -> (state unit) key", state=len(states))
        flat = _block(model, rearrange(states, "state unit tail d -> (state unit) tail d"), layer, past, mask)
        return rearrange(flat, "(state unit) tail d -> state unit tail d", state=len(states))


def enter(
    model: Model,
    base: Base,
    layers: Sequence[int],
    row: Int[Tensor, " unit"],
    pos: Int[Tensor, " unit"],
    site: str,
) -> Float[Tensor, "layer unit d_model"]:
    """The residual stream after each of `layers` at positions `pos`, the site restored there in that layer.

    For `LOCAL` sites: everywhere else it is the corrupted one.
    """
    alone = Units(row, pos, pos, 1)
    tails = _Tails(base, alone)
    with model.hooks(fwd_hooks=_patches(base, [Step(layer, (0,), 1) for layer in layers], alone, site)):
        after = [tails.block(model, tails.corrupted(layer)[None], layer)[0, :, 0] for layer in layers]
    return torch.stack(after)


def sweep(
    model: Model,
    base: Base,
    steps: Sequence[Step],
    units: Units,
    site: str,
    entered: Mapping[int, Float[Tensor, "unit d_model"]] | None,
) -> Float[Tensor, "run unit tail d_model"]:
    """The final residual stream of every run of every unit, on the units' tails.

    Args:
        model: the model.
        base: what the units are rows of.
        steps: from `plan`.
        units: with tails of one length.
        site: the hook point that is restored.
        entered: by first layer, what `enter` gives; `None` if runs enter below it.
    """
    n_layers, tails = model.cfg.n_layers, _Tails(base, units)
    states = tails.corrupted(0)[:0, None]
    with model.hooks(fwd_hooks=_patches(base, steps[:n_layers], units, site)):
        for step in steps:
            if len(states) in step.source:
                new = tails.corrupted(step.layer)
                if entered is not None:
                    new[:, 0] = entered[step.layer - 1]
                states = torch.cat([states, new[None]]) if len(states) else new[None]
            if step.source != tuple(range(len(states))):
                states = states[torch.tensor(step.source, device=states.device)]
            if step.source and step.layer < n_layers:
                states = tails.block(model, states, step.layer)
    return states


def _patches(base: Base, steps: Sequence[Step], units: Units, site: str) -> list[Hook]:
    """The hooks that overwrite the units' positions in the states that restore, one a layer."""
    fact, within = base.fact[units.row], units.pos - units.start

    def restore(step: Step) -> Callable[..., Tensor]:
        def hook_fn(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            # Keys and values have the past in front of the tail.
            at = within + value.shape[1] - units.tail
            rows = torch.arange(step.n_restored * len(units), device=value.device)
            clean = base.clean[step.layer][fact, units.pos].to(value)
            value[rows, at.repeat(step.n_restored)] = clean.repeat(step.n_restored, *[1] * (clean.ndim - 1))
            return value

        return hook_fn

    return [(site_name(site, step.layer), restore(step)) for step in steps if step.n_restored]


def _block(model: Model, residual: Tensor, layer: int, past: _Past | None, mask: Tensor | None = None) -> Tensor:
    """One layer, its hook points included."""
    entries = None if past is None else {layer: past}
    return run_layers(model, residual, start=layer, stop=layer + 1, past=entries, mask=mask)
