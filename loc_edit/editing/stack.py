"""Several edits in one model at a time, undone in any order."""

from types import TracebackType

import torch
from torch import Tensor

from loc_edit.editing.update import Edit
from loc_edit.models.model import Model


class EditStack:
    """The edits in a model's weights, in order; each can be undone, whatever came after it.

    After each change the weights are the unedited ones with the remaining edits written in their order: bit for bit
    what they would be if the undone edit had never been made.

        with EditStack(model) as stack:
            stack.apply(first)
            stack.apply(loc_edit.rome(model, request, ...))  # made for the model with `first` in it
            stack.undo(first)

    Costs one copy of each edited layer's `W_out`.  Nobody else may write the weights meanwhile.

    Attributes:
        model: the model.
        edits: the edits in its weights, in the order in which they were written.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.edits: tuple[Edit, ...] = ()
        self._unedited: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    def apply(self, edit: Edit) -> None:
        """Write an edit on top of the others.

        Raises:
            EditMismatch: the edit was made for weights of another shape; the model is left as it is.
            ValueError: the edit is in the model already.
        """
        if any(edit is present for present in self.edits):
            raise ValueError(f"{edit!r} is in the model already")
        edit.check_shapes(self.model)
        for place, parameter in edit.parameters(self.model).items():
            self._unedited.setdefault(place, (parameter, parameter.detach().clone()))
        edit.write(self.model)
        self.edits = (*self.edits, edit)

    def undo(self, edit: Edit | None = None) -> None:
        """Take an edit back, by default the last one.

        Raises:
            ValueError: the edit is not in the model.
        """
        if edit is None and self.edits:
            edit = self.edits[-1]
        if not any(edit is present for present in self.edits):
            raise ValueError(f"{edit!r} is not in the model, which has {list(self.edits)}")
        self._rewrite(tuple(present for present in self.edits if present is not edit))

    def clear(self) -> None:
        """Take all edits back."""
        self._rewrite(())

    @torch.no_grad()
    def _rewrite(self, edits: tuple[Edit, ...]) -> None:
        for parameter, before in self._unedited.values():
            parameter.copy_(before)
        for edit in edits:
            edit.write(self.model)
        self.edits = edits

    def __enter__(self) -> "EditStack":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()
