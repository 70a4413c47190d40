"""A command's options from its function: tyro parses them, and its help shows them by topic, below examples.

The function stays flat: for tyro its parameters, and the fields of the records among them, are put into one record
per topic, whose names do not become part of the options'.
"""

import dataclasses
import inspect
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, get_args, get_type_hints

import tyro

from loc_edit.cli.contents import PROGRAM

Command = Callable[..., None]

REST = "computation"
TOPICS = {
    REST: (),
    "model and facts": (
        *("model", "edit", "data", "data_limit", "format", "false_target", "skip_invalid", "known", "min_probability"),
        *("facts", "skip_facts", "fact", "n", "relation", "split", "kept", "seed", "plugins", "accept_terms"),
    ),
    "method": ("preset", "assignments", "corpus", "corpus_tokens", "tokens", "ridge", "dtype"),
    "output": (
        *("out", "out_folder", "out_file", "folder", "runs", "save", "figure", "submit", "skipped", "mirror"),
        "as_json",
    ),
    "machine": ("chunk", "workers", "engine", "address", "gpus", "port", "share"),
}
"""The options of each topic; the first one has those that are named nowhere else."""


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a command.

    Attributes:
        name: of the parameter, or of the record's field.
        kind: its annotation.
        default: its default value; `dataclasses.MISSING` if it is required.
        meaning: its description, unless the annotation has one.
    """

    name: str
    kind: Any
    default: Any
    meaning: str


def parse(command: Command, name: str, args: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a command's parameters, from the words after its name.

    Args:
        command: the function.
        name: the command's name.
        args: the words after its name.
        defaults: records that give the defaults of their fields, by the name of the parameter.

    Raises:
        SystemExit: tyro has printed help or what does not parse.
    """
    tyro._experimental_options["ansi_codes"] = not os.environ.get("NO_COLOR") and sys.stderr.isatty()
    if "-h" in args or "--help" in args:  # tyro would neither wrap its lines nor keep the examples apart
        print(described(command), end="\n\n")
    parsed = tyro.cli(form(command, defaults), prog=f"{PROGRAM} {name}", description="", args=args)
    values = {key: value for topic in vars(parsed).values() for key, value in vars(topic).items()}
    for parameter, record in records(command, defaults).items():
        of_record = {key: values.pop(key) if key in values else getattr(record, key) for key in names_of(record)}
        kind = type(record)
        values[parameter] = (
            kind.from_values(of_record, "options") if hasattr(kind, "from_values") else kind(**of_record)
        )
    return values


def form(command: Command, defaults: Mapping[str, Any]) -> Any:
    """A dataclass with a field per topic, each a dataclass of the command's options of that topic."""
    topics: dict[str, list[Option]] = {title: [] for title in TOPICS}
    for option in options(command, defaults):
        topics[next((title for title, names in TOPICS.items() if option.name in names), REST)].append(option)
    fields = []
    for title, members in topics.items():
        if members:
            topic = dataclasses.make_dataclass("Topic", [_entry(option) for option in members], kw_only=True)
            meanings = (
                f"    {option.name}: {' '.join(option.meaning.split())}" for option in members if option.meaning
            )
            topic.__doc__ = "\n".join([f"{title}\n\nArgs:", *meanings])
            kind: Any = Annotated[topic, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name=title, help="")]
            fields.append((title.replace(" ", "_"), kind))
    return dataclasses.make_dataclass(
        "Options", fields, namespace={"__doc__": sections(command)[""].partition("\n")[0]}
    )


def _entry(option: Option) -> tuple[str, Any, Any]:
    """An option as a field of a dataclass."""
    if option.default is dataclasses.MISSING:
        return option.name, option.kind, dataclasses.field()
    return option.name, option.kind, dataclasses.field(default_factory=lambda: option.default)


def options(command: Command, defaults: Mapping[str, Any]) -> list[Option]:
    """The options of a command, in the order of its parameters; a record's fields stand in its place."""
    kinds = get_type_hints(command, include_extras=True)
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", sections(command).get("Args", ""), re.MULTILINE)
    meanings = dict(entries)
    given, result = records(command, defaults), []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in given:
            result += _fields(given[name])
        else:
            default = dataclasses.MISSING if parameter.default is parameter.empty else parameter.default
            result.append(Option(name, kinds[name], default, meanings.get(name, "")))
    return result


def records(command: Command, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a command whose fields are options, each with the record that has the fields' defaults."""
    kinds = get_type_hints(command).items()
    return {
        name: defaults[name] if name in defaults else kind()
        for name, kind in kinds
        if dataclasses.is_dataclass(kind) or hasattr(kind, "model_fields")
    }


def names_of(record: Any) -> list[str]:
    """The names of the fields of a dataclass, or of a model of pydantic."""
    return (
        [*type(record).model_fields]
        if hasattr(type(record), "model_fields")
        else [f.name for f in dataclasses.fields(record)]
    )


def _fields(record: Any) -> list[Option]:
    """The fields of a record as options, with its values as their defaults."""
    kinds = get_type_hints(type(record), include_extras=True)
    known = getattr(type(record), "model_fields", {})
    return [
        Option(name, kinds[name], getattr(record, name), getattr(known.get(name), "description", None) or "")
        for name in names_of(record)
        if tyro.conf.Suppress not in get_args(kinds[name])
    ]


def described(command: Command) -> str:
    """What a command's help begins with: its first line, its examples, and what its docstring says before `Args:`."""
    width = min(shutil.get_terminal_size().columns, 120)
    parts = sections(command)
    first, *rest = (" ".join(paragraph.split()) for paragraph in parts[""].strip().split("\n\n"))
    return "\n\n".join([first, parts["Examples"].strip("\n"), *(textwrap.fill(text, width) for text in rest)])


def sections(command: Command) -> dict[str, str]:
    """The sections of a command's docstring by their titles; what comes before the first one has none."""
    parts = re.split(r"^(\w+):\n", inspect.getdoc(command) or "", flags=re.MULTILINE)
    return dict(zip(["", *parts[1::2]], parts[::2], strict=True))
