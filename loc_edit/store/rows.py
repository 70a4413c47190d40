"""What a row is: the columns of traces and edits, their types, their keys and their order."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from loc_edit.names import STATUSES, TRACING

SCHEMA_VERSION = 3
"""Version 2 has `fact_content`; the rows of version 1 are read as if it were empty.  Version 3 has `localizer`; all
trace rows before are of Causal Tracing."""

DEFAULTS = {"localizer": TRACING}
"""What stands in a key column that rows may leave out."""

Kind = Literal["traces", "edits"]


_FLOATS = pa.list_(pa.float64())

SCHEMAS: dict[str, pa.Schema] = {
    "traces": pa.schema(
        [
            ("fact_id", pa.int64()),
            ("localizer", pa.string()),
            ("site", pa.string()),
            ("window", pa.int32()),
            ("layer", pa.int32()),
            ("pos", pa.int32()),
            ("metric", pa.string()),
            ("p_restored", pa.float64()),
            ("p_clean", pa.float64()),
            ("p_corrupted", pa.float64()),
            ("subject_begin", pa.int32()),
            ("subject_end", pa.int32()),
            ("token", pa.string()),
            ("relation", pa.string()),
            ("degenerate", pa.bool_()),
            ("cell", pa.string()),
            ("fact_content", pa.string()),
        ]
    ),
    "edits": pa.schema(
        [
            ("problem", pa.string()),
            ("method", pa.string()),
            ("layer", pa.int32()),
            ("window", pa.int32()),
            ("fact_id", pa.int64()),
            ("seed", pa.int64()),
            ("status", pa.string()),
            ("reason", pa.string()),
            ("rewrite", pa.float64()),
            ("paraphrase", pa.float64()),
            ("neighborhood", pa.float64()),
            ("essence", pa.float64()),
            ("overall", pa.float64()),
            ("overall_essence", pa.float64()),
            ("target", pa.string()),
            ("objective", pa.string()),
            ("seconds", pa.float64()),
            ("cell", pa.string()),
            ("fact_content", pa.string()),
            ("rewrite_before", _FLOATS),
            ("rewrite_after", _FLOATS),
            ("paraphrase_before", _FLOATS),
            ("paraphrase_after", _FLOATS),
            ("neighborhood_before", _FLOATS),
            ("neighborhood_after", _FLOATS),
        ]
    ),
}
"""The columns every shard has, scalars before lists; a shard may have more."""

KEYS: dict[str, tuple[str, ...]] = {
    "traces": ("fact_id", "localizer", "site", "window", "layer", "pos"),
    "edits": ("problem", "method", "layer", "window", "fact_id"),
}
"""The columns that name a row; never null (those of `DEFAULTS` may be left out)."""

IDENTITIES: dict[str, tuple[str, ...]] = {
    "traces": (*KEYS["traces"], "metric", "cell", "fact_content"),
    "edits": (*KEYS["edits"], "seed", "cell", "fact_content"),
}
"""The key and the settings behind it: no two rows share it, and frames are sorted by it."""


class BadRows(ValueError):
    """Rows, given or found, that do not fit their schema; the message names the shard and the column."""


def to_table(kind: Kind, rows: Sequence[Mapping[str, Any]] | pd.DataFrame, shard: str) -> pa.Table:
    """`rows` as a table of the schema: columns that are absent or `None` become a default, NaN, "", -1, False or [].

    Args:
        kind: which schema.
        rows: mappings or a frame; columns that the schema does not know are kept.
        shard: the shard's name, for messages.

    Raises:
        BadRows: a key column is missing, a type is wrong, a status is unknown, or two rows share a key.
    """
    columns, n_rows = _columns(rows)
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
    """Refuses a shard whose `columns` lack one that rows cannot do without.

    Raises:
        BadRows: naming the missing columns and the shard.
    """
    needed = [name for name in KEYS[kind] if name not in DEFAULTS] + ["status"] * (kind == "edits")
    if missing := [name for name in needed if name not in columns]:
        raise BadRows(f"{kind} {shard}: no column {', '.join(map(repr, missing))}; rows need {', '.join(needed)}")


def is_list(field: pa.Field) -> bool:
    """Whether the column holds a list in each row."""
    return pa.types.is_nested(field.type)


def fill_nulls(table: pa.Table) -> pa.Table:
    """The table with defaults, NaN, "", -1 and False for what shards left out."""
    for index, field in enumerate(table.schema):
        if table.column(index).null_count and (empty := _empty(field)) is not None:
            filled = pc.fill_null(table.column(index), pa.scalar(empty, field.type))
            table = table.set_column(index, field, filled)
    return table


def in_order(kind: Kind, table: pa.Table) -> tuple[pa.Table, int]:
    """The table sorted by the rows' identity, one row for each, and how many repetitions that dropped."""
    place = _places(kind, table)
    order = np.argsort(place, kind="stable")
    place = place[order]
    first = np.ones(len(place), dtype=bool)
    first[1:] = place[1:] != place[:-1]
    n_repeated = int(len(first) - first.sum())
    if n_repeated:
        order = order[first]
    elif np.array_equal(order, np.arange(len(order))):
        return table, 0
    return table.take(pa.array(order)), n_repeated


def _places(kind: Kind, table: pa.Table) -> np.ndarray:
    """One integer per row, ordered as the rows' identities are, and equal where they are."""
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
    """For each value its rank among the distinct ones, and their number."""
    encoded = column.dictionary_encode(null_encoding="encode").combine_chunks()
    distinct = encoded.dictionary
    rank_of_code = np.empty(len(distinct), dtype=np.int64)
    rank_of_code[pc.sort_indices(distinct).to_numpy()] = np.arange(len(distinct))
    return rank_of_code[encoded.indices.to_numpy()], max(len(distinct), 1)


def _columns(rows: Sequence[Mapping[str, Any]] | pd.DataFrame) -> tuple[dict[str, Any], int]:
    if isinstance(rows, pd.DataFrame):
        return {str(name): rows[name].tolist() for name in rows.columns}, len(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}, len(rows)


def _array(values: list[Any] | None, n_rows: int, field: pa.Field, is_key: bool, shard: str) -> pa.Array:
    """A column; `field` of type null stands for whatever type the values have."""
    wanted = None if pa.types.is_null(field.type) else field.type
    if values is None:
        values = [DEFAULTS.get(field.name)] * n_rows
    if pa.types.is_list(field.type):
        values = [[] if value is None or isinstance(value, float) else value for value in values]
    try:
        array = pa.array(values, wanted, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise BadRows(f"{shard}: column {field.name!r} wants {wanted or 'one type'}: {error}") from error
    if is_key and array.null_count:
        raise BadRows(f"{shard}: column {field.name!r} names rows and is empty in row {array.is_null().index(True)}")
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
        raise BadRows(f"edits {shard}: status {sorted(unknown)[0]!r}; it is one of {', '.join(STATUSES)}")


def _check_unique(kind: Kind, table: pa.Table, shard: str) -> None:
    values, counts = np.unique(_places(kind, table), return_counts=True)
    if (counts > 1).any():
        row = int(np.flatnonzero(_places(kind, table) == values[counts > 1][0])[0])
        key = {name: table.column(name)[row].as_py() for name in KEYS[kind]}
        raise BadRows(f"{kind} {shard}: two rows have the key {key}")
