"""The configuration and provenance that make a folder a run, and which of their changes are refused."""

import logging
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from loc_edit.files import (
    Damaged,
    disk_errors,
    read_json,
    set_aside,
    signed,
    sync_folder,
    unsigned,
    write_atomic,
    write_if_changed,
    write_json,
)
from loc_edit.store.layout import CONFIG, CONTEXTS, HISTORY, KEY_STATS, LOG, PROVENANCE, SELECTION, BadRun
from loc_edit.store.rows import KINDS, SCHEMA_VERSION
from loc_edit.store.selection import Selection
from loc_edit.store.settings import describe, differences
from loc_edit.store.shards import shard_names

log = logging.getLogger(__name__)

FINGERPRINT = "model_fingerprint"
VERSION = "schema_version"
_OF_A_RUN = {PROVENANCE, SELECTION, LOG, HISTORY, CONTEXTS, KEY_STATS, *KINDS, "tables", "figures", "report"}


class RunMismatch(BadRun):
    """The folder holds a run of another configuration or model; the message names the differences."""


def refuse_strangers(folder: Path) -> None:
    """Refuses a path that holds no run and where none can be started."""
    if folder.exists() and not folder.is_dir():
        raise BadRun(f"{folder} is a file; a run needs a folder")
    if not folder.exists() or (folder / CONFIG).exists():
        return
    if shards := [name for kind in KINDS for name in shard_names(folder / kind)]:
        raise BadRun(f"{folder} has {len(shards)} shards of rows but no {CONFIG} that says what they are")
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    if strangers := [name for name in names if name not in _OF_A_RUN]:
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
    write_json(folder / PROVENANCE, provenance, indent=2)
    _write_config(folder, config)
    with disk_errors("write", folder):
        sync_folder(folder.parent)


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes the configuration with its checksum; a file that holds just that stays."""
    write_if_changed(folder / CONFIG, tomli_w.dumps(signed(config)).encode())


def read_settings(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration and the provenance of the run in `folder`.

    Raises:
        BadRun: a file is missing, damaged or edited, or written by a newer version.
    """
    return read_config(folder), read_provenance(folder)


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of the run in `folder`; for the errors see `read_settings`."""
    path = folder / CONFIG
    try:
        with disk_errors("read", path):
            config, fits = unsigned(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise BadRun(f"{path} is damaged: {error}; run the experiment again to write it anew") from error
    if fits is False:
        raise BadRun(
            f"{path} was edited, or is damaged: its values do not fit its checksum.  It records what the rows were "
            "computed with.  Undo the change; or run the experiment again with the configuration that you want, which "
            "computes what is missing and writes this file anew"
        )
    return config


def read_provenance(folder: Path) -> dict[str, Any]:
    """The provenance of the run in `folder`; for the errors see `read_settings`."""
    path = folder / PROVENANCE
    try:
        provenance = read_json(path)
        version = int(provenance[VERSION])
    except FileNotFoundError:
        raise BadRun(f"{folder} has no {PROVENANCE}, which says what made its rows") from None
    except Damaged as error:
        raise BadRun(f"{error}; put back a copy of it: {HISTORY} may have one") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadRun(f"{path} is damaged: {error}; put back a copy of it: {HISTORY} may have one") from error
    if version > SCHEMA_VERSION:
        raise BadRun(
            f"{folder} was written by a newer loc_edit: its rows have schema version {version}, "
            f"and this one reads up to {SCHEMA_VERSION}; update loc_edit"
        )
    return provenance


def resume(
    folder: Path,
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    selection: Selection | None,
    check: Callable[[], None] | None = None,
) -> None:
    """Resumes the run in a folder: writes its new configuration and selection, and keeps the old ones in `history/`.

    Files of old versions, which have no checksum, get theirs.  `check` may refuse before anything is written.

    Raises:
        RunMismatch: the folder's run is of another model, of other facts or of another kind; or its configuration
            differs, and no selection says which rows belong to the new one.
        BadRun: the provenance is damaged; or the configuration is, and there is no selection.
    """
    earlier_provenance = read_provenance(folder)
    _refuse_another_model(folder, earlier_provenance, provenance)
    try:
        earlier_config = read_config(folder)
    except BadRun as error:
        if selection is None:
            raise
        log.warning("%s.  It is kept in %s, and written anew", error, folder / HISTORY)
        earlier_config = {}
    differing = differences(earlier_config, config)
    if selection is None and differing:
        raise RunMismatch(
            f"{folder} holds a run with another configuration: {describe(differing)}; "
            "choose another folder, or the same configuration"
        )
    if selection is not None and differing and earlier_config:
        _refuse_another_run(folder, earlier_config, config, selection)
    if check:
        check()
    if selection is not None:
        if differing:
            log.info("%s is resumed with another configuration: %s", folder, describe(differing))
            _archive(folder)
        _selection_in(folder)  # sets a damaged one aside
        selection.write(folder)
    _write_config(folder, config)
    write_json(folder / PROVENANCE, earlier_provenance, indent=2)


def _refuse_another_model(folder: Path, earlier: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuses to mix models, naming both fingerprints; other differences of provenance are logged."""
    differing = differences(earlier, new)
    if FINGERPRINT in differing:
        raise RunMismatch(
            f"{folder} holds a run of another model: {describe({FINGERPRINT: differing[FINGERPRINT]})}; "
            "choose another folder"
        )
    differing.pop("seed", None)  # the configuration has it
    if differing:
        log.warning("%s is resumed under other conditions: %s", folder, describe(differing))


def _refuse_another_run(folder: Path, earlier: Mapping[str, Any], new: Mapping[str, Any], selection: Selection) -> None:
    """Refuses a configuration that is not another version of the folder's run, but another run."""
    if ("grid" in earlier) != ("grid" in new):
        kinds = ("a tuning of settings", "an experiment")
        raise RunMismatch(f"{folder} holds {kinds['grid' not in earlier]}, and this is {kinds['grid' not in new]}")
    earlier_selection = _selection_in(folder)
    if earlier_selection is None or earlier.get("data") == new.get("data"):
        return
    if set(earlier_selection.facts.values()).isdisjoint(selection.facts.values()):
        raise RunMismatch(
            f"{folder} holds a run on other facts: data is {earlier.get('data')!r} there and {new.get('data')!r} "
            "here, and none of the facts is the same; choose another folder"
        )


def _selection_in(folder: Path) -> Selection | None:
    """The folder's selection; one that is damaged is set aside."""
    try:
        return Selection.read(folder)
    except Damaged:
        set_aside(folder / SELECTION)
        return None


def _archive(folder: Path) -> None:
    """Copies the present configuration and selection to `history/`, under the next number."""
    history = folder / HISTORY
    with disk_errors("make folder", history):
        history.mkdir(exist_ok=True)
    number = len(list(history.glob("*-config.toml"))) + 1
    for name in (CONFIG, SELECTION, PROVENANCE):
        if (folder / name).exists():
            write_atomic(history / f"{number:04d}-{name}", (folder / name).read_bytes())
