"""What makes a folder a run: its configuration and its provenance; what may change in them, and what not."""

import json
import logging
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from loc_edit.files import disk_errors, sync_folder, write_atomic
from loc_edit.store.rows import SCHEMA_VERSION
from loc_edit.store.selection import HISTORY, SELECTION, Selection
from loc_edit.store.settings import describe, differences
from loc_edit.store.shards import shard_names

log = logging.getLogger(__name__)

CONFIG = "config.toml"
LOG = "log.jsonl"
CONTEXTS = "contexts.json"
PROVENANCE = "provenance.json"
FINGERPRINT = "model_fingerprint"
VERSION = "schema_version"
_OF_A_RUN = {PROVENANCE, SELECTION, LOG, HISTORY, CONTEXTS, "traces", "edits", "tables", "figures", "report"}


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


def write_settings(
    folder: Path, config: Mapping[str, Any], provenance: Mapping[str, Any], selection: Selection | None
) -> None:
    """Writes the files, the configuration last: from then on the folder is a run."""
    if selection is not None:
        selection.write(folder)
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


def take_up(
    folder: Path, config: Mapping[str, Any], provenance: Mapping[str, Any], selection: Selection | None
) -> None:
    """Goes on with the run in a folder: writes what has changed, and keeps what was there before in `history/`.

    Raises:
        RunMismatch: the run there is of another model, of other facts or of another kind; or its configuration is
            another, and no selection says which rows belong to it.
    """
    config_there, provenance_there = read_settings(folder)
    refuse_another_model(folder, provenance_there, provenance)
    differing = differences(config_there, config)
    if selection is None:
        if differing:
            raise RunMismatch(
                f"{folder} holds a run with another configuration: {describe(differing)}; "
                "choose another folder, or the same configuration"
            )
        return
    if differing:
        _refuse_another_run(folder, config_there, config, selection)
        log.info("%s goes on with another configuration: %s", folder, describe(differing))
        _keep(folder)
    if _selection_there(folder) != selection:
        selection.write(folder)
    if differing:
        write_atomic(folder / CONFIG, tomli_w.dumps(config).encode())


def refuse_another_model(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuses to mix models; other differences of provenance are logged.

    Raises:
        RunMismatch: naming both fingerprints.
    """
    differing = differences(there, here)
    if FINGERPRINT in differing:
        raise RunMismatch(
            f"{folder} holds a run of another model: {describe({FINGERPRINT: differing[FINGERPRINT]})}; "
            "choose another folder"
        )
    differing.pop("seed", None)  # the configuration has it
    if differing:
        log.warning("%s is taken up again under other conditions: %s", folder, describe(differing))


def _refuse_another_run(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any], selection: Selection) -> None:
    """Refuses what is no other version of the run in the folder, but another run."""
    if ("grid" in there) != ("grid" in here):
        kinds = ("a tuning of settings", "an experiment")
        raise RunMismatch(f"{folder} holds {kinds['grid' not in there]}, and this is {kinds['grid' not in here]}")
    before = _selection_there(folder)
    if before is None or there.get("data") == here.get("data"):
        return
    if not set(before.facts.values()) & set(selection.facts.values()):
        raise RunMismatch(
            f"{folder} holds a run on other facts: data is {there.get('data')!r} there and {here.get('data')!r} "
            "here, and none of the facts is the same; choose another folder"
        )


def _selection_there(folder: Path) -> Selection | None:
    try:
        return Selection.read(folder)
    except ValueError as error:
        log.warning("%s", error)
        return None


def _keep(folder: Path) -> None:
    """Copies the present configuration and selection to `history/`, under the next number."""
    history = folder / HISTORY
    with disk_errors("make folder", history):
        history.mkdir(exist_ok=True)
    number = len(list(history.glob("*-config.toml"))) + 1
    for name in (CONFIG, SELECTION, PROVENANCE):
        if (folder / name).exists():
            write_atomic(history / f"{number:04d}-{name}", (folder / name).read_bytes())
