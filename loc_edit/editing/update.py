"""An edit: changes of `W_out`, or of any weight, low-rank where they are; written, undone, saved, or hooked in."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from loc_edit.arguments import checked, fitted
from loc_edit.editing.changes import OtherUpdate as OtherUpdate, WeightUpdate as WeightUpdate, moved, parts, times
from loc_edit.keys.disk import TensorFile, kinds_of, write_tensors
from loc_edit.models.adapter import lens
from loc_edit.models.checkpoints import hf_state_dict
from loc_edit.models.checks import check_layers
from loc_edit.models.identity import fingerprint
from loc_edit.models.loading import both_weights
from loc_edit.models.model import Hook, Model, W_out, b_out
from loc_edit.models.norms import output_change
from loc_edit.names import first_few
from loc_edit.views.table import html_table

FORMAT = "loc_edit.edit/1"


class EditMismatch(ValueError):
    """An edit that was made for another model."""


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of a model's weights: the result of an editing method.

    Attributes:
        updates: one or several for each layer; several add up.
        others: changes of other parameters, as `between` finds them; each parameter at most once.
        about: method, layers, request, settings and the model's fingerprint, as plain values that are saved with it.
    """

    updates: tuple[WeightUpdate, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    others: tuple[OtherUpdate, ...] = ()

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers whose `W_out` is edited, ascending."""
        return tuple(sorted({update.layer for update in self.updates}))

    @property
    def norm(self) -> float:
        """Frobenius norm of all changes of weights together, without changes of `b_out`."""
        deltas = [*(self.delta(layer) for layer in self.layers), *(update.delta for update in self.others)]
        return sum(delta.double().square().sum().item() for delta in deltas) ** 0.5

    def delta(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        """The whole change of one layer's `W_out`."""
        return torch.stack([update.delta for update in self.updates if update.layer == layer]).sum(0)

    def __add__(self, other: "Edit") -> "Edit":
        """Both edits, this one first; made for the same model if both parts were."""
        about: dict[str, Any] = {"parts": [dict(self.about), dict(other.about)]}
        if self.about.get("model") == other.about.get("model") is not None:
            about["model"] = self.about["model"]
        return Edit(self.updates + other.updates, about, self.others + other.others)

    @contextmanager
    def applied(self, model: Model) -> Iterator[Model]:
        """The model with the edit written into its weights; the exact bytes come back on exit.

        Raises:
            EditMismatch: the edit was made for weights of another shape.
        """
        self.check_shapes(model)
        saved = [(parameter, parameter.detach().clone()) for parameter in self.parameters(model).values()]
        try:
            self.write(model)
            yield model
        finally:
            with torch.no_grad():
                for parameter, before in saved:
                    parameter.copy_(before)

    @torch.no_grad()
    def write(self, model: Model) -> None:
        """Write the edit into the weights, for good."""
        self.check_shapes(model)
        for update in self.updates:
            weight, bias = W_out(model, update.layer), b_out(model, update.layer)
            weight.copy_(weight + update.delta.to(weight.device))  # in float32 also where the weight is half
            if update.bias is not None:
                bias.copy_(bias + update.bias.to(bias.device))
        named = lens.named_weights(model) if self.others else {}
        for other in self.others:
            weight = named[other.name]
            weight.copy_(weight + other.delta.to(weight.device))

    def scaled(self, factor: float) -> "Edit":
        """The edit with all its changes times a number: `.5` is half of it, `-1` takes it back."""
        updates = tuple(times(update, factor) for update in self.updates)
        return replace(self, updates=updates, others=tuple(times(other, factor) for other in self.others))

    def parameters(self, model: Model) -> dict[tuple[str, int], Tensor]:
        """The model's parameters that the edit changes, by `("W_out", layer)`, `("b_out", layer)` and `(name, -1)`."""
        weights = {("W_out", layer): W_out(model, layer) for layer in self.layers}
        named = lens.named_weights(model) if self.others else {}
        weights |= {(other.name, -1): named[other.name] for other in self.others}
        return weights | {("b_out", layer): b_out(model, layer) for layer in self._biased_layers}

    @property
    def _biased_layers(self) -> list[int]:
        """The layers whose bias the edit changes, ascending."""
        return sorted({update.layer for update in self.updates if update.bias is not None})

    def check_shapes(self, model: Model) -> None:
        """Refuse a model whose layers or widths are not the edit's."""
        named = lens.named_weights(model) if self.others else {}
        for other in self.others:
            shape, expected = tuple(other.delta.shape), tuple(getattr(named.get(other.name), "shape", ()))
            if shape != expected:
                raise EditMismatch(f"edit of {other.name}: expected shape {expected}, got {shape}")
        if not self.updates:
            return
        check_layers(model, list(self.layers))
        for update in self.updates:
            shape, expected = tuple(update.delta.shape), tuple(W_out(model, update.layer).shape)
            if shape != expected:
                raise EditMismatch(f"edit of layer {update.layer}: expected shape {expected} of W_out, got {shape}")
            if update.bias is not None and model.blocks[update.layer].mlp.b_out is None:
                raise EditMismatch(f"edit of layer {update.layer}: it changes b_out, which the model does not have")
            if update.bias is not None and (shape := tuple(update.bias.shape)) != (wide := expected[1:]):
                raise EditMismatch(f"edit of layer {update.layer}: expected shape {wide} of b_out, got {shape}")

    def to_state_dict(self, model: Model) -> dict[str, Tensor]:
        """The edited tensors under the names and in the orientation of the model's Hugging Face checkpoint.

        `hf_model.load_state_dict(..., strict=False)` takes them.  The model is left as it is.

        Raises:
            BadModel: the model comes from no checkpoint with known names.
            EditMismatch: the edit was made for weights of another shape, or changes more than MLP outputs.
        """
        self.refuse_others("to_state_dict")
        with self.applied(model):
            return hf_state_dict(model, self.layers, self._biased_layers)

    def refuse_others(self, what: str) -> None:
        """Refuse an edit that changes more than MLP outputs, for `what`.

        Raises:
            EditMismatch: it does.
        """
        if self.others:
            names = first_few(update.name for update in self.others)
            raise EditMismatch(f"{what} knows changes of W_out and b_out only, and the edit changes {names}")

    @classmethod
    def between(
        cls, base: Model | str | Path, edited: Model | str | Path | Mapping[str, Tensor], about: Mapping[str, Any] = {}
    ) -> "Edit":
        """The edit that makes one checkpoint of another, whoever made it: every parameter that differs.

        Changes of low rank become factors.  It can be applied, saved, shown and scored as any other edit; an edit of
        more than MLP outputs is scored by writing it into the weights, one at a time.

        Args:
            base: the unedited model, or what `load_model` takes.
            edited: the edited model; what `load_model` takes; or a state dictionary, with the names of
                `model.named_parameters()`, or of the Hugging Face checkpoint if `base` is its directory.
            about: what to record of it: a method's name, the fact's id.

        Raises:
            EditMismatch: a parameter has another shape, or is missing, or nothing differs.
            BadModel: a checkpoint cannot be loaded.
        """
        model, weights = both_weights(base, edited)
        updates, others = [], []
        for name, parameter in lens.named_weights(model).items():
            if name not in weights or weights[name].shape != parameter.shape:
                shape = tuple(weights[name].shape) if name in weights else "nothing"
                raise EditMismatch(f"parameter {name}: expected shape {tuple(parameter.shape)}, got {shape}")
            delta = weights[name].to(parameter.device, torch.float32) - parameter.detach().float()
            if delta.any():
                layer = re.fullmatch(r"blocks\.(\d+)\.mlp\.W_out", name)
                if layer:
                    updates.append(WeightUpdate(int(layer[1]), **parts(delta)))
                else:
                    others.append(OtherUpdate(name, **parts(delta)))
        if not updates and not others:
            raise EditMismatch("the two models have the same weights: there is no edit between them")
        return cls(tuple(updates), {"model": fingerprint(model), **about}, tuple(others))

    def save(self, path: str | Path) -> None:
        """Write the tensors and `about`, with checksums, to a safetensors file, which is whole or not there at all.

        Raises:
            StoreError: the disk refused.
        """
        tensors = {
            f"{i}.{u.layer}.{name}": value for i, u in enumerate(self.updates) for name, value in u.tensors().items()
        }
        tensors |= {f"{other.name}/{name}": value for other in self.others for name, value in other.tensors().items()}
        names = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)  # so that every tensor is aligned
        kinds = kinds_of((name, tensors[name]) for name in names)
        write_tensors(Path(path), kinds, tensors.__getitem__, {"format": FORMAT, "about": json.dumps(dict(self.about))})

    @classmethod
    @checked
    def load(cls, path: str | Path, model: Model | None = None) -> "Edit":
        """Read an edit, and compare it with its checksums; with `model`, refuse it if it was made for another one.

        A file of an old version has no checksums; it is refused only if a value is not finite.

        Raises:
            ValueError: the file is no saved edit, or is damaged.
            EditMismatch: the model's fingerprint is not the edit's.
        """
        try:
            file = TensorFile(path)
            tensors = {name: file.read(name) for name in file.names}
        except OSError as error:
            raise ValueError(f"{path}: expected a saved edit, got no readable safetensors file ({error})") from error
        if file.metadata.get("format") != FORMAT:
            raise ValueError(f"{path}: expected format {FORMAT!r}, got {file.metadata.get('format')!r}")
        of_layers: dict[tuple[int, int], dict[str, Tensor]] = {}
        of_others: dict[str, dict[str, Tensor]] = {}
        try:
            for name, value in tensors.items():
                if not torch.isfinite(value).all():
                    raise ValueError(f"{name} has values that are not finite")
                if "/" in name:
                    parameter, _, part = name.partition("/")
                    of_others.setdefault(parameter, {})[part] = value
                else:
                    i, layer, part = name.split(".")
                    of_layers.setdefault((int(i), int(layer)), {})[part] = value
            updates = tuple(WeightUpdate(layer, **of_layers[i, layer]) for i, layer in sorted(of_layers))
            others = tuple(OtherUpdate(name, **of_others[name]) for name in sorted(of_others))
            _ = [update.delta for update in updates], [other.delta for other in others]  # whole, or factors that fit
            edit = cls(updates, fitted(json.loads(file.metadata["about"]), dict[str, Any], "about"), others)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path}: expected a saved edit, got one that is damaged ({error!r})") from error
        return edit if model is None else edit.to(model)

    def to(self, model: Model) -> "Edit":
        """The edit on the model's device.

        Raises:
            EditMismatch: the edit was made for another model.
        """
        made_for, given = self.about.get("model"), fingerprint(model)
        if made_for not in (None, given):
            raise EditMismatch(f"the edit was made for model {made_for}, got model {given}")
        self.check_shapes(model)
        device = model.cfg.device
        updates = tuple(moved(update, device) for update in self.updates)
        others = tuple(moved(other, device) for other in self.others)
        return replace(self, updates=updates, others=others)

    def __repr__(self) -> str:
        names = [name for name in ("method", "target", "objective", "fact_id") if name in self.about]
        words = [*(f"{name}={self.about[name]!r}" for name in names), f"layers={list(self.layers)}"]
        words += [f"others={len(self.others)}"] if self.others else []
        return f"Edit({', '.join(words)}, norm={self.norm:.4g})"

    def _repr_html_(self) -> str:
        return html_table({**self.about, "layers": list(self.layers), "norm": f"{self.norm:.4g}"}.items())


