"""The rows of traces, edits and sequences of edits: their columns and types, their keys and their order."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from loc_edit.names import STATUSES, TRACING

SCHEMA_VERSION = 3
"""Version 2 added `fact_content`; in rows of version 1 it is read as empty.  Version 3 added `localizer`; all earlier
trace rows are of Causal Tracing."""

DEFAULTS = {"localizer": TRACING}
"""The values of key columns that rows may leave out."""

Kind = Literal["traces", "edits", "sequences"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def _columns(kind: pa.DataType, *names: str) -> list[pa.Field]:
    return [pa.field(name, kind) for name in names]


SCHEMAS: dict[str, pa.Schema] = {
    "traces": pa.schema(
        [
            *_columns(pa.int64(), "fact_id"),
            *_columns(pa.string(), "localizer", "site"),
            *_columns(pa.int32(), "window", "layer", "pos"),
            *_columns(pa.string(), "metric"),
            *_columns(pa.float64(), "p_restored", "p_clean", "p_corrupted"),
            *_columns(pa.int32(), "subject_begin", "subject_end"),
            *_columns(pa.string(), "token", "relation"),
            *_columns(pa.bool_(), "degenerate"),
            *_columns(pa.string(), "cell", "fact_content"),
        ]
    ),
    "edits": pa.schema(
        [
            *_columns(pa.string(), "problem", "method"),
            *_columns(pa.int32(), "layer", "window"),
            *_columns(pa.int64(), "fact_id", "seed"),
            *_columns(pa.string(), "status", "reason"),
            *_columns(pa.float64(), "rewrite", "paraphrase", "neighborhood", "essence", "overall", "overall_essence"),
            *_columns(pa.string(), "target", "objective"),
            *_columns(pa.float64(), "seconds"),
            *_columns(pa.string(), "cell", "fact_content"),
            *_columns(pa.list_(pa.float64()), "rewrite_before", "rewrite_after", "paraphrase_before"),
            *_columns(pa.list_(pa.float64()), "paraphrase_after", "neighborhood_before", "neighborhood_after"),
        ]
    ),
    "sequences": pa.schema(
        [
            *_columns(pa.string(), "problem", "method", "way"),
            *_columns(pa.int32(), "layer", "window", "n_edits"),
            *_columns(pa.int64(), "fact_id", "seed"),
            *_columns(
                pa.float64(), "rewrite_last", "rewrite_first", "rewrite", "paraphrase", "neighborhood", "essence"
            ),
            *_columns(pa.float64(), "perplexity", "perplexity_before", "norm", "change", "seconds"),
            *_columns(pa.int32(), "failed"),
            *_columns(pa.string(), "reason", "cell", "fact_content"),
        ]
    ),
}
"""The columns that every shard has, scalars before lists; a shard may have more."""

KEYS: dict[str, tuple[str, ...]] = {
    "traces": ("fact_id", "localizer", "site", "window", "layer", "pos"),
    "edits": ("problem", "method", "layer", "window", "fact_id"),
    "sequences": ("problem", "method", "way", "layer", "window", "n_edits"),
}
"""The columns that name a row; never null (columns in `DEFAULTS` may be left out)."""

IDENTITIES: dict[str, tuple[str, ...]] = {
    "traces": (*KEYS["traces"], "metric", "cell", "fact_content"),
    "edits": (*KEYS["edits"], "seed", "cell", "fact_content"),
    "sequences": (*KEYS["sequences"], "seed", "cell"),
}
"""The columns of the key and of the settings behind it: no two rows agree in all, and frames are sorted by them."""


class BadRows(ValueError):
    """Rows do not fit their schema; the message names the shard and the column."""


def to_table(kind: Kind, rows: Sequence[Mapping[str, Any]] | pd.DataFrame, shard: str) -> pa.Table:
    """Makes a table of the schema from `rows`; an absent column or `None` becomes a default, NaN, "", -1, False or [].

    Args:
        kind: which schema.
        rows: mappings or a frame; columns that the schema does not know are kept.
        shard: the shard's name, for messages.

    Raises:
        BadRows: a key column is missing, a type is wrong, a status is unknown, or two rows share a key.
    """
    columns, n_rows = _values(rows), len(rows)
    if n_rows:
        check_keys(kind, columns, shard)
    schema = SCHEMAS[kind]
    arrays = {
        field.name: _array(columns.pop(field.name, None), n_rows, field, field.name in KEYS[kind], f"{kind} {shard}")
        for field in schema
    }
    for name, values in columns.items():
        arrays[name] = _array(values, n_rows, pa.field(name, pa.null()), False, f"{kind} {shard}")
    table = pa.table(arrays)
    _check_statuses(kind, table, shard)
    _check_unique(kind, table, shard)
    return table


def check_keys(kind: Kind, columns: Any, shard: str) -> None:
    """Refuses a shard in which a needed column is missing, naming the column and the shard."""
    needed = [name for name in KEYS[kind] if name not in DEFAULTS] + ["status"] * (kind == "edits")
    if missing := [name for name in needed if name not in columns]:
        raise BadRows(f"{kind} {shard}: no column {', '.join(map(repr, missing))}; rows need {', '.join(needed)}")


def is_list(field: pa.Field) -> bool:
    """Whether the column holds a list in each row."""
    return pa.types.is_nested(field.type)


def fill_nulls(table: pa.Table) -> pa.Table:
    """Returns the table with nulls replaced by defaults, NaN, "", -1 and False."""
    for index, field in enumerate(table.schema):
        if table.column(index).null_count and (empty := _empty(field)) is not None:
            filled = pc.fill_null(table.column(index), pa.scalar(empty, field.type))
            table = table.set_column(index, field, filled)
    return table


def sorted_rows(kind: Kind, table: pa.Table) -> tuple[pa.Table, int]:
    """Returns the table sorted by identity, one row for each, and the number of repeated rows that were dropped."""
    place = _places(kind, table)
    order = np.argsort(place, kind="stable")
    place = place[order]
    repeated = place[1:] == place[:-1]
    order = np.delete(order, 1 + np.flatnonzero(repeated))
    if np.array_equal(order, np.arange(len(table))):
        return table, 0
    return table.take(pa.array(order)), int(repeated.sum())


def _places(kind: Kind, table: pa.Table) -> np.ndarray:
    """Returns one integer per row, ordered like the rows' identities, and equal where the identities are equal."""
    place = np.zeros(len(table), dtype=np.int64)
    size = 1
    for name in IDENTITIES[kind]:
        if name not in table.column_names:
            continue
        ranks, n_ranks = _ranks(table.column(name))
        if size * n_ranks >= 2**62:
            _, place = np.unique(place, return_inverse=True)
            size = len(table)
        place = place * n_ranks + ranks
        size *= n_ranks
    return place


