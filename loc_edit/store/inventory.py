"""What is in a run's folder besides what its present configuration is about."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from loc_edit.store.rows import Kind
from loc_edit.store.selection import Selection, earlier_cells
from loc_edit.store.shards import Shard


def cells_in(folder: Path, kind: Kind, shards: Iterable[Shard], selection: Selection | None) -> pd.DataFrame:
    """A row per cell that has rows or is selected: see `Run.cells`."""
    there: dict[str, list[Shard]] = defaultdict(list)
    for shard in shards:
        there[shard.cell].append(shard)
    present = selection.cells(kind) if selection else {cell: {} for cell in there}
    about = {**earlier_cells(folder, kind), **present}
    return pd.DataFrame(
        {
            "cell": cell,
            "rows": sum(shard.n_rows for shard in there.get(cell, [])),
            "facts": len({fact for shard in there.get(cell, []) for fact in shard.facts}),
            "present": cell in present,
            **about.get(cell, {}),
        }
        for cell in [*present, *sorted(set(there) - set(present))]
    )


def n_left_out(kind: Kind, shards: Iterable[Shard], selection: Selection | None) -> int:
    """How many rows are not selected."""
    if selection is None:
        return 0
    cells, facts, n = selection.cells(kind), set(selection.facts.items()), 0
    for shard in shards:
        if shard.cell not in cells:
            n += shard.n_rows
        elif others := len(set(shard.facts) - facts):
            n += round(shard.n_rows * others / len(shard.facts))
    return n
