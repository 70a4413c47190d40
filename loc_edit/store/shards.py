"""Shards: Parquet files with the rows of one unit of work, named by the unit and by the file's checksum.

The file of unit `key` is `<key>.<digest>.parquet`, where the digest is the first 16 hexadecimal digits of the
SHA-256 of the file's bytes (`sha256sum` shows it).  So the name of a shard proves that it is whole.  A shard appears by
one rename, can be copied anywhere, and needs no second file that could disagree with it.
"""

import errno
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from loc_edit.files import ASIDE, disk_errors, short_hash, write_atomic
from loc_edit.store.rows import SCHEMA_VERSION, BadRows, Kind, check_keys, to_table

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]{0,159}")
_NAME = re.compile(r"(?P<key>.+)\.(?P<digest>[0-9a-f]{16})\.parquet")
_VERSION = b"loc_edit.schema_version"
_CELL = b"loc_edit.cell"
_FACTS = b"loc_edit.facts"

Facts = tuple[tuple[int, str], ...]
"""Ids of facts, each with the name of the fact's content."""


@dataclass(frozen=True)
class Shard:
    """A shard whose checksum has been verified.

    Attributes:
        key: the unit's name.
        path: the file.
        n_rows: rows in it.
        schema: its columns.
        cell: the cell of its rows; empty if they have several or none.
        facts: the facts of its rows; shards of the same facts share one tuple.
    """

    key: str
    path: Path
    n_rows: int
    schema: pa.Schema
    cell: str = ""
    facts: Facts = ()


def write_shard(folder: Path, kind: Kind, key: str, rows: Sequence[Mapping[str, Any]] | pd.DataFrame) -> Shard:
    """Writes the rows of unit `key` into `folder`, whole or not at all.

    Several workers may call it at the same time without a lock.  An earlier shard of the unit stays; of two shards of
    a unit, readers take the first by name, as both are whole.

    Raises:
        BadRows: the key is not a file name, or the rows do not fit the schema of `kind`.
        StoreError: the disk refused.
    """
    if not _KEY.fullmatch(key):
        raise BadRows(f"the key {key!r} of a shard of {kind}: expected 1 to 160 letters, digits and _ . = + -")
    return write_table(folder, kind, key, to_table(kind, rows, key))


def write_table(folder: Path, kind: Kind, key: str, table: pa.Table) -> Shard:
    """Writes a table that fits the schema: see `write_shard`."""
    cell, facts = _contents(table)
    metadata = {
        _VERSION: str(SCHEMA_VERSION).encode(),
        b"loc_edit.kind": kind.encode(),
        b"loc_edit.key": key.encode(),
        _CELL: cell,
        _FACTS: facts,
    }
    data = _parquet(table.replace_schema_metadata(metadata))
    path = folder / f"{key}.{short_hash(data)}.parquet"
    write_atomic(path, data)
    return Shard(key, path, len(table), table.schema, cell.decode(), _facts_of(facts))


def without_failed(kind: Kind, shard: Shard) -> Shard | None:
    """The shard without failed rows, so that their facts count as not done; `None` if it had no others.

    An edit row says in its status that it failed; a trace row has a reason only then, and a sequence no edits.
    """
    table = pq.read_table(shard.path)
    if kind == "edits":
        failed = pc.equal(table["status"], "failed")
    elif kind == "sequences":
        failed = pc.equal(table["n_edits"], 0)
    elif "reason" in table.column_names:
        failed = pc.not_equal(pc.fill_null(table["reason"], ""), "")
    else:
        return shard
    kept = table.filter(pc.invert(failed))
    if len(kept) == len(table):
        return shard
    rest = write_table(shard.path.parent, kind, shard.key, kept) if len(kept) else None
    remove_shard(shard.path)
    return rest


def shard_size(kind: Kind, rows: Sequence[Mapping[str, Any]] | pd.DataFrame) -> int:
    """The size of a shard of these rows in bytes, apart from some hundred bytes for its key and version."""
    return len(_parquet(to_table(kind, rows, "measured")))


def remove_shard(path: Path) -> None:
    """Removes a shard, if it is there."""
    with disk_errors("remove", path):
        path.unlink(missing_ok=True)


def shard_names(folder: Path) -> list[str]:
    """The names of the shards in `folder`, sorted; other files are not listed."""
    if not folder.is_dir():
        return []
    with disk_errors("list", folder), os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _NAME.fullmatch(entry.name))


def verify_shards(kind: Kind, paths: Sequence[Path]) -> list[Shard | None]:
    """Returns each file as a verified `Shard`, or `None` if the file is damaged or gone.

    Raises:
        BadRows: a whole shard has a newer schema or lacks key columns.
        StoreError: the disk refused to read a shard.
    """
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda path: _verify(kind, path), paths))


def aside(folder: Path) -> list[Path]:
    """The damaged shards in `folder` that were set aside, by name."""
    return sorted(folder.glob(f"_*.parquet{ASIDE}"))


def _verify(kind: Kind, path: Path) -> Shard | None:
    name = _NAME.fullmatch(path.name)
    assert name, path
    with disk_errors("read", path):
        try:
            data = path.read_bytes()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EIO):
                return None
            raise
    if short_hash(data) != name["digest"]:
        return None
    footer = pq.ParquetFile(pa.BufferReader(data))
    schema = footer.schema_arrow
    metadata = schema.metadata or {}
    version = int(metadata.get(_VERSION, SCHEMA_VERSION))
    if version > SCHEMA_VERSION:
        raise BadRows(f"{path} has rows of schema version {version}; this loc_edit reads up to {SCHEMA_VERSION}")
    check_keys(kind, schema.names, str(path))
    cell, facts = metadata.get(_CELL, b"").decode(), _facts_of(metadata.get(_FACTS, b""))
    return Shard(name["key"], path, footer.metadata.num_rows, schema.remove_metadata(), cell, facts)


def _contents(table: pa.Table) -> tuple[bytes, bytes]:
    """The cell and the facts of a shard, as its footer names them: so they are known without reading rows."""
    cells = table.column("cell").unique().to_pylist()
    pairs = table.select(["fact_id", "fact_content"]).group_by(["fact_id", "fact_content"], use_threads=False)
    facts = sorted(zip(*pairs.aggregate([]).to_pydict().values(), strict=True))
    text = " ".join(f"{fact_id}:{content}" for fact_id, content in facts)
    return (cells[0] if len(cells) == 1 else "").encode(), text.encode()


@cache
def _facts_of(text: bytes) -> Facts:
    """The facts that a footer names; kept in memory once, as many shards have the same facts."""
    pairs = (pair.partition(":") for pair in text.decode().split())
    return tuple((int(fact_id), content) for fact_id, _, content in pairs)


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    strings = [field.name for field in table.schema if pa.types.is_string(field.type)]
    pq.write_table(table, sink, compression="zstd", use_dictionary=strings, write_statistics=False)
    return sink.getvalue().to_pybytes()