def _ranks(column: pa.ChunkedArray) -> tuple[np.ndarray, int]:
    """Returns the rank of each value among the distinct values, and the number of distinct values."""
    encoded = column.dictionary_encode(null_encoding="encode").combine_chunks()
    distinct = encoded.dictionary
    rank_of_code = np.empty(len(distinct), dtype=np.int64)
    rank_of_code[pc.sort_indices(distinct).to_numpy()] = np.arange(len(distinct))
    return rank_of_code[encoded.indices.to_numpy()], max(len(distinct), 1)


def _values(rows: Sequence[Mapping[str, Any]] | pd.DataFrame) -> dict[str, list[Any]]:
    if isinstance(rows, pd.DataFrame):
        return {str(name): rows[name].tolist() for name in rows.columns}
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _array(values: list[Any] | None, n_rows: int, field: pa.Field, is_key: bool, shard: str) -> pa.Array:
    """Makes a column; if the type of `field` is null, the values decide the type."""
    kind = None if pa.types.is_null(field.type) else field.type
    if values is None:
        values = [DEFAULTS.get(field.name)] * n_rows
    if pa.types.is_list(field.type):
        values = [[] if value is None or isinstance(value, float) else value for value in values]
    try:
        array = pa.array(values, kind, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise BadRows(f"{shard}: column {field.name!r}: expected {kind or 'values of one type'}: {error}") from error
    if is_key and array.null_count:
        row = array.is_null().index(True)
        raise BadRows(f"{shard}: column {field.name!r} is part of the key and is empty in row {row}")
    empty = _empty(pa.field(field.name, array.type))
    return array if empty is None else pc.fill_null(array, pa.scalar(empty, array.type))


def _empty(field: pa.Field) -> Any:
    if field.name in DEFAULTS:
        return DEFAULTS[field.name]
    kind = field.type
    if pa.types.is_floating(kind):
        return math.nan
    if pa.types.is_string(kind):
        return ""
    if pa.types.is_boolean(kind):
        return False
    return -1 if pa.types.is_signed_integer(kind) else None


def _check_statuses(kind: Kind, table: pa.Table, shard: str) -> None:
    if kind == "edits" and (unknown := set(table.column("status").unique().to_pylist()) - set(STATUSES)):
        raise BadRows(f"edits {shard}: status {sorted(unknown)[0]!r}: expected one of {', '.join(STATUSES)}")


def _check_unique(kind: Kind, table: pa.Table, shard: str) -> None:
    repeated = pd.Series(_places(kind, table)).duplicated()
    if repeated.any():
        row = int(repeated.argmax())
        key = {name: table.column(name)[row].as_py() for name in KEYS[kind]}
        raise BadRows(f"{kind} {shard}: two rows have the key {key}")
