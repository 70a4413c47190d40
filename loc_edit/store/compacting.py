"""Many small shards of a cell as few large ones: opening a file costs more than reading some rows."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator

from loc_edit.store.reading import joint_schema, read_table
from loc_edit.store.rows import Kind
from loc_edit.store.settings import cell_key
from loc_edit.store.shards import Shard, remove_shard, write_table

ROWS = 100_000
"""Rows from which on a shard is large."""


def compact(kind: Kind, shards: Iterable[Shard], rows: int = ROWS) -> Iterator[tuple[Shard, list[Shard]]]:
    """Write shards of one cell together, until each has at least `rows`; the new one and those that it stands for.

    The new file is there before the old ones go, and a row that stands in both is read once: so it may be killed at any
    moment, and done again.  Shards of several cells, and of none, stay as they are.
    """
    by_cell: dict[str, list[Shard]] = defaultdict(list)
    for shard in shards:
        if shard.cell and shard.facts and shard.n_rows < rows:
            by_cell[shard.cell].append(shard)
    for some in by_cell.values():
        for group in _groups(sorted(some, key=lambda shard: shard.facts), rows):
            if len(group) > 1:
                yield _join(kind, group), group


def _groups(shards: list[Shard], rows: int) -> Iterator[list[Shard]]:
    group: list[Shard] = []
    for shard in shards:
        group.append(shard)
        if sum(one.n_rows for one in group) >= rows:
            yield group
            group = []
    yield group


def _join(kind: Kind, group: list[Shard]) -> Shard:
    schema = joint_schema(kind, group)
    table, _ = read_table(kind, group, schema, schema.names, None)
    facts = sorted({fact for shard in group for fact in shard.facts})
    key = f"{group[0].cell}-{cell_key({'facts': [list(fact) for fact in facts]})}"
    folder, written = group[0].path.parent, max(shard.path.stat().st_mtime for shard in group)
    made = write_table(folder, kind, key, table)
    os.utime(made.path, (written, written))  # when rows were made tells how fast a run is
    for shard in group:
        if shard.path != made.path:
            remove_shard(shard.path)
    return made
