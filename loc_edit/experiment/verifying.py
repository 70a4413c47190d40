"""Checks everything that loc_edit has written to a folder, and says what is whole, what is not, and what to do.

Nothing is written, loaded into a model or computed again.  Folders of several things are searched.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loc_edit.analysis.run import load_run
from loc_edit.analysis.tables.rows import without_controls
from loc_edit.arguments import checked
from loc_edit.editing.update import FORMAT as EDIT, Edit
from loc_edit.experiment.stats_record import recorded_key_stats
from loc_edit.experiment.texts import saved_contexts
from loc_edit.files import ASIDE, CHECKSUM, StoreError, page_fits, read_json, unsigned
from loc_edit.keys.disk import TensorFile
from loc_edit.keys.moments import FORMAT as KEY_STATS
from loc_edit.keys.plausibility import check_moments
from loc_edit.models.catalog import ABOUT, damaged_files
from loc_edit.prompts.recall import FORMAT as ANSWERS
from loc_edit.store.folder import read_config, read_provenance
from loc_edit.store.layout import CONFIG, CONTEXTS, KEY_STATS as RECORDED, PROVENANCE, SELECTION, on_disk
from loc_edit.store.rows import KINDS
from loc_edit.store.selection import Selection
from loc_edit.store.shards import aside, shard_names, verify_shards

State = Literal["whole", "no checksum", "set aside", "damaged"]

DESCRIPTIONS: dict[str, Callable[[Path], Any]] = {
    CONFIG: read_config,
    PROVENANCE: read_provenance,
    SELECTION: Selection.read,
    CONTEXTS: lambda folder: saved_contexts(folder, 0),
    RECORDED: lambda folder: read_json(folder / RECORDED),
}
"""The descriptions in a run folder, each with the function that reads it."""

AGAIN = "run the experiment again: what is missing is computed again"
NO_CHECKSUM = "nothing: its form is right, but a changed value would not be noticed"


@dataclass(frozen=True)
class Finding:
    """What `verify` says about one thing.

    Attributes:
        path: the file or folder.
        kind: what it is, in words.
        state: `whole`: just what was written.  `no checksum`: of an old version, or not written by loc_edit; its form
            is right.  `set aside`: found damaged before, and not used any more.  `damaged`: not what was written.
        advice: what to do, and why; empty if it is whole.
    """

    path: Path
    kind: str
    state: State
    advice: str = ""

    @property
    def is_broken(self) -> bool:
        """Whether something that would be used is damaged."""
        return self.state == "damaged"


@checked
def verify(path: str | Path) -> list[Finding]:
    """Checks a run folder, a cache, an edit, a report, a model directory, or a folder of such things.

    Args:
        path: the file or folder; subfolders are searched.

    Returns:
        What is there, in the order of the names.  Files that are not of a kind that loc_edit writes are left out.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: it is no path, a file that loc_edit does not know, or a folder without any that it knows.
    """
    path = on_disk(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder to verify")
    findings = list(_folder(path) if path.is_dir() else _file(path, given=True))
    if not findings:
        raise ValueError(
            f"{path}: expected a run folder, a cache, an edit, a report or a model directory, or a folder of such "
            "things; nothing here was written by loc_edit"
        )
    return findings


def _folder(folder: Path) -> Iterator[Finding]:
    """What is in a folder, and below it if it is not itself a run or a model."""
    if (folder / CONFIG).is_file() or (folder / PROVENANCE).is_file() or (folder / SELECTION).is_file():
        yield from _run(folder)
        entries = [path for path in folder.iterdir() if path.suffix in (".html", ".safetensors")]
    elif (folder / ABOUT).is_file() or ((folder / "config.json").is_file() and any(folder.glob("*.safetensors"))):
        yield _model(folder)
        return
    else:
        entries = list(folder.iterdir())
    for path in sorted(entries):
        if path.name.endswith(ASIDE):
            yield _aside(path)
        elif path.is_dir() and not path.name.startswith("."):
            yield from _folder(path)
        elif path.is_file():
            yield from _file(path)


def _file(path: Path, *, given: bool = False) -> Iterator[Finding]:
    """What a file is, if it is of a known kind; a report of an old version has no mark, so it must be given by name."""
    if path.suffix in (".safetensors", ".checkpoint"):
        yield _tensors(path)
    elif path.suffix == ".jsonl" and (finding := _answers(path)):
        yield finding
    elif path.suffix == ".html":
        fits = page_fits(path.read_text(encoding="utf-8", errors="replace"))
        if fits is not None or given:
            advice = "write the report again, with `loc-edit report`"
            yield _finding(path, "report", fits, advice)


def _finding(path: Path, kind: str, fits: bool | None, advice: str) -> Finding:
    if fits is None:
        return Finding(path, kind, "no checksum", NO_CHECKSUM)
    return Finding(path, kind, "whole") if fits else Finding(path, kind, "damaged", advice)


def _aside(path: Path) -> Finding:
    return Finding(path, "damaged before", "set aside", "nothing: it is not used any more, and may be removed")


# Runs


def _run(folder: Path) -> Iterator[Finding]:
    """The descriptions of a run, then its rows."""
    descriptions = [finding for name in DESCRIPTIONS for finding in _description(folder, name)]
    yield from descriptions
    damaged: list[Finding] = []
    for kind in KINDS:
        paths = [folder / kind / name for name in shard_names(folder / kind)]
        shards = verify_shards(kind, paths)
        n_rows = sum(shard.n_rows for shard in shards if shard)
        if n_rows:
            yield Finding(folder / kind, f"{n_rows:,} rows of {kind} in {len(paths):,} files", "whole")
        damaged += [Finding(p, "rows", "damaged", AGAIN) for p, shard in zip(paths, shards, strict=True) if not shard]
        yield from (_aside(path) for path in aside(folder / kind))
    yield from damaged
    if not damaged and not any(finding.is_broken for finding in descriptions):
        yield from _mixed_rows(folder)


def _description(folder: Path, name: str) -> Iterator[Finding]:
    path, kind = folder / name, "description of a run"
    if name not in (CONFIG, PROVENANCE) and not path.exists():
        return
    try:
        DESCRIPTIONS[name](folder)
    except (ValueError, StoreError) as error:
        yield Finding(path, kind, "damaged", str(error))
        return
    has_checksum = re.search(rf'^\s*"?{CHECKSUM}"?\s*[=:]', path.read_text(encoding="utf-8"), re.MULTILINE)
    advice = "nothing: the next start of the run gives it one"
    yield Finding(path, kind, "whole") if has_checksum else Finding(path, kind, "no checksum", advice)


def _mixed_rows(folder: Path) -> Iterator[Finding]:
    """Rows that would be pooled though they were computed with different configurations or key statistics."""
    try:
        rows = without_controls(load_run(folder).edits)  # controls are copies from several layers
    except ValueError as error:
        yield Finding(folder, "rows", "damaged", str(error))
        return
    if "key_stats" not in rows:
        return
    known = recorded_key_stats(folder).values()  # several, if machines differed by rounding
    agreeing = max((len(checksums) for layers in known for checksums in layers.values()), default=1)
    per_cell = rows[rows["key_stats"] != ""].groupby("cell")["key_stats"].nunique()
    for cell in per_cell[per_cell > agreeing].index:
        words = "problem {problem}, {method}, layer {layer}".format_map(rows[rows["cell"] == cell].iloc[0])
        advice = f"{words}: some rows were computed with other key statistics than the rest; compare column key_stats"
        yield Finding(folder / "edits", "rows of one cell", "damaged", advice)


# Caches, edits and models


def _tensors(path: Path) -> Finding:
    """A safetensors file: key statistics, an edit, a checkpoint of a pass, or one that somebody else wrote."""
    kind = "safetensors file"
    try:
        file = TensorFile(path)
        kind = {KEY_STATS: "key statistics", EDIT: "edit"}.get(file.metadata.get("format", ""), kind)
        if kind == "edit":
            Edit.load(path)
        elif kind == "key statistics":
            check_moments(file, [int(name) for name in file.names])
        else:
            for name in file.names:
                file.read(name)
    except (OSError, ValueError) as error:
        again = {
            "edit": "make the edit again",
            "key statistics": "nothing: they are set aside and computed again when they are needed",
        }
        return Finding(path, kind, "damaged", f"{error}; {again.get(kind, 'make or copy it again')}")
    if not file.checksums and kind == "key statistics":
        return Finding(path, kind, "no checksum", "nothing: they look like key statistics, and get one when next used")
    return _finding(path, kind, True if file.checksums else None, "")


def _answers(path: Path) -> Finding | None:
    """A file of answers; `None` if the file is something else."""
    header, *lines = path.read_bytes().decode("utf-8", "replace").split("\n")
    if ANSWERS.rpartition("/")[0] not in header:
        return None
    states = [_line_fits(line) for line in (header, *lines[:-1])]  # the last line is empty, or a stop cut it short
    advice = "nothing: the next use sets it aside and keeps the whole lines"
    damaged = states.count(False) or (states[0] and states.count(None))
    return _finding(path, "answers", False if damaged else states[0], advice)


def _line_fits(line: str) -> bool | None:
    try:
        return unsigned(json.loads(line))[1]
    except ValueError:
        return False


def _model(folder: Path) -> Finding:
    """A model directory: a converted model by its checksums, any other by the form of its files."""
    if (folder / ABOUT).is_file():
        damaged = damaged_files(folder)
        advice = f"{', '.join(damaged or ())}: it is set aside and made again when it is next loaded"
        return _finding(folder, "converted model", None if damaged is None else not damaged, advice)
    for path in sorted(folder.glob("*.safetensors")):
        finding = _tensors(path)
        if finding.is_broken:
            return Finding(folder, "model directory", "damaged", f"{finding.advice}")
    return Finding(folder, "model directory", "no checksum", NO_CHECKSUM)
