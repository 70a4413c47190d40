"""The editing methods by name, called alike: requests in, independent edits out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformer_lens import HookedTransformer

from loc_edit.editing.alphaedit import alphaedit
from loc_edit.editing.emmet import emmet
from loc_edit.editing.finetune import finetune
from loc_edit.editing.memit import memit
from loc_edit.editing.r_rome import r_rome
from loc_edit.editing.rome import rome
from loc_edit.editing.update import Edit
from loc_edit.problems import EditRequest


@dataclass(frozen=True)
class Method:
    """An editing method.

    Attributes:
        edit: (model, requests, layers, settings=, and with texts: stats=, contexts=) -> an edit a request.
        texts: the style of the context texts that it is given, together with key statistics; `None` for neither.
    """

    edit: Callable[..., list[Edit]]
    texts: Literal["rome", "memit"] | None = None


def _of_one_layer(function: Callable[..., Any]) -> Callable[..., list[Edit]]:
    def edit(
        model: HookedTransformer, requests: Sequence[EditRequest], layers: Sequence[int], **given: Any
    ) -> list[Edit]:
        (layer,) = layers
        return list(function(model, requests, layer, **given))

    return edit


METHODS: dict[str, Method] = {
    "rome": Method(_of_one_layer(rome), "rome"),
    "r_rome": Method(_of_one_layer(r_rome), "rome"),
    "emmet": Method(_of_one_layer(emmet), "rome"),
    "memit": Method(memit, "memit"),
    "alphaedit": Method(alphaedit, "memit"),
    "finetune": Method(finetune),
    "finetune_free": Method(finetune),
    "finetune_decay": Method(finetune),
}
"""The names are those of `settings.SETTINGS`, whose records they take."""
