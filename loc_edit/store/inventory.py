"""Counts the cells and rows of a run folder, including rows of earlier configurations."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from loc_edit.store.rows import Kind
from loc_edit.store.selection import Selection, earlier_cells
from loc_edit.store.shards import Shard


def cells_in(folder: Path, kind: Kind, shards: Iterable[Shard], selection: Selection | None) -> pd.DataFrame:
    """Returns one row per cell that has rows or is selected: see `RunFolder.cells`."""
    shards_of: dict[str, list[Shard]] = defaultdict(list)
    for shard in shards:
        shards_of[shard.cell].append(shard)
    present = selection.cells(kind) if selection else {cell: {} for cell in shards_of}
    descriptions = {**earlier_cells(folder, kind), **present}
    return pd.DataFrame(
        {
            "cell": cell,
            "rows": sum(shard.n_rows for shard in shards_of[cell]),
            "facts": len({fact for shard in shards_of[cell] for fact in shard.facts}),
            "present": cell in present,
            **descriptions.get(cell, {}),
        }
        for cell in [*present, *sorted(set(shards_of) - set(present))]
    )


def n_left_out(kind: Kind, shards: Iterable[Shard], selection: Selection | None) -> int:
    """Counts the rows that are not selected."""
    if selection is None:
        return 0
    cells, facts, n = selection.cells(kind), set(selection.facts.items()), 0
    for shard in shards:
        if shard.cell not in cells:
            n += shard.n_rows
        elif shard.facts:
            n += round(shard.n_rows * len(set(shard.facts) - facts) / len(shard.facts))
    return n
