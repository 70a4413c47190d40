"""What makes a folder a run: its configuration and its provenance, written once and checked ever after."""

import json
import logging
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from loc_edit.store.disk import disk_errors, sync_folder, write_atomic
from loc_edit.store.rows import SCHEMA_VERSION
from loc_edit.store.settings import describe, differences
from loc_edit.store.shards import shard_names

log = logging.getLogger(__name__)

CONFIG = "config.toml"
PROVENANCE = "provenance.json"
FINGERPRINT = "model_fingerprint"
VERSION = "schema_version"
_OF_A_RUN = {PROVENANCE, "traces", "edits", "tables", "figures"}


class BadRun(ValueError):
    """A folder that is no run, or none that this version can use; the message names it."""


class RunMismatch(BadRun):
    """A folder that holds a run of another configuration or model; the message names what differs."""


def refuse_strangers(folder: Path) -> None:
    """Refuses a path at which neither a run is nor one can be begun."""
    if folder.exists() and not folder.is_dir():
        raise BadRun(f"{folder} is a file; a run needs a folder")
    if not folder.exists() or (folder / CONFIG).exists():
        return
    strangers = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    if rows := [name for kind in ("traces", "edits") for name in shard_names(folder / kind)]:
        raise BadRun(f"{folder} has {len(rows)} shards of rows but no {CONFIG} that says what they are")
    if strangers := [name for name in strangers if name not in _OF_A_RUN]:
        raise BadRun(
            f"{folder} is not empty and holds no run ({len(strangers)} other entries, such as "
            f"{strangers[0]!r}); choose a new or empty folder"
        )


def write_settings(folder: Path, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Writes both files, the configuration last: from then on the folder is a run."""
    write_atomic(folder / PROVENANCE, (json.dumps(provenance, indent=2) + "\n").encode())
    write_atomic(folder / CONFIG, tomli_w.dumps(config).encode())
    with disk_errors("write", folder):
        sync_folder(folder.parent)


def read_settings(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration and the provenance of the run in `folder`.

    Raises:
        BadRun: a file is missing or damaged, or written by a newer version.
    """
    with disk_errors("read", folder / CONFIG):
        config_bytes = (folder / CONFIG).read_bytes()
    try:
        config = tomllib.loads(config_bytes.decode())
    except ValueError as error:
        raise BadRun(f"{folder / CONFIG} is damaged: {error}") from error
    try:
        provenance = json.loads((folder / PROVENANCE).read_bytes())
        version = int(provenance[VERSION])
    except FileNotFoundError:
        raise BadRun(f"{folder} has no {PROVENANCE}, which says what made its rows") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BadRun(f"{folder / PROVENANCE} is damaged: {error}") from error
    if version > SCHEMA_VERSION:
        raise BadRun(
            f"{folder} was written by a newer loc_edit: its rows have schema version {version}, "
            f"and this one reads up to {SCHEMA_VERSION}; update loc_edit"
        )
    return config, provenance


def refuse_other_settings(folder: Path, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
    """Refuses to go on with a run of another configuration or model.

    Raises:
        RunMismatch: naming what differs, with the values there and here.
    """
    config_there, provenance_there = read_settings(folder)
    if differing := differences(config_there, config):
        raise RunMismatch(
            f"{folder} holds a run with another configuration: {describe(differing)}; "
            "choose another folder, or the same configuration"
        )
    differing = differences(provenance_there, provenance)
    if FINGERPRINT in differing:
        raise RunMismatch(
            f"{folder} holds a run of another model: {describe({FINGERPRINT: differing[FINGERPRINT]})}; "
            "choose another folder"
        )
    if differing:
        log.warning("%s is taken up again under other conditions: %s", folder, describe(differing))
