"""The fast path of Causal Tracing and of ablation: all patched runs of many facts in one pass over the layers.

Causal Tracing asks for one run of the model per layer, position, noise sample and window.  Done literally, that is
thousands of forward passes over the whole prompt for a single fact.  Nearly all of that work is repeated, because of
two properties of a causal transformer:

- A position is computed from itself and earlier positions only.  A run that restores position p is therefore the
  corrupted run at all positions before p.  Only its *tail*, p and what follows, has to be computed; attention in the
  tail reads the keys and values of the earlier positions, which are kept from the corrupted run.
- A layer is computed from the layer below only.  A run that restores layers 3 to 5 is therefore the corrupted run up
  to layer 2, and up to layer 5 it is the same computation as a run that restores layers 3 to 7.

So each distinct piece of work is done once, and the result is the one that separate runs give: nothing is
approximated, and only the rounding may differ, as with any other size of a batch.  The same is true of ablation, whose
runs are the clean run with an output replaced; read "clean" for "corrupted" and "replaced" for "restored" below.

1. **Base** (`run_base`).  The clean and the corrupted rows of some facts run once, in one batch.  Kept are the clean
   output of the site, and for every layer the corrupted residual stream before it and its attention keys and values.
2. **Units** (`Units`).  A unit is one corrupted row (a fact and a noise sample) and one position to restore.  Units
   whose tails have the same length share a batch.  Where their tails begin at different positions of their rows, the
   shorter pasts are padded on the left and masked.
3. **Plan** (`plan`).  A run of a unit is defined by the first and the last layer that it restores.  Runs with the same
   first layer are one *state* as long as all of them restore, and each run becomes a state of its own after its last
   restored layer.  Several windows share their runs, and windows that are clipped to the same layers are computed once.
4. **Sweep** (`sweep`).  Layer by layer, one call computes all states of all units of a batch.  Hooks overwrite the
   unit's position with the clean output in the states that restore in that layer.
5. **Entering** (`enter`).  For most sites (`LOCAL`) a patch changes no other position within its layer.  Then the first
   restored layer of a run needs to be computed at the restored position only, for all units in one call.
6. Only the positions that predict the target are unembedded (`Scorer`).

Hooks that a user put on the model fire in every call.  They may count positions or rows; so while there are any, facts
go one by one and every tail is the whole row.  Tails are whole rows as well if the model cannot take the keys and
values of earlier positions (`lens.takes_past`).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.localization.hooks import site_name
from loc_edit.models.model import Hook, Model
from loc_edit.models.passes import run_layers
from loc_edit.models.past import PastEntry, new_past
from loc_edit.prompts.batches import Batch, run

Layers = tuple[int, int]
"""The first and the last restored layer of a run."""

LOCAL = ("mlp_out", "attn_out", "resid_post", "mlp.hook_pre", "mlp.hook_post", "attn.hook_z")
"""Sites at which a patch reaches no other position before the next layer."""


@dataclass(frozen=True)
class Step:
    """What a sweep does in one layer.

    Attributes:
        layer: the layer; the number of layers stands for the end, after the last layer.
        source: for each state before this layer, the number of the state after the previous layer that it continues;
            the number after the last of these stands for a run that enters from the corrupted residual stream.
        n_restored: the first so many states are restored in this layer.
    """

    layer: int
    source: tuple[int, ...]
    n_restored: int


def plan(runs: Collection[Layers], n_layers: int, *, entered: bool) -> list[Step]:
    """The steps of a sweep that ends with `runs` as its states, in their order.

    Args:
        runs: the runs, all different.
        n_layers: the number of layers of the model.
        entered: whether runs enter after their first layer, which `enter` has computed, or before it.
    """
    last = {first: max(end for start, end in runs if start == first) for first, _ in runs}
    previous: list[tuple[int, int | None]] = []  # states by (first, last) layer; the last is None while it restores
    steps = []
    for layer in range(n_layers + 1):
        restoring = [(first, None) for first in last if first + entered <= layer <= last[first]]
        states = [*restoring, *((first, end) for first, end in runs if end < layer)]
        origins = [(first, None) if end == layer - 1 else (first, end) for first, end in states]
        source = [previous.index(origin) if origin in previous else len(previous) for origin in origins]
        steps.append(Step(layer, tuple(source), len(restoring)))
        previous = states
    return steps


@dataclass(frozen=True)
class Base:
    """The rows of some facts whose runs are patched, before every layer, and the site's clean output in every layer.

    Attributes:
        model: the model.
        site: the hook point that is patched.
        fact: the number of each row's fact.
        lengths: the number of real positions of each row.
        residual: by layer, the residual stream before it; and after the last layer.
        past: by layer, the attention's keys and values; empty if tails are whole rows.
        clean: by layer, the site's clean output, one row per fact.
        clean_final: the residual stream of the clean rows after the last layer.
    """

    model: Model
    site: str
    fact: Int[Tensor, " row"]
    lengths: Int[Tensor, " row"]
    residual: list[Float[Tensor, "row pos d_model"]]
    past: list[PastEntry]
    clean: list[Float[Tensor, "fact pos ..."]]
    clean_final: Float[Tensor, "fact pos d_model"]

    @property
    def whole(self) -> bool:
        """Whether tails are whole rows."""
        return not self.past


def run_base(model: Model, batch: Batch, fact: Int[Tensor, " row"], site: str, *, n_clean: int, whole: bool) -> Base:
    """The base of a batch that holds one clean row per fact, and then the corrupted rows, if any.

    Args:
        model: the model.
        batch: the rows.
        fact: the number of the fact of each row that is patched, which are the batch's last rows: the corrupted ones,
            or all of them if there are no others than the clean ones.
        site: the hook point that is patched.
        n_clean: the number of clean rows.
        whole: whether tails are whole rows, so that no keys and values are kept.

    Raises:
        ValueError: the site does not fire, or the first axes of its activations are not batch and position.
    """
    first, n_layers = len(batch) - len(fact), model.cfg.n_layers
    clean: dict[int, Tensor] = {}

    def keep(value: Tensor, hook: Any, layer: int) -> Tensor:
        clean[layer] = value[:n_clean].clone()
        return value

    stream = run(model, batch, stop_at_layer=0)
    residual, past = [stream[first:]], [] if whole else new_past(model)
    hooks: list[Hook] = [(site_name(site, layer), partial(keep, layer=layer)) for layer in range(n_layers)]
    with model.hooks(fwd_hooks=hooks):
        for layer in range(n_layers):
            stream = _block(model, stream, layer, past[layer] if past else None)
            residual.append(stream[first:])
            if layer not in clean:
                raise ValueError(
                    f"site {site!r}: hook point {site_name(site, layer)} does not fire in this model's configuration"
                )
            if clean[layer].shape[:2] != (n_clean, stream.shape[1]):
                raise ValueError(
                    f"site {site!r}: expected activations of shape [batch, pos, ...], got {list(clean[layer].shape)}"
                )
    for entry in past:
        entry.select(slice(first, None))
    return Base(
        model,
        site,
        fact,
        batch.lengths[first:],
        residual,
        past,
        [clean[layer] for layer in range(n_layers)],
        stream[:n_clean],
    )


@dataclass(frozen=True)
class Patch:
    """What the output of a hook point is replaced by at the units' positions.

    Attributes:
        site: the hook point.
        values: by layer, some outputs of the hook point.
        source: for each unit, which of these outputs it takes.
    """

    site: str
    values: Sequence[Float[Tensor, "source ..."]]
    source: Int[Tensor, " unit"]


@dataclass(frozen=True)
class Units:
    """Rows of a base, each with one position to patch; their tails are computed in one batch.

    Attributes:
        base: holds the rows.
        row: the row of the base.
        pos: the position that is patched.
        start: the first position of the tail, which ends where the row ends.
        tail: the length of all the tails; 0 if they differ, so that the units still have to be sorted by it.
        restored: the patch in the layers that a run restores; `None` if no runs are restored.
        frozen: the patch in all layers after these, if any.
        entered: by first restored layer, the residual stream after it at the restored position, from `enter`; empty if
            runs enter before their first layer.
    """

    base: Base
    row: Int[Tensor, " unit"]
    pos: Int[Tensor, " unit"]
    start: Int[Tensor, " unit"]
    tail: int = 0
    restored: Patch | None = None
    frozen: Patch | None = None
    entered: Mapping[int, Float[Tensor, "unit d_model"]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.row)

    @property
    def fact(self) -> Int[Tensor, " unit"]:
        """The number of each unit's fact."""
        return self.base.fact[self.row]

    def select(self, chosen: Int[Tensor, " chosen"] | slice, tail: int | None = None) -> "Units":
        """Some of the units; `tail` is the length of their tails if it was not known before."""
        entered = {first: stream[chosen] for first, stream in self.entered.items()}
        restored, frozen = (p and replace(p, source=p.source[chosen]) for p in (self.restored, self.frozen))
        row, pos, start = self.row[chosen], self.pos[chosen], self.start[chosen]
        return Units(self.base, row, pos, start, self.tail if tail is None else tail, restored, frozen, entered)

    @cached_property
    def _past(self) -> Int[Tensor, "unit past"]:
        """The positions before the tails, as many for each unit; negative numbers are padding."""
        n_past = int(self.start.max())
        return self.start[:, None] - n_past + torch.arange(n_past, device=self.start.device)

    @cached_property
    def padded(self) -> bool:
        """Whether the tails start at different positions, so that some pasts are padded."""
        return bool((self._past < 0).any())

    def residual(self, layer: int) -> Float[Tensor, "unit tail d_model"]:
        """The residual stream of the tails before the layer, where nothing is patched."""
        tail = self.start[:, None] + torch.arange(self.tail, device=self.start.device)
        return self.base.residual[layer][self.row[:, None], tail]

    def block(
        self, states: Float[Tensor, "state unit tail d_model"], layer: int
    ) -> Float[Tensor, "state unit tail d_model"]:
        """One layer of all states."""
        past, mask = None, None
        if self._past.shape[1]:  # all states of a unit read the unit's one past
            past = self.base.past[layer].gather(self.row[:, None], self._past.clamp(min=0))
        if self.padded:
            real = torch.nn.functional.pad(self._past >= 0, (0, self.tail), value=True).long()
            mask = repeat(real, "unit key -> (state unit) key", state=len(states))
        rows = rearrange(states, "state unit tail d -> (state unit) tail d")
        after = _block(self.base.model, rows, layer, past, mask)
        return rearrange(after, "(state unit) tail d -> state unit tail d", state=len(states))

    def patches(self, steps: Sequence[Step]) -> list[Hook]:
        """The hooks that patch the units' positions: in states that are restored, and in those that were restored."""

        def overwrite(patch: Patch, layer: int, states: range) -> Callable[..., Tensor]:
            def hook_fn(value: Tensor, hook: Any) -> Tensor:
                value = value.clone()
                # The columns count from the right, because keys and values have the past in front of the tail.
                column = self.pos - self.start + value.shape[1] - self.tail
                rows = torch.arange(states.start * len(self), states.stop * len(self), device=value.device)
                new = patch.values[layer][patch.source].to(value)
                value[rows, column.repeat(len(states))] = new.repeat(len(states), *[1] * (new.ndim - 1))
                return value

            return hook_fn

        hooks: list[Hook] = []
        for step in steps:
            n, n_states = step.n_restored, len(step.source)
            for patch, states in ((self.restored, range(n)), (self.frozen, range(n, n_states))):
                if patch and states:
                    hooks.append((site_name(patch.site, step.layer), overwrite(patch, step.layer, states)))
        return hooks


