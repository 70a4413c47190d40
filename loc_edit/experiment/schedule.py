"""What is still to be computed: every cell for every fact, less what is on disk.

What is on disk is known by cell and fact.  So one more fact, layer or method means just the rows that it needs, and a
changed setting is another cell.  Facts are computed together in stretches of `chunk` neighbors in the order of
`sample_by_relation`, in which a larger experiment on the same data begins with the smaller one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loc_edit.experiment.cell import Cell
from loc_edit.experiment.setup import Setup
from loc_edit.facts.fact import Fact
from loc_edit.store.rows import KINDS, Kind
from loc_edit.store.run import RunFolder
from loc_edit.store.selection import Selection
from loc_edit.store.shards import Shard

FactIndices = tuple[int, ...]
"""Facts that are computed together, by their place in the experiment."""


@dataclass(frozen=True, slots=True)
class Task:
    """One cell for some facts: computed, written and resumed as one shard."""

    cell: Cell
    name: str
    facts: FactIndices

    def __str__(self) -> str:
        return str(self.cell)


def select(cells: Sequence[Cell], setup: Setup, facts: Sequence[Fact]) -> Selection:
    """The cells and facts of an experiment, as its folder records them."""
    by_kind: dict[Kind, dict[str, Any]] = {kind: {} for kind in KINDS}
    for cell in cells:
        by_kind[cell.kind][cell.name(setup)] = cell.describe()
    return Selection(facts={fact.fact_id: fact.content for fact in facts}, **by_kind)


def facts_on_disk(run: RunFolder, facts: Sequence[Fact]) -> dict[str, np.ndarray]:
    """For each cell that has rows in the folder, which of the facts have theirs: a boolean per fact."""
    return facts_in_shards([*run.shards("traces"), *run.shards("edits")], facts)


def facts_in_shards(shards: Iterable[Shard], facts: Sequence[Fact]) -> dict[str, np.ndarray]:
    """For each cell that has rows in the shards, which of the facts have theirs: a boolean per fact."""
    place = {(fact.fact_id, fact.content): index for index, fact in enumerate(facts)}
    indices: dict[int, list[int]] = {}  # shards of the same facts share one tuple
    on_disk: dict[str, np.ndarray] = {}
    for shard in shards:
        if id(shard.facts) not in indices:
            indices[id(shard.facts)] = [place[fact] for fact in shard.facts if fact in place]
        if shard.cell not in on_disk:
            on_disk[shard.cell] = np.zeros(len(facts), dtype=bool)
        on_disk[shard.cell][indices[id(shard.facts)]] = True
    return on_disk


def missing_sequences(cells: Mapping[str, Cell], facts: FactIndices, run: RunFolder) -> list[list[Task]]:
    """The tasks of sequences that are not on disk, in one stream each: a sequence is computed as a whole.

    Args:
        cells: by name; a name stands for the facts, too.
        facts: the facts of a sequence, in order.
        run: the folder.
    """
    on_disk = {shard.cell for shard in run.shards("sequences")}
    return [[Task(cell, name, facts)] for name, cell in cells.items() if name not in on_disk]


def missing_tasks(
    cells: Mapping[str, Cell], n_facts: int, chunk: int, on_disk: Mapping[str, np.ndarray]
) -> list[list[Task]]:
    """The tasks that are not on disk, in one stream per chunk of facts; tasks of the same facts are neighbors.

    Args:
        cells: by name, in the order of computing.
        n_facts: how many facts there are.
        chunk: how many of them are computed together.
        on_disk: see `facts_on_disk`.
    """
    streams = []
    for start in range(0, n_facts, chunk):
        all_facts = tuple(range(start, min(start + chunk, n_facts)))
        by_facts: dict[FactIndices, list[Task]] = {}
        for name, cell in cells.items():
            missing_facts = all_facts
            if name in on_disk:
                missing = ~on_disk[name][start : start + chunk]
                if not missing.all():
                    missing_facts = tuple((start + np.flatnonzero(missing)).tolist())
            if missing_facts:
                by_facts.setdefault(missing_facts, []).append(Task(cell, name, missing_facts))
        if by_facts:
            streams.append([task for tasks in by_facts.values() for task in tasks])
    return streams
