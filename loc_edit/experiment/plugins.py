"""Plug-ins: files and modules that register localizers, editors, problems and scores; loaded here and in workers.

A plug-in is loaded because somebody names it, on the command line, in a TOML file or in Python, or because an installed
package offers it.  A run folder records plug-ins, and nothing that it names is ever loaded.
"""

import importlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.abc import SourceLoader
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

from loc_edit.contract import RECORDS, BadPlugin, recorded
from loc_edit.files import Origin, short_hash, text_of

GROUP = "loc_edit.plugins"
"""The entry points of installed packages: `mine = "my_package.my_module"`."""

Used = Mapping[str, Sequence[str]]
"""The localizers, methods, problems and scores that a configuration names, by kind."""


class _Source(SourceLoader):
    """Loads a module from a text, so that a worker elsewhere runs what was read here; `files.text_of` reads `text`."""

    def __init__(self, path: str, text: bytes) -> None:
        self.path, self.text = path, text

    def get_filename(self, fullname: str) -> str:
        return self.path

    def get_data(self, path: str) -> bytes:
        if path != self.path:
            raise OSError(path)  # there is no compiled file
        return self.text


@dataclass(frozen=True)
class Plugin:
    """A plug-in that another process can load.

    Attributes:
        origin: its file or package.
        text: of the file, if it is a single one.
    """

    origin: Origin
    text: bytes = b""

    def load(self) -> None:
        """Load it, unless it is loaded.

        Raises:
            BadPlugin: it cannot be loaded, or has another content here.
        """
        own = self.origin
        if self.text:
            _load_text(own.module, own.path, self.text)
            return
        _import(own.module)
        for known, _ in RECORDS.values():
            for description in known.values():
                here = description.origin
                if here and here.module == own.module and here.content != own.content:
                    raise BadPlugin(f"plug-in {own.name}: the package is another here than where the run was started")


def load_plugins(names: Iterable[str]) -> None:
    """Load files (`my_file.py`) and modules (`my_package.my_module`), which register what they define.

    Raises:
        BadPlugin: there is no such file or module, or it raises an error.
    """
    for name in names:
        if not name.endswith(".py"):
            _import(name)
            continue
        path = Path(name).expanduser().resolve()
        try:
            text = path.read_bytes()
        except OSError as error:
            raise BadPlugin(f"plug-in {name}: {error.strerror or error}") from error
        _load_text(f"loc_edit_plugin_{path.stem}_{short_hash(text)}", str(path), text)


@cache
def load_installed() -> None:
    """Load the plug-ins that installed packages offer.

    Raises:
        BadPlugin: one of them raises an error.
    """
    for entry in entry_points(group=GROUP):
        _import(entry.value)


def _import(module: str) -> None:
    """Import a module that is installed, or that lies in the current folder."""
    here = "" not in sys.path
    sys.path += [""] * here
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        hint = "" if error.name != module.partition(".")[0] else "; a file's name ends in .py"
        raise BadPlugin(f"plug-in {module}: {error}{hint}") from error
    except Exception as error:
        raise BadPlugin(f"plug-in {module}: {type(error).__name__}: {error}") from error
    finally:
        if here:
            sys.path.remove("")


def _load_text(module: str, path: str, text: bytes) -> None:
    if module in sys.modules:
        return
    spec = spec_from_loader(module, _Source(path, text), origin=path)
    assert spec is not None
    assert spec.loader is not None
    made = sys.modules[module] = module_from_spec(spec)
    made.__file__ = path
    try:
        spec.loader.exec_module(made)
    except BaseException as error:
        del sys.modules[module]
        if isinstance(error, BadPlugin) or not isinstance(error, Exception):
            raise
        raise BadPlugin(f"plug-in {path}: {type(error).__name__}: {error}") from error


def origins(used: Used) -> dict[tuple[str, str], Origin]:
    """Where the plug-ins among these names are from, by kind and name."""
    found = {(kind, name): RECORDS[kind][0][name].origin for kind, names in used.items() for name in names}
    return {key: origin for key, origin in found.items() if origin}


def described(used: Used) -> dict[str, Any]:
    """What a run's folder records of the plug-ins that it uses."""
    record: dict[str, Any] = {}
    for kind, name in origins(used):
        record.setdefault(kind, {})[name] = recorded(kind, name)
    return record


def check_loaded(used: Used) -> None:
    """Refuse a plug-in that is known from a run folder only."""
    for (kind, name), origin in origins(used).items():
        if not origin.is_loaded:
            raise ValueError(f"{kind[:-1]} {name!r} is of a plug-in that is not loaded: name {origin.name} as plugin")


def check_defined(used: Used) -> None:
    """In a worker that has loaded the plug-ins: refuse a name that their files have not defined here."""
    for kind, names in used.items():
        for name in names:
            if name not in RECORDS[kind][0]:
                raise BadPlugin(
                    f"{kind[:-1]} {name!r}: a worker has loaded its file, which did not define it there: "
                    "expected it at the top level of the file (or workers = 1)"
                )


def to_send(used: Used) -> tuple[Plugin, ...]:
    """The plug-ins that workers have to load.

    Raises:
        BadPlugin: one is defined where no other process can load it from, or its file has changed since.
    """
    plugins: dict[str, Plugin] = {}
    for (kind, name), origin in origins(used).items():
        if not origin.can_be_sent:
            raise BadPlugin(
                f"{kind[:-1]} {name!r} is defined in {origin.name}, where other processes cannot load it from: "
                "expected workers = 1, or its code in a file that `plugins` names"
            )
        text = _text_of(origin) if origin.path else b""
        plugins[origin.module] = Plugin(origin, text)
    return tuple(plugins.values())


def _text_of(origin: Origin) -> bytes:
    text = text_of(origin.module, origin.path)
    if short_hash(text) != origin.content:
        raise BadPlugin(f"plug-in {origin.name} has changed since it was loaded: start again")
    return text.encode()
