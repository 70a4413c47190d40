"""Reads many shards as one table."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from loc_edit.store.rows import SCHEMAS, BadRows, Kind, fill_nulls, is_list, sorted_rows
from loc_edit.store.selection import Selection
from loc_edit.store.shards import Shard


def read_table(
    kind: Kind, shards: Sequence[Shard], schema: pa.Schema, columns: list[str], facts: set[tuple[int, str]] | None
) -> tuple[pa.Table, int]:
    """Returns the rows of the shards, sorted, and the number of repeated rows that were left out.

    Args:
        kind: the kind of the rows.
        shards: the files to read.
        schema: their joint schema.
        columns: the columns to read, including those of the identity.
        facts: the ids and contents of the facts to read; `None` for all facts.
    """
    if not shards:
        return schema.empty_table().select(columns), 0
    paths = [str(shard.path) for shard in shards]
    table = ds.dataset(paths, schema=schema, format="parquet").to_table(columns=columns)
    if facts is not None and not all(
        facts.issuperset(shard_facts) for shard_facts in {shard.facts for shard in shards}
    ):
        table = _of_facts(table, facts)
    return sorted_rows(kind, fill_nulls(table))


def nearly_in_order(kind: Kind, shards: list[Shard], selection: Selection | None) -> list[Shard]:
    """Returns edit shards in the order of their rows, as far as their cells tell: sorted rows need no sorting.

    The rows of traces are sorted by fact first, so their cells tell nothing.
    """
    cells = {} if selection is None or kind == "traces" else selection.cells(kind)

    def place(shard: Shard) -> tuple[str, str, int, int]:
        cell = cells.get(shard.cell, {})
        problem, method = str(cell.get("problem", "")), str(cell.get("method", ""))
        return problem, method, int(cell.get("layer", 0)), int(cell.get("window", 0))

    return sorted(shards, key=place)


def _of_facts(table: pa.Table, facts: set[tuple[int, str]]) -> pa.Table:
    """Returns the rows of the facts; both the id and the content of a fact must match."""
    ids, contents = zip(*sorted(facts), strict=True) if facts else ((), ())
    known = pa.table({"fact_id": pa.array(ids, pa.int64()), "fact_content": pa.array(contents, pa.string())})
    index = pa.table({"index": pa.array(np.arange(len(table)))})
    pairs = table.select(["fact_id", "fact_content"]).append_column("index", index.column("index"))
    kept = pairs.join(known, ["fact_id", "fact_content"], join_type="left semi").column("index")
    return table.take(np.sort(kept.to_numpy()))


def joint_schema(kind: Kind, shards: Sequence[Shard]) -> pa.Schema:
    """Returns the columns of the kind and then all further columns of the shards by name, scalars before lists."""
    try:
        joint = pa.unify_schemas(
            [SCHEMAS[kind], *dict.fromkeys(shard.schema for shard in shards)], promote_options="permissive"
        )
    except pa.ArrowException as error:
        raise BadRows(f"{kind}: shards disagree about a column's type: {error}") from error
    own = SCHEMAS[kind].names
    further = sorted(set(joint.names) - set(own))
    return pa.schema(sorted((joint.field(name) for name in [*own, *further]), key=is_list))
