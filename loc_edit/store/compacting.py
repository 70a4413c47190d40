"""Joins many small shards of a cell into a few large ones, as opening a file costs more than reading some rows."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator

from loc_edit.store.reading import joint_schema, read_table
from loc_edit.store.rows import Kind
from loc_edit.store.settings import cell_key
from loc_edit.store.shards import Shard, remove_shard, write_table

ROWS = 100_000
"""The number of rows from which a shard counts as large."""


def compact(kind: Kind, shards: Iterable[Shard], rows: int = ROWS) -> Iterator[tuple[Shard, list[Shard]]]:
    """Joins shards of the same cell until each has at least `rows`; yields each new shard with the shards it replaces.

    The new file is written before the old ones are removed, and a row that is in both is read once: so this may be
    killed at any moment, and started again.  A shard with several cells or none stays as it is.
    """
    by_cell: dict[str, list[Shard]] = defaultdict(list)
    for shard in shards:
        if shard.cell and shard.facts and shard.n_rows < rows:
            by_cell[shard.cell].append(shard)
    for cell_shards in by_cell.values():
        for group in _groups(sorted(cell_shards, key=lambda shard: shard.facts), rows):
            if len(group) > 1:
                yield _join(kind, group), group


def _groups(shards: list[Shard], rows: int) -> Iterator[list[Shard]]:
    group: list[Shard] = []
    for shard in shards:
        group.append(shard)
        if sum(member.n_rows for member in group) >= rows:
            yield group
            group = []
    yield group


def _join(kind: Kind, group: list[Shard]) -> Shard:
    schema = joint_schema(kind, group)
    table, _ = read_table(kind, group, schema, schema.names, None)
    facts = sorted({fact for shard in group for fact in shard.facts})
    key = f"{group[0].cell}-{cell_key({'facts': [list(fact) for fact in facts]})}"
    last_written = max(shard.path.stat().st_mtime for shard in group)
    joined = write_table(group[0].path.parent, kind, key, table)
    os.utime(joined.path, (last_written, last_written))  # the speed of a run is read off its files' times
    for shard in group:
        if shard.path != joined.path:
            remove_shard(shard.path)
    return joined