def edit_hooks(model: Model, edits: Sequence[Edit | None], owner: Int[Tensor, " row"]) -> list[Hook]:
    """Hooks under which row i of a batch runs as if `edits[owner[i]]` were written into the weights.

    What an edit adds to the output of `W_out` is `key @ delta + bias`, so many edits share one batch and no weight
    is written.  An edit of other weights is refused.
    """
    for edit in edits:
        if edit:
            edit.refuse_others("scoring without writing weights")
    layers = sorted({layer for edit in edits if edit for layer in edit.layers})
    return [hook for layer in layers for hook in mlp_hooks(layer, changes_at(model, edits, owner, layer))]


def mlp_hooks(layer: int, replace_output: Callable[[Tensor, Tensor], Tensor]) -> list[Hook]:
    """Hooks that put `replace_output(key, output)` in the place of a layer's MLP output."""
    keys: list[Tensor] = []
    return [
        (f"blocks.{layer}.mlp.hook_post", lambda key, hook: keys.append(key)),
        (f"blocks.{layer}.hook_mlp_out", lambda output, hook: replace_output(keys.pop(), output)),
    ]


def changes_at(
    model: Model, edits: Sequence[Edit | None], owner: Int[Tensor, " row"], layer: int
) -> Callable[[Float[Tensor, "row pos d_mlp"], Float[Tensor, "row pos d_model"]], Float[Tensor, "row pos d_model"]]:
    """The function (keys, values) -> values, an MLP's output or the stream after it, changed by each row's own edit.

    Neighboring rows of one owner are multiplied together.
    """
    owners, counts = (numbers.tolist() for numbers in torch.unique_consecutive(owner, return_counts=True))
    changes, end = [], 0
    for i, n_rows in zip(owners, counts, strict=True):
        start, end, edit = end, end + n_rows, edits[i]
        if edit and layer in edit.layers:
            changes.append((slice(start, end), [update for update in edit.updates if update.layer == layer]))

    return partial(_add_changes, model, layer, changes)


def _add_changes(
    model: Model, layer: int, changes: Sequence[tuple[slice, list[WeightUpdate]]], key: Tensor, value: Tensor
) -> Tensor:
    value = value.clone()
    for rows, updates in changes:
        added = reduce(torch.add, (change(key[rows], update) for update in updates))
        value[rows] += output_change(model, layer, key[rows], added).to(value)
    return value


def change(key: Float[Tensor, "*rows d_mlp"], update: WeightUpdate) -> Float[Tensor, "*rows d_model"]:
    """What an update adds to the output of `W_out` for `key`, in float32 at least."""
    key = key.to(torch.promote_types(key.dtype, torch.float32))
    if update.full is not None:
        out = key @ update.full.to(key)
    else:
        left, right = update.factors
        out = einsum(key, left.to(key), "... d_mlp, d_mlp rank -> ... rank") @ right.to(key)
    return out if update.bias is None else out + update.bias.to(key)
