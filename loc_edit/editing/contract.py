"""Where editors register, the package's own and yours: requests in, independent edits out."""

from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass, replace
from inspect import signature
from typing import Any, Literal, TypeVar, get_type_hints

from loc_edit.contract import BadPlugin, describe_plugin, first_sentence, spelled_out
from loc_edit.editing.editor import describe
from loc_edit.editing.problems import EditRequest
from loc_edit.editing.settings import SETTINGS
from loc_edit.editing.update import Edit
from loc_edit.editing.value import EditFailed
from loc_edit.files import origin_of
from loc_edit.models.checks import ends_run, left_alone
from loc_edit.models.identity import fingerprint
from loc_edit.models.model import Model
from loc_edit.names import METHODS, Method

EditAll = TypeVar("EditAll", bound=Callable[..., Any])

EDITORS: dict[str, Callable[..., list[Edit]]] = {}
"""(model, requests, layers, settings=) -> an edit for each request, by method; `stats=` and `contexts=` are given too
where `METHODS` says so."""


def editor(
    name: str,
    *,
    settings: type[Any] | None = None,
    label: str = "",
    meaning: str = "",
    window: int = 1,
    contexts: Literal["rome", "memit"] = "rome",
) -> Callable[[EditAll], EditAll]:
    """Register an editor: a function from a model, requests and layers to an independent edit for each request.

    Its third parameter is `layers`, a list, or `layer`, if it edits one layer only.  It gets `settings=`, and where
    its signature names them `stats=`, the key statistics, and `contexts=`, texts with one `{}` at their end.  It
    leaves the model as it is: `loc_edit.Edit` holds the change.  The registry adds to each edit what it is about.

    Args:
        name: lower-case letters, digits and _.
        settings: a frozen dataclass, whose fields are bools, ints, floats or strings with defaults.
        label: for tables and figures; by default the name.
        meaning: one line; by default the first sentence of the docstring.
        window: how many layers it edits if its name does not say, as `name-3` does.
        contexts: the style of its context texts.

    Raises:
        BadPlugin: the name is taken, or does not suit; the settings are of another form.
    """

    def register(edit_all: EditAll) -> EditAll:
        parameters = list(signature(edit_all).parameters)
        one_layer = "layer" in parameters
        call = _at_one_layer(edit_all) if one_layer else edit_all
        if origin := origin_of(edit_all):
            style = contexts if "contexts" in parameters else None
            about = meaning or first_sentence(edit_all)
            description = Method(label or name, about, window, one_layer, style, "stats" in parameters, origin)
            record = _check_settings(name, settings)
            describe_plugin("editor", METHODS, name, description)
            SETTINGS[name] = record
            call = _checked(name, call)
        EDITORS[name] = call
        return edit_all

    return register


def _at_one_layer(edit_at_layer: Callable[..., Any]) -> Callable[..., list[Edit]]:
    """An editor of one layer, called with a list of that layer as the others are."""
    return lambda model, requests, layers, **options: edit_at_layer(model, requests, *layers, **options)


def _check_settings(name: str, record: type[Any] | None) -> type[Any]:
    """The settings record of an editor, which must be frozen, typed and complete."""
    expected = (
        f"editor {name!r}: expected settings=, a frozen dataclass of bools, ints, floats and strings with defaults"
    )
    if record is None or not is_dataclass(record) or not record.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise BadPlugin(f"{expected}; got {getattr(record, '__name__', record)!r}")
    for entry, kind in ((entry, get_type_hints(record)[entry.name]) for entry in fields(record)):
        if kind not in (bool, int, float, str) or (entry.default is MISSING and entry.default_factory is MISSING):
            raise BadPlugin(f"{expected}; {entry.name} has the type {kind} or no default")
    return record


def _checked(name: str, edit_all: Callable[..., Any]) -> Callable[..., list[Edit]]:
    """An editor of yours, which keeps to the contract; what it raises is a reason why a fact has no edit."""

    def edit(model: Model, requests: Sequence[EditRequest], layers: Sequence[int], **given: Any) -> list[Edit]:
        who = f"editor {name!r}"
        try:
            with left_alone(model, who):
                edits = edit_all(model, list(requests), list(layers), **given)
            if not isinstance(edits, list | tuple) or len(edits) != len(requests):
                got = f"{len(edits)}" if isinstance(edits, list | tuple) else type(edits).__name__
                raise BadPlugin(f"expected a list of {len(requests)} edits, got {got}")
            for made in edits:
                _check_edit(model, made, layers)
        except Exception as error:
            if ends_run(error):
                raise
            facts = ", ".join(str(request.fact_id) for request in requests)
            raise EditFailed(f"{who}, fact {facts}: {spelled_out(error, EditFailed)}") from error
        about = {
            "method": name,
            "settings": asdict(given["settings"]),
            "model": fingerprint(model),
            "layers": list(layers),
        }
        return [
            replace(made, about={**about, **describe(request), **made.about})
            for made, request in zip(edits, requests, strict=True)
        ]

    return edit


def _check_edit(model: Model, edit: object, layers: Sequence[int]) -> None:
    """Refuse what is no edit, an edit of other layers, and one that is not a number."""
    if not isinstance(edit, Edit):
        raise BadPlugin(f"expected loc_edit.Edit objects, got {type(edit).__name__}")
    if not set(edit.layers) <= set(layers):
        raise BadPlugin(f"expected changes of the layers {list(layers)}, got changes of {list(edit.layers)}")
    edit.check_shapes(model)
    for update in edit.updates:
        for part, value in update.tensors().items():
            if not value.isfinite().all():
                raise BadPlugin(f"expected numbers, got NaN or infinity in {part!r} of layer {update.layer}")
