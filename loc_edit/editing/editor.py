"""What all editing methods share: they take one request or many, and each edit records how it was made."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import wraps
from inspect import Signature, signature
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, overload, runtime_checkable

from loc_edit.arguments import checked
from loc_edit.editing.problems import EditRequest
from loc_edit.editing.settings import Settings
from loc_edit.editing.update import Edit, WeightUpdate
from loc_edit.models.checks import check_editable, check_layers, warn_of_hooks
from loc_edit.models.identity import fingerprint
from loc_edit.models.model import Model
from loc_edit.names import METHODS

P = ParamSpec("P")
S = TypeVar("S", bound=Settings, covariant=True)


@runtime_checkable
class Editor(Protocol[P]):
    """An editing method: one request makes one edit, several make as many, which are computed together."""

    @overload
    def __call__(self, model: Model, request: EditRequest, *args: P.args, **kwargs: P.kwargs) -> Edit: ...
    @overload
    def __call__(
        self, model: Model, request: Sequence[EditRequest], *args: P.args, **kwargs: P.kwargs
    ) -> list[Edit]: ...


def one_or_many(edit_all: Callable[Concatenate[Model, list[EditRequest], P], list[Edit]]) -> Editor[P]:
    """Make an editor of a function that edits a list of requests, at least one.

    The editor's second parameter is called `request`, and takes one request or a sequence of requests.
    """

    @wraps(edit_all)
    def edit(
        model: Model, request: EditRequest | Sequence[EditRequest], *args: P.args, **kwargs: P.kwargs
    ) -> Edit | list[Edit]:
        if isinstance(request, EditRequest):
            return edit_all(model, [request], *args, **kwargs)[0]
        return edit_all(model, list(request), *args, **kwargs) if request else []

    first, second, *others = signature(edit_all).parameters.values()
    second = second.replace(name="request", annotation=EditRequest | Sequence[EditRequest])
    edit.__signature__ = Signature([first, second, *others], return_annotation=Edit | list[Edit])  # type: ignore[attr-defined]
    return cast(Editor[P], checked(edit))


@dataclass(frozen=True)
class EditJob(Generic[S]):
    """One call of an editing method, checked: the model can be edited at these layers.

    Attributes:
        method: one of `METHODS`; it seeds the noise of noised requests, and is recorded.
        model: one that `check_editable` takes.
        requests: at least one.
        layers: where `W_out` changes, ascending.
        settings: the method's.
        contexts: texts with one `{}` at their end, the bare `"{}"` first; none for fine-tuning.

    Raises:
        BadModel, ValueError: the model or a layer cannot be edited, or there is no request.
    """

    method: str
    model: Model
    requests: Sequence[EditRequest]
    layers: list[int]
    settings: S
    contexts: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.requests:
            raise ValueError(f"{self.method}: expected at least one request, got none")
        check_editable(self.model)
        check_layers(self.model, self.layers)
        warn_of_hooks(self.model)

    @property
    def about(self) -> dict[str, Any]:
        """What all edits of this call record: method, settings, model and layers."""
        place = {"layer": self.layers[0]} if METHODS[self.method].one_layer else {"layers": self.layers}
        return {"method": self.method, "settings": asdict(self.settings), "model": fingerprint(self.model), **place}

    def edits(self, updates: Iterable[Sequence[WeightUpdate]]) -> list[Edit]:
        """The edit of each request, given its updates."""
        record = self.about
        pairs = zip(updates, self.requests, strict=True)
        return [Edit(tuple(of_request), {**record, **describe(request)}) for of_request, request in pairs]


def describe(request: EditRequest) -> dict[str, Any]:
    """The request in plain values, to be recorded with its edit."""
    return {
        "fact_id": request.fact_id,
        "prompt": request.prompt.text,
        "subject": request.prompt.subject_text,
        "target": request.target,
        "objective": request.objective,
        "noise_scale": request.noise_scale,
        "seed": request.seed,
    }
