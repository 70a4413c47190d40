"""Configurations as plain data: their allowed values, their differences, and the names of cells made from them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from loc_edit.files import short_hash


def cell_key(configuration: Mapping[str, Any]) -> str:
    """The name of a cell: 16 hexadecimal digits that depend on its whole resolved configuration.

    It does not depend on the order of keys, and is the same for 1 and 1.0, for a tuple and a list, and for a key that
    is `None` and a missing key.  Every other difference changes it.
    """
    return short_hash(canonical(plain(configuration)))


def plain(value: Any, name: str = "configuration") -> Any:
    """Returns `value` as data that TOML and JSON can hold, without the keys that are `None`, as TOML has no null.

    Raises:
        ValueError: a part of the value is not a setting; the message gives its dotted name.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, PurePath):
        return value.as_posix()
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{name}: the key {key!r} is {type(key).__name__}; expected a name (str)")
        return {key: plain(item, f"{name}.{key}") for key, item in value.items() if item is not None}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
    raise ValueError(
        f"{name}: {value!r} is {type(value).__name__}; expected a bool, int, float, str, or a list or table of these"
    )


def canonical(value: Any) -> str:
    """The one JSON text of plain data: keys sorted, no spaces, whole floats written as integers."""
    return json.dumps(_whole_floats_as_ints(value), sort_keys=True, separators=(",", ":"))


def _whole_floats_as_ints(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole_floats_as_ints(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole_floats_as_ints(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Returns the dotted name of every setting that differs, with its values in the two as text."""
    flat_there, flat_here = _flat(there), _flat(here)
    names = sorted(flat_there.keys() | flat_here.keys())
    pairs = {name: (flat_there.get(name, "not set"), flat_here.get(name, "not set")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def describe(differing: Mapping[str, tuple[str, str]]) -> str:
    """One line that names each differing setting with both values."""
    return "; ".join(
        f"{name} is {_shorten(there)} there and {_shorten(here)} here" for name, (there, here) in differing.items()
    )


def _flat(configuration: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in configuration.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = canonical(value)
    return flat


def _shorten(text: str, length: int = 80) -> str:
    return text if len(text) <= length else f"{text[: length - 20]}... ({len(text)} characters)"
