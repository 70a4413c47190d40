"""The grid: every cell of an experiment x its facts, some at a time, less what is on disk already.

What is on disk is known per cell and fact, so a fact, a layer or a method more means just the units that it needs, and
a changed setting is another cell.  Facts that are computed together are `chunk` neighbours in the order of `ranked`,
in which a larger experiment of the same data begins with the smaller one.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from loc_edit.experiment.controls import random_layer_cell, unedited_rows
from loc_edit.experiment.units import Chunk, Rows, edit_rows, trace_rows
from loc_edit.experiment.workbench import NEED_STATS, Cell, Workbench
from loc_edit.facts.fact import Fact
from loc_edit.localization.cells import Localization
from loc_edit.names import NO_LAYER
from loc_edit.store.rows import Kind
from loc_edit.store.selection import Selection
from loc_edit.store.shards import Shard

Block = tuple[int, ...]
"""Facts that are computed together, as indices into the ranked facts."""


@dataclass(frozen=True)
class Place:
    """A cell of the grid, of whatever kind.

    Attributes:
        kind: of its rows.
        name: the cell's name, which stands in its rows.
        words: what it is, for people.
        what: a localiser and its window, a problem without an edit, an edit, or edits of which one is drawn by lot.
    """

    kind: Kind
    name: str
    words: str
    what: Localization | str | Cell | tuple[Cell, ...]

    @property
    def needs_stats(self) -> bool:
        """Whether key statistics are needed to compute it."""
        return isinstance(self.what, Cell) and self.what.method in NEED_STATS

    def about(self) -> dict[str, Any]:
        """What it is, for the run's folder."""
        if isinstance(self.what, Cell):
            return asdict(self.what)
        if isinstance(self.what, tuple):
            first = self.what[0]
            among = [cell.layer for cell in self.what]
            method = f"random_layer_{first.method}"
            return {"problem": first.problem, "method": method, "window": first.window, "layers": among}
        if isinstance(self.what, str):
            return {"problem": self.what, "method": "none", "window": 0, "layer": NO_LAYER}
        return asdict(self.what)

    def compute(self, chunk: Chunk) -> Rows | pd.DataFrame:
        """The rows of some facts; those of a random layer are copies, made by `controls.random_layer_rows`."""
        if isinstance(self.what, Cell):
            return edit_rows(chunk, self.what)
        if isinstance(self.what, str):
            return unedited_rows(chunk, self.what)
        assert isinstance(self.what, Localization), self.what
        return trace_rows(chunk, self.what)


@dataclass(frozen=True, slots=True)
class Unit:
    """Some facts at one place: computed, written and resumed as one."""

    place: Place
    facts: Block


def places(
    bench: Workbench,
    localizations: Sequence[Localization],
    problems: Sequence[str],
    cells: Sequence[Cell],
    *,
    controls: bool,
) -> list[Place]:
    """What is computed for each fact, in that order: first the traces, then the edits."""
    found = [Place("traces", bench.trace_cell(what), str(what), what) for what in localizations]
    for problem in problems:
        if controls:
            found.append(Place("edits", bench.unedited_cell(problem), f"{problem}, no edit", problem))
        found += [Place("edits", bench.edit_cell(cell), str(cell), cell) for cell in cells if cell.problem == problem]
    return found


def last_places(bench: Workbench, cells: Sequence[Cell]) -> list[Place]:
    """What is made of finished rows: the random-layer control of each method and problem."""
    groups: dict[tuple[str, str, int], list[Cell]] = defaultdict(list)
    for cell in sorted(cells, key=lambda cell: cell.layer):
        groups[cell.problem, cell.method, cell.window].append(cell)
    return [
        Place("edits", random_layer_cell(bench, some), f"{some[0].problem}, random-layer control", tuple(some))
        for some in groups.values()
    ]




def select(wanted: Sequence[Place], facts: Sequence[Fact]) -> Selection:
    """The cells and facts of an experiment, as its folder records them."""
    by_kind: dict[str, dict[str, Any]] = {"traces": {}, "edits": {}}
    for place in wanted:
        by_kind[place.kind][place.name] = place.about()
    return Selection(by_kind["traces"], by_kind["edits"], {fact.fact_id: fact.content for fact in facts})


def on_disk(shards: Iterable[Shard], facts: Sequence[Fact]) -> dict[str, np.ndarray]:
    """For each cell that has rows, which of the facts have theirs: a boolean per fact."""
    place = {(fact.fact_id, fact.content): index for index, fact in enumerate(facts)}
    indices: dict[int, list[int]] = {}  # shards of the same facts share one tuple
    found: dict[str, np.ndarray] = {}
    for shard in shards:
        some = indices.get(id(shard.facts))
        if some is None:
            some = indices[id(shard.facts)] = [place[fact] for fact in shard.facts if fact in place]
        if shard.cell not in found:
            found[shard.cell] = np.zeros(len(facts), dtype=bool)
        found[shard.cell][some] = True
    return found


def missing(wanted: Sequence[Place], n_facts: int, chunk: int, done: Mapping[str, np.ndarray]) -> list[list[Unit]]:
    """The units that are not on disk, in one stream per chunk of facts; units of the same facts are neighbours."""
    streams = []
    for start in range(0, n_facts, chunk):
        whole = tuple(range(start, min(start + chunk, n_facts)))
        lacking: dict[Block, list[Unit]] = {}
        for place in wanted:
            block = whole
            if (there := done.get(place.name)) is not None:
                lacks = ~there[start : start + chunk]
                if not lacks.all():
                    block = tuple((start + np.flatnonzero(lacks)).tolist())
            if block:
                lacking.setdefault(block, []).append(Unit(place, block))
        if lacking:
            streams.append([unit for units in lacking.values() for unit in units])
    return streams
