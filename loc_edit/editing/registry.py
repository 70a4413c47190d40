"""The editing methods by name, called alike: requests in, independent edits out."""

from collections.abc import Callable, Sequence
from typing import Any

from loc_edit.editing.alphaedit import alphaedit
from loc_edit.editing.emmet import emmet
from loc_edit.editing.finetune import finetune
from loc_edit.editing.memit import memit
from loc_edit.editing.problems import EditRequest
from loc_edit.editing.r_rome import r_rome
from loc_edit.editing.rome import rome
from loc_edit.editing.update import Edit
from loc_edit.models.model import Model


def _of_one_layer(function: Callable[..., Any]) -> Callable[..., list[Edit]]:
    def edit(
        model: Model, requests: Sequence[EditRequest], layers: Sequence[int], **given: Any
    ) -> list[Edit]:
        (layer,) = layers
        return list(function(model, requests, layer, **given))

    return edit


EDITORS: dict[str, Callable[..., list[Edit]]] = {
    "rome": _of_one_layer(rome),
    "r_rome": _of_one_layer(r_rome),
    "emmet": _of_one_layer(emmet),
    "memit": memit,
    "alphaedit": alphaedit,
    "finetune": finetune,
    "finetune_free": finetune,
    "finetune_decay": finetune,
}
"""(model, requests, layers, settings=, and with contexts: stats=, contexts=) -> an edit for each request, by method."""
