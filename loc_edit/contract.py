"""What the contracts of all plug-ins share: how a plug-in is described, refused, and recorded in a run folder."""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from loc_edit.files import Origin, unwrapped
from loc_edit.names import CONTROLS, LOCALIZERS, METHODS, PROBLEMS, SCORES, Localizer, Method, Problem, Score


def keyword_defaults(function: Callable[..., Any], who: str) -> dict[str, Any]:
    """The keyword arguments of a plug-in's function after the first, with their defaults.

    Raises:
        BadPlugin: one has no default.
    """
    _, *others = inspect.signature(function).parameters.values()
    if missing := [other.name for other in others if other.default is inspect.Parameter.empty]:
        raise BadPlugin(f"{who}: expected a default for {', '.join(missing)}")
    return {other.name: other.default for other in others}


def first_sentence(function: Callable[..., Any]) -> str:
    """The first sentence of a docstring, or the function's name."""
    function = unwrapped(function)
    text = " ".join((inspect.getdoc(function) or function.__name__.replace("_", " ")).partition("\n\n")[0].split())
    return text.partition(". ")[0].rstrip(".")


def named_in(function: Callable[..., Any], available: Mapping[str, Any]) -> dict[str, Any]:
    """What a plug-in's function is given: of all that is available, what its signature names."""
    return {name: available[name] for name in inspect.signature(function).parameters if name in available}


Description = TypeVar("Description", Problem, Method, Localizer, Score)


class BadPlugin(ValueError):
    """A plug-in that breaks the contract; the message names it, what it did, and what was expected."""


def spelled_out(error: Exception, *own: type[Exception]) -> str:
    """An error of a plug-in in words: with its type, unless it is one of the package's own, whose words suffice."""
    return str(error) if isinstance(error, (BadPlugin, *own)) else f"{type(error).__name__}: {error}"


def describe_plugin(kind: str, known: dict[str, Description], name: str, description: Description) -> None:
    """Add a plug-in's description to the problems, methods, localizers or scores.

    A plug-in that is defined again, in the same file or notebook, takes the place of its earlier definition.

    Raises:
        BadPlugin: the name does not suit, or belongs to somebody else.
    """
    owner, origin = known.get(name), description.origin
    where = f"{kind} {name!r} of {origin.name if origin else 'loc_edit'}"
    if not re.fullmatch("[a-z][a-z0-9_]*", name) or name in ("all", *CONTROLS) or name.startswith("random_layer"):
        raise BadPlugin(f"{where}: expected a name of lower-case letters, digits and _, not {name!r}")
    if owner is not None:
        only_described = owner.origin is not None and not owner.origin.is_loaded
        same_file = owner.origin is not None and origin is not None and owner.origin.name == origin.name
        if not only_described and not same_file:
            raise BadPlugin(f"{where}: the name belongs to {owner.origin.name if owner.origin else 'loc_edit'}")
    known[name] = description


def describe_recorded(plugins: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Add the plug-ins that a run folder describes, so that its rows can be read without them; they cannot be run.

    Args:
        plugins: by kind (localizers, methods, problems, scores) and name, the fields of the description, and `file`
            and `content` of its origin.

    Raises:
        BadPlugin: an entry is damaged.
    """
    for kind, (known, record) in RECORDS.items():
        for name, entry in plugins.get(kind, {}).items():
            if name in known and ((owner := known[name].origin) is None or owner.is_loaded):
                continue
            values = {key: value for key, value in entry.items() if key not in ("file", "content")}
            try:
                known[name] = record(**values, origin=Origin(str(entry["file"]), "", str(entry["content"])))
            except (TypeError, KeyError) as error:
                raise BadPlugin(f"plug-in {kind}.{name} of a run folder: {error}") from error


def recorded(kind: str, name: str) -> dict[str, Any]:
    """What a run's folder records of a plug-in; see `describe_recorded`."""
    description = RECORDS[kind][0][name]
    values = {entry.name: getattr(description, entry.name) for entry in fields(description) if entry.name != "origin"}
    return {**values, "file": Path(description.origin.name).name, "content": description.origin.content}


RECORDS: dict[str, tuple[dict[str, Any], type[Any]]] = {
    "localizers": (LOCALIZERS, Localizer),
    "methods": (METHODS, Method),
    "problems": (PROBLEMS, Problem),
    "scores": (SCORES, Score),
}
"""By kind, where its descriptions stand, and what they are."""
