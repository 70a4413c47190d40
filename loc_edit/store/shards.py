"""One unit of work, one Parquet file: named by the unit and by its own checksum.

The file of unit `key` is `<key>.<digest>.parquet`, where the digest is the first 16 hexadecimal digits of the
SHA-256 of the file's bytes (`sha256sum` shows it).  So a shard carries the proof that it is whole, appears by
one rename, can be copied anywhere, and needs no second file that could disagree with it.
"""

import errno
import hashlib
import logging
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
import pyarrow.parquet as pq

from loc_edit.files import disk_errors, write_atomic
from loc_edit.store.rows import SCHEMA_VERSION, BadRows, Kind, check_keys, to_table

log = logging.getLogger(__name__)

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]{0,159}")
_NAME = re.compile(r"(?P<key>.+)\.(?P<digest>[0-9a-f]{16})\.parquet")
_VERSION = b"loc_edit.schema_version"
_CELL = b"loc_edit.cell"
_FACTS = b"loc_edit.facts"

Facts = tuple[tuple[int, str], ...]
"""The ids of facts with the names of their contents."""


@dataclass(frozen=True)
class Shard:
    """A shard whose checksum has been verified.

    Attributes:
        key: the unit's name.
        path: the file.
        n_rows: rows in it.
        schema: its columns.
        cell: the cell of its rows; empty where they have several or none.
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

    Needs no lock, so workers may call it side by side.  An earlier shard of that unit is left alone; where
    there are two, readers take the first by name, for both are whole.

    Raises:
        BadRows: the key is no file name, or the rows do not fit the schema of `kind`.
        StoreError: the disk refused.
    """
    if not _KEY.fullmatch(key):
        raise BadRows(f"the key {key!r} of a shard of {kind} is not 1 to 160 letters, digits and _ . = + -")
    return write_table(folder, kind, key, to_table(kind, rows, key))


def write_table(folder: Path, kind: Kind, key: str, table: pa.Table) -> Shard:
    """Likewise of rows that fit their schema."""
    about = _about(table)
    metadata = {
        _VERSION: str(SCHEMA_VERSION).encode(),
        b"loc_edit.kind": kind.encode(),
        b"loc_edit.key": key.encode(),
        **about,
    }
    data = _parquet(table.replace_schema_metadata(metadata))
    path = folder / f"{key}.{_digest(data)}.parquet"
    write_atomic(path, data)
    return Shard(key, path, len(table), table.schema, about[_CELL].decode(), _facts_of(about[_FACTS]))


def shard_size(kind: Kind, rows: Sequence[Mapping[str, Any]] | pd.DataFrame) -> int:
    """Bytes of a shard of these rows, but for some hundred that its key and version take; writes nothing."""
    return len(_parquet(to_table(kind, rows, "measured")))


def remove_shard(path: Path) -> None:
    """Removes a shard, if it is there."""
    with disk_errors("remove", path):
        path.unlink(missing_ok=True)


def shard_names(folder: Path) -> list[str]:
    """The names of the shards in `folder`, sorted; other files are left alone."""
    if not folder.is_dir():
        return []
    with disk_errors("list", folder), os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _NAME.fullmatch(entry.name))


def verify_shards(kind: Kind, paths: Sequence[Path]) -> list[Shard | None]:
    """Each file as a verified `Shard`, or `None` if it is damaged or gone.

    Raises:
        BadRows: a shard is whole, but of a newer schema or without its key columns.
        StoreError: a shard may not be read.
    """
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda path: _verify(kind, path), paths))


def set_aside(path: Path) -> None:
    """Renames a damaged shard to `_<name>.corrupt`, where no reader of Parquet folders looks."""
    aside = path.with_name(f"_{path.name}.corrupt")
    with disk_errors("set aside", path):
        try:
            path.replace(aside)
        except FileNotFoundError:
            return
    log.warning("%s does not match its checksum: set aside as %s, to be computed again", path, aside.name)


def aside(folder: Path) -> list[Path]:
    """The damaged shards in `folder` that were set aside, by name."""
    return sorted(folder.glob("_*.parquet.corrupt"))


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
    if _digest(data) != name["digest"]:
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


def _about(table: pa.Table) -> dict[bytes, bytes]:
    """What a shard says of itself, for those who look for a cell or a fact without reading rows."""
    cells = table.column("cell").unique().to_pylist()
    pairs = table.select(["fact_id", "fact_content"]).group_by(["fact_id", "fact_content"], use_threads=False)
    facts = sorted(zip(*pairs.aggregate([]).to_pydict().values(), strict=True))
    text = " ".join(f"{fact_id}:{content}" for fact_id, content in facts)
    return {_CELL: (cells[0] if len(cells) == 1 else "").encode(), _FACTS: text.encode()}


@cache
def _facts_of(text: bytes) -> Facts:
    """The facts that a shard names; kept, as many shards have the same."""
    pairs = (pair.partition(":") for pair in text.decode().split())
    return tuple((int(fact_id), content) for fact_id, _, content in pairs)


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    strings = [field.name for field in table.schema if pa.types.is_string(field.type)]
    pq.write_table(table, sink, compression="zstd", use_dictionary=strings, write_statistics=False)
    return sink.getvalue().to_pybytes()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