def enter(units: Units, layers: Sequence[int]) -> Float[Tensor, "layer unit d_model"]:
    """The residual stream after each of `layers` at the units' positions, with the site restored in that layer there.

    For `LOCAL` sites: all other positions are corrupted after that layer.
    """
    alone = replace(units, start=units.pos, tail=1)
    with units.base.model.hooks(fwd_hooks=alone.patches([Step(layer, (0,), 1) for layer in layers])):
        return torch.stack([alone.block(alone.residual(layer)[None], layer)[0, :, 0] for layer in layers])


def sweep(units: Units, steps: Sequence[Step]) -> Float[Tensor, "run unit tail d_model"]:
    """The final residual stream of every run of every unit, on the units' tails.

    Args:
        units: with tails of one length.
        steps: from `plan`; runs enter after their first layer if `units.entered` holds the result.
    """
    n_layers = units.base.model.cfg.n_layers
    states = units.residual(0)[:0, None]
    with units.base.model.hooks(fwd_hooks=units.patches(steps[:n_layers])):
        for step in steps:
            if len(states) in step.source:
                new = units.residual(step.layer)
                if units.entered:
                    new[:, 0] = units.entered[step.layer - 1]
                states = torch.cat([states, new[None]]) if len(states) else new[None]
            if step.source != tuple(range(len(states))):
                states = states[torch.tensor(step.source, device=states.device)]
            if step.source and step.layer < n_layers:
                states = units.block(states, step.layer)
    return states


def _block(model: Model, residual: Tensor, layer: int, past: PastEntry | None, mask: Tensor | None = None) -> Tensor:
    """One layer, its hook points included."""
    entries = None if past is None else {layer: past}
    return run_layers(model, residual, start=layer, stop=layer + 1, past=entries, mask=mask)
