"""A run folder: one writer at a time creates or resumes it, and anyone may read it."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import pandas as pd
import pyarrow as pa

from loc_edit.files import Damaged, disk_errors, remove_temporaries, set_aside
from loc_edit.store.compacting import ROWS, compact
from loc_edit.store.folder import VERSION, read_settings, refuse_strangers, resume, write_settings
from loc_edit.store.inventory import cells_in, n_left_out
from loc_edit.store.layout import CONFIG, CONTEXTS, SELECTION, BadRun, on_disk
from loc_edit.store.lock import FolderLock
from loc_edit.store.reading import joint_schema, nearly_in_order, read_table
from loc_edit.store.rows import IDENTITIES, KINDS, SCHEMA_VERSION, BadRows, Kind, is_list
from loc_edit.store.selection import Selection
from loc_edit.store.settings import plain
from loc_edit.store.shards import Shard, remove_shard, shard_names, verify_shards, without_failed, write_shard

log = logging.getLogger(__name__)

Opened = TypeVar("Opened", bound="RunFolder")


class RunFolder:
    """A run folder, which reads its rows as frames and, if made by `create`, writes rows.

    Made by `create` (to write) or `open` (to read).  A writer holds the folder's lock until `close`, or until its
    `with` block or the process ends.

    Attributes:
        path: the folder.
        config: the resolved configuration, as `config.toml` holds it.
        provenance: versions, seed, model fingerprint and the version of the rows' schema, at the first start.
        selection: the cells and facts of the configuration; `None` if all rows of the folder count.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        provenance: Mapping[str, Any],
        lock: FolderLock | None = None,
        selection: Selection | None = None,
    ) -> None:
        self.path = path
        self.config = config
        self.provenance = provenance
        self.selection = selection
        self._lock = lock
        self._known: dict[str, dict[str, Shard]] = {kind: {} for kind in KINDS}
        self._damaged: set[Path] = set()
        self._tables: dict[str, tuple[Any, Any]] = {}

    @classmethod
    def create(
        cls: type[Opened],
        path: str | Path,
        config: Mapping[str, Any],
        provenance: Mapping[str, Any],
        selection: Selection | None = None,
        check: Callable[[Opened], None] | None = None,
    ) -> Opened:
        """Makes a run folder, or resumes the run in it.

        Without a selection the configuration must be the same as the folder's.  With one, `config` replaces the
        folder's configuration, which is kept in `history/`, and only selected rows are read.

        Args:
            path: the folder; it and its parents are made if necessary.
            config: the resolved configuration: nested tables of plain values.  `None` counts as left out.
            provenance: a flat mapping of versions, seed and `model_fingerprint`.  A different fingerprint is
                refused; other differences from an earlier start are logged.
            selection: the cells and facts of the configuration.
            check: refuses, by an error, to resume a run with the rows that it has; called before anything is written.

        Raises:
            RunMismatch: the folder holds a run of another model, of other facts, or, without a selection, of another
                configuration.
            BadRun: the path is an address, a file, a folder with other content, or a run that cannot be read.
            RunLocked: another writer has the folder.
            StoreError: the disk refused.
        """
        folder = on_disk(path)
        config = plain(config)
        provenance = {VERSION: SCHEMA_VERSION} | plain(provenance, "provenance")
        refuse_strangers(folder)
        with disk_errors("make folder", folder):
            folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder)
        try:
            run = cls(folder, config, provenance, lock, selection)
            if (folder / CONFIG).exists():
                resume(folder, config, provenance, selection, partial(check, run) if check else None)
            else:
                write_settings(folder, config, provenance, selection)
            for place in (folder, *(folder / kind for kind in KINDS)):
                with disk_errors("make folder", place):
                    place.mkdir(exist_ok=True)
                remove_temporaries(place)
            run.config, run.provenance = read_settings(folder)
            for kind in KINDS:
                run._shards(kind)
            return run
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(cls: type[Opened], path: str | Path) -> Opened:
        """Opens a run folder for reading, also while it is being written.

        Raises:
            BadRun: the folder does not exist, is no folder on a disk, or holds no run that this version can read.
        """
        folder = on_disk(path)
        if not folder.exists():
            raise BadRun(f"no run at {folder}: there is no such folder")
        if not folder.is_dir():
            raise BadRun(f"no run at {folder}: that is a file, and a run is a folder")
        if not (folder / CONFIG).exists():
            reason = f"holds no {CONFIG}" if any(folder.iterdir()) else "is empty"
            raise BadRun(f"no run at {folder}: the folder {reason}")
        try:
            selection = Selection.read(folder)
        except Damaged as error:
            raise BadRun(str(error)) from error
        return cls(folder, *read_settings(folder), selection=selection)

    def close(self) -> None:
        """Gives the folder's lock back; the run can still be read."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self: Opened) -> Opened:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def write(self, kind: Kind, key: str, rows: Sequence[Mapping[str, Any]] | pd.DataFrame) -> Shard:
        """Writes the rows of one unit of work, all or none, in place of the unit's earlier rows; returns their file.

        When this returns, the rows are on the disk.  A unit without rows is done, too.

        Args:
            kind: "traces", "edits" or "sequences".
            key: the unit's name, the same at every start: letters, digits and `_ . = + -`.
            rows: as mappings or a frame; columns as in `rows.SCHEMAS`, further columns are kept.

        Raises:
            BadRows: the rows do not fit the schema, or the key is not a file name.
            StoreError: the disk refused; rows written before are kept.
        """
        self._refuse_reader()
        shard = write_shard(self.path / kind, kind, key, rows)
        earlier = self._known[kind].get(key)
        self._known[kind][key] = shard
        if earlier is not None and earlier.path != shard.path:
            remove_shard(earlier.path)
        return shard

    def forget_failed(self) -> None:
        """Removes the rows of edits and traces that failed, so that they count as not done."""
        self._refuse_reader()
        for kind in KINDS:
            rest = [without_failed(kind, shard) for shard in self._shards(kind).values()]
            self._known[kind] = {shard.key: shard for shard in rest if shard}

    def compact(self, rows: int = ROWS) -> int:
        """Joins small shards of a cell, which makes reading many rows fast; returns the number of files saved.

        Rows stay as they are, and the run can go on and grow as before.
        """
        self._refuse_reader()
        joined = (compact(kind, self._shards(kind).values(), rows) for kind in KINDS)
        return sum(len(replaced) - 1 for pairs in joined for _, replaced in pairs)

    def done(self, kind: Kind) -> set[str]:
        """The units whose rows are on disk and whole; all others must still be computed."""
        return set(self._shards(kind))

    def shards(self, kind: Kind) -> list[Shard]:
        """The files of the units that are done."""
        return list(self._shards(kind).values())

    @property
    def damaged(self) -> list[Path]:
        """Shards seen so far that do not match their checksum; a writer sets them aside instead."""
        return sorted(self._damaged)

    @property
    def traces(self) -> pd.DataFrame:
        """The trace rows of all localizers, sorted by fact, localizer, site, window, layer and position."""
        return self.read("traces")

    @property
    def edits(self) -> pd.DataFrame:
        """The edit rows, sorted by problem, method, layer, window and fact; `read` gives the lists too."""
        return self.read("edits")

    @property
    def sequences(self) -> pd.DataFrame:
        """The rows of edits in sequence, one per number of edits, sorted by problem, method, way, layer and window."""
        return self.read("sequences")

    def read(
        self,
        kind: Kind,
        columns: Sequence[str] | None = None,
        *,
        lists: bool = False,
        cells: Collection[str] | Literal["present", "all"] = "present",
    ) -> pd.DataFrame:
        """Reads rows as a new frame, in an order that does not depend on the order of writing.

        Args:
            kind: "traces", "edits" or "sequences".
            columns: the columns of the frame, in order; `None` for all scalar columns.
            lists: with `columns=None`, the list columns too (raw probabilities before and after).
            cells: "present" for the rows of the present configuration and its facts, "all" for every row in the
                folder, or the names of cells (see `cells`), whose rows are read for all facts.

        Raises:
            BadRows: a column does not exist, or a shard cannot be read with this version.
            BadRun: an experiment's folder has lost the selection that says which cells are present.
        """
        shards = list(self._shards(kind).values())
        schema = joint_schema(kind, shards)
        if columns is None:
            columns = [field.name for field in schema if lists or not is_list(field)]
        if unknown := [name for name in columns if name not in schema.names]:
            raise BadRows(f"{kind} have no column {unknown[0]!r}; expected one of {', '.join(schema.names)}")
        facts: set[tuple[int, str]] | None = None
        if cells == "present" and self.selection is not None:
            cells, facts = set(self.selection.cells(kind)), set(self.selection.facts.items())
        elif cells == "present" and (self.path / CONTEXTS).exists():  # an experiment wrote both
            raise BadRun(
                f"{self.path} has lost its {SELECTION}, which says which rows belong to its configuration: run the "
                "experiment again to write it anew, or read with cells='all'"
            )
        if not isinstance(cells, str):
            shards = [shard for shard in shards if shard.cell in cells]
        shards = nearly_in_order(kind, shards, self.selection)
        return self._table(kind, shards, schema, list(columns), facts).select(list(columns)).to_pandas()

    def cells(self, kind: Kind) -> pd.DataFrame:
        """Lists the cells that have rows in the folder: `cell, rows, facts, present` and the cell's description.

        Cells with `present` false belong to earlier configurations (`history/`); `read(..., cells=[cell])` reads them.
        """
        return cells_in(self.path, kind, self._shards(kind).values(), self.selection)

    def kept(self) -> int:
        """Counts the rows of earlier configurations, which are left out of frames by default."""
        return sum(n_left_out(kind, self._shards(kind).values(), self.selection) for kind in KINDS)

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.path}"

    def _refuse_reader(self) -> None:
        if self._lock is None:
            raise BadRun(f"{self.path} is open for reading only; Run.create opens it for writing")

    def _shards(self, kind: Kind) -> dict[str, Shard]:
        """The verified shards in the folder by unit, one per unit; only new files are opened."""
        folder = self.path / kind
        known = {shard.path.name: shard for shard in self._known[kind].values()}
        names = [name for name in shard_names(folder) if folder / name not in self._damaged]
        fresh = [folder / name for name in names if name not in known]
        for path, shard in zip(fresh, verify_shards(kind, fresh), strict=True):
            if shard is not None:
                known[path.name] = shard
            else:
                self._refuse_damaged(path)
        self._known[kind] = {}
        for shard in (known[name] for name in names if name in known):
            first = self._known[kind].setdefault(shard.key, shard)
            if first is not shard and self._lock is not None:  # a kill between a rename and a removal
                remove_shard(shard.path)
        return self._known[kind]

    def _refuse_damaged(self, path: Path) -> None:
        if self._lock is not None:
            set_aside(path)
        elif path.exists():
            self._damaged.add(path)
            log.warning("%s does not match its checksum: its rows are left out", path)

    def _table(
        self, kind: Kind, shards: list[Shard], schema: pa.Schema, columns: list[str], facts: set[tuple[int, str]] | None
    ) -> pa.Table:
        """At least `columns` of the facts' rows, sorted; the last table of each kind is kept in memory."""
        source = ([shard.path for shard in shards], facts)
        last_source, table = self._tables.get(kind, (None, None))
        if last_source == source and set(columns) <= set(table.column_names):
            return table
        with disk_errors("read", self.path / kind):
            names = list(dict.fromkeys([*IDENTITIES[kind], *columns]))
            table, n_repeated = read_table(kind, shards, schema, names, facts)
        if n_repeated:
            log.warning("%s: %d rows of %s are in more than one shard; each is taken once", self.path, n_repeated, kind)
        self._tables[kind] = source, table
        return table
