"""The editing methods by name, all called in the same way: requests in, independent edits out."""

from collections.abc import Callable
from typing import Any

from loc_edit.editing.alphaedit import alphaedit
from loc_edit.editing.emmet import emmet
from loc_edit.editing.finetune import finetune
from loc_edit.editing.memit import memit
from loc_edit.editing.r_rome import r_rome
from loc_edit.editing.rome import rome
from loc_edit.editing.update import Edit


def _at_layers(edit_at_layer: Callable[..., Any]) -> Callable[..., list[Edit]]:
    """A method that edits one layer, called with a list of that layer as the other methods are."""
    return lambda model, requests, layers, **options: edit_at_layer(model, requests, *layers, **options)


EDITORS: dict[str, Callable[..., list[Edit]]] = {
    "rome": _at_layers(rome),
    "r_rome": _at_layers(r_rome),
    "emmet": _at_layers(emmet),
    "memit": memit,
    "alphaedit": alphaedit,
    "finetune": finetune,
    "finetune_free": finetune,
    "finetune_decay": finetune,
}
"""(model, requests, layers, settings=) -> an edit for each request, by method; `stats=` and `contexts=` are given too
where `METHODS` names the style of the contexts."""
