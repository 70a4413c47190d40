"""Many shards as one table."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from loc_edit.store.rows import SCHEMAS, BadRows, Kind, fill_nulls, in_order, is_list
from loc_edit.store.selection import Selection
from loc_edit.store.shards import Shard


def read_table(
    kind: Kind, shards: Sequence[Shard], schema: pa.Schema, columns: list[str], facts: set[tuple[int, str]] | None
) -> tuple[pa.Table, int]:
    """The rows of shards, sorted, and how many repetitions were left out.

    Args:
        kind: of rows.
        shards: where they are.
        schema: the joint one.
        columns: those wanted; the identity's are among them.
        facts: ids and contents of the facts wanted; `None` for all.
    """
    if not shards:
        return schema.empty_table().select(columns), 0
    paths = [str(shard.path) for shard in shards]
    table = ds.dataset(paths, schema=schema, format="parquet").to_table(columns=columns)
    if facts is not None and any(not facts.issuperset(some) for some in {shard.facts for shard in shards}):
        table = _of_facts(table, facts)
    return in_order(kind, fill_nulls(table))


def nearly_in_order(kind: Kind, shards: list[Shard], selection: Selection | None) -> list[Shard]:
    """Shards in the order of their rows, as far as their cells tell: what is sorted needs no sorting.

    The rows of traces are sorted by facts first, so their cells tell nothing.
    """
    about = {} if selection is None or kind == "traces" else selection.cells(kind)

    def place(shard: Shard) -> tuple[str, str, int, int]:
        what = about.get(shard.cell, {})
        problem, method = str(what.get("problem", "")), str(what.get("method", ""))
        return problem, method, int(what.get("layer", 0)), int(what.get("window", 0))

    return sorted(shards, key=place)


def _of_facts(table: pa.Table, facts: set[tuple[int, str]]) -> pa.Table:
    """The rows of these facts; an id stands for a fact only together with its content."""
    ids, contents = zip(*sorted(facts), strict=True) if facts else ((), ())
    known = pa.table({"fact_id": pa.array(ids, pa.int64()), "fact_content": pa.array(contents, pa.string())})
    index = pa.table({"index": pa.array(np.arange(len(table)))})
    pairs = table.select(["fact_id", "fact_content"]).append_column("index", index.column("index"))
    kept = pairs.join(known, ["fact_id", "fact_content"], join_type="left semi").column("index")
    return table.take(np.sort(kept.to_numpy()))


def joint_schema(kind: Kind, shards: Sequence[Shard]) -> pa.Schema:
    """The columns of the kind and all that shards have besides, scalars before lists."""
    schemas = {shard.schema: None for shard in shards}
    try:
        joint = pa.unify_schemas([SCHEMAS[kind], *schemas], promote_options="permissive")
    except pa.ArrowException as error:
        raise BadRows(f"{kind}: shards disagree about a column's type: {error}") from error
    return pa.schema(sorted(joint, key=is_list))
