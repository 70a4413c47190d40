"""Several edits in one model at a time, taken back in any order."""

from types import TracebackType

import torch
from torch import Tensor

from loc_edit.editing.update import Edit
from loc_edit.models.model import Model, W_out, b_out


class EditStack:
    """Edits that are in a model's weights, in order; each can be undone, whatever came after it.

    After each change the weights are the pristine ones with the remaining edits written in their order: bit for bit
    what they would be had the undone edit never been there.

        with EditStack(model) as stack:
            stack.apply(first)
            stack.apply(loc_edit.rome(model, request, ...))  # made for the model with `first` in it
            stack.undo(first)

    Costs one copy of each edited layer's `W_out`.  The weights must not be written by others meanwhile.

    Attributes:
        model: the model.
        edits: what is in its weights, in the order of writing.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.edits: tuple[Edit, ...] = ()
        self._pristine: dict[tuple[str, int], Tensor] = {}

    def apply(self, edit: Edit) -> None:
        """Write an edit on top of the others.

        Raises:
            EditMismatch: the edit was made for weights of another shape; the model is left as it is.
            ValueError: the edit is in the model already.
        """
        if any(one is edit for one in self.edits):
            raise ValueError(f"{edit!r} is in the model already")
        edit.check_shapes(self.model)
        for key, parameter in self._parameters(edit).items():
            self._pristine.setdefault(key, parameter.detach().clone())
        edit.write(self.model)
        self.edits = (*self.edits, edit)

    def undo(self, edit: Edit | None = None) -> None:
        """Take an edit back, the last one by default.

        Raises:
            ValueError: the edit is not in the model.
        """
        if edit is None and self.edits:
            edit = self.edits[-1]
        if not any(one is edit for one in self.edits):
            raise ValueError(f"{edit!r} is not in the model; there are {list(self.edits)}")
        self._rewrite(tuple(one for one in self.edits if one is not edit))

    def clear(self) -> None:
        """Take all edits back."""
        self._rewrite(())

    @torch.no_grad()
    def _rewrite(self, edits: tuple[Edit, ...]) -> None:
        for (kind, layer), before in self._pristine.items():
            _parameter(self.model, kind, layer).copy_(before)
        for edit in edits:
            edit.write(self.model)
        self.edits = edits

    def _parameters(self, edit: Edit) -> dict[tuple[str, int], Tensor]:
        keys = [("weight", layer) for layer in edit.layers]
        keys += [("bias", update.layer) for update in edit.updates if update.bias is not None]
        return {(kind, layer): _parameter(self.model, kind, layer) for kind, layer in keys}

    def __enter__(self) -> "EditStack":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()


def _parameter(model: Model, kind: str, layer: int) -> Tensor:
    return W_out(model, layer) if kind == "weight" else b_out(model, layer)
