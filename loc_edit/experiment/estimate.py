"""What an experiment would take, told by computing a few of its rows: time, disk and memory."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from loc_edit.editing.settings import FinetuneSettings
from loc_edit.experiment.units import Chunk, edit_rows, trace_rows
from loc_edit.experiment.workbench import Cell, Workbench
from loc_edit.facts.fact import Fact
from loc_edit.keys.moments import KeyStats
from loc_edit.localization.cells import Localization
from loc_edit.store.rows import Kind
from loc_edit.store.shards import shard_size

PROBED = 4
"""Facts that are computed to tell."""


@dataclass(frozen=True)
class Plan:
    """What an experiment means; sizes in bytes, time in seconds, all estimates.

    Attributes:
        facts: how many.
        traces: facts x windows x localisers, each at every layer and position.
        edits: facts x layers x methods x problems, controls not counted.
        combinations: methods x problems.
        layers: layers to edit.
        traces_missing: those of the traces that are not in the run's folder yet.
        edits_missing: likewise of the edits.
        work: what is missing, for one process; from a few facts, the edits at the middle layer.
        disk: the rows of traces, edits and controls.  Measured on the rows of those few facts: bytes per shard, one a
            unit, and bytes per row in it, which in fuller shards are fewer, as they compress better.
        stats_disk: the key statistics in the cache, d_mlp^2 x 4 bytes x layers of the model; 0 where no method
            needs them.  (Computing them takes more for a while: `loc-edit stats --plan`.)
        model: the model's parameters, as they are in memory.
        stats_memory: d_mlp^2 x 8 bytes x layers of the model: the float64 sums while key statistics are computed,
            and afterwards at most their float64 factors, of which those are kept that fit in half of the free memory.
        processes: that compute side by side, each with a model and factors of its own.
    """

    facts: int
    traces: int
    edits: int
    combinations: int
    layers: int
    traces_missing: int
    edits_missing: int
    work: float
    disk: int
    stats_disk: int
    model: int
    stats_memory: int
    processes: int

    @property
    def seconds(self) -> float:
        """The work divided by the processes; where these share cores, it takes longer."""
        return self.work / self.processes

    @property
    def memory(self) -> int:
        """Models and key statistics of all processes; what a batch takes comes on top."""
        return self.processes * (self.model + self.stats_memory)


def make_plan(
    bench: Workbench,
    facts: Sequence[Fact],
    cells: Sequence[Cell],
    *,
    localizations: Sequence[Localization],
    controls: bool = True,
    processes: int = 1,
    done: Callable[[str], int] = lambda cell: 0,
) -> Plan:
    """The plan of an experiment; computes all of a few facts but for the layers beside the middle one.

    No key statistics are computed for it: with the identity in their place, an edit takes as long.

    Args:
        bench: what its units share.
        facts: its facts.
        cells: its problems x methods x layers.
        localizations: localisers with their windows.
        controls: whether rows without an edit and at a random layer are part of it.
        processes: that will compute side by side.
        done: by the name of a cell, how many of the facts are on disk.
    """
    n_layers = bench.model.cfg.n_layers
    bench = replace(bench, stats=lambda: KeyStats.identity(bench.model, range(n_layers)))
    probe, layers = Chunk(bench, facts[:PROBED]), list(dict.fromkeys(cell.layer for cell in cells))
    needs_stats = any(not isinstance(cell.settings, FinetuneSettings) for cell in cells)
    tracing, traced = _localizing(probe, localizations, lambda what: len(facts) - done(bench.trace_cell(what)))
    _ = probe.essences
    problems = list(dict.fromkeys(cell.problem for cell in cells))
    for problem in problems:
        probe.posed(problem)
    middle = [cell for cell in cells if cell.layer == layers[len(layers) // 2]]
    editing, edited = _timed(lambda: [edit_rows(probe, cell) for cell in middle])
    traces_missing = sum(len(facts) - done(bench.trace_cell(what)) for what in localizations)
    edits_missing = sum(len(facts) - done(bench.edit_cell(cell)) for cell in cells)
    edits_share = edits_missing / (len(middle) * len(probe.facts))
    share, n_chunks = len(facts) / len(probe.facts), math.ceil(len(facts) / bench.config.chunk)
    groups = len({(cell.problem, cell.method, cell.window) for cell in cells})
    # controls have the columns of edits: without an edit one row a problem and fact, at a random layer one a group
    cells_each = len(cells) + (len(problems) + groups if controls else 0)
    _, edit_shard, edit_row = _sizes("edits", edited)
    disk = cells_each * (n_chunks * edit_shard + len(facts) * edit_row)
    if localizations:
        n_rows, trace_shard, trace_row = _sizes("traces", traced)
        disk += len(localizations) * (n_chunks * trace_shard + share * n_rows * trace_row)
    cfg = bench.model.cfg
    moments = cfg.n_layers * int(cfg.d_mlp or 0) ** 2 if needs_stats else 0
    return Plan(
        facts=len(facts),
        traces=len(facts) * len(localizations),
        edits=len(facts) * len(cells),
        combinations=groups,
        layers=len(layers),
        traces_missing=traces_missing,
        edits_missing=edits_missing,
        work=tracing + editing * edits_share,
        disk=round(disk),
        stats_disk=4 * moments,
        model=sum(p.nbytes for p in bench.model.parameters()),
        stats_memory=8 * moments,
        processes=processes,
    )


def _localizing(
    probe: Chunk, localizations: Sequence[Localization], missing: Callable[[Localization], int]
) -> tuple[float, Sequence[Any]]:
    """Seconds that the missing traces take, and the probe's rows; a localiser's windows may share work."""
    seconds, rows = 0.0, list[Any]()
    for name in dict.fromkeys(what.localizer for what in localizations):
        mine = [what for what in localizations if what.localizer == name]
        took, found = _timed(partial(_all_rows, probe, mine))
        seconds += took * sum(map(missing, mine)) / (len(mine) * len(probe.facts))
        rows += found
    return seconds, rows


def _all_rows(probe: Chunk, some: Sequence[Localization]) -> Sequence[Any]:
    return [trace_rows(probe, what) for what in some]


def _sizes(kind: Kind, shards: Sequence[Any]) -> tuple[float, float, float]:
    """Of some shards of several rows each: rows in one, bytes of one beside its rows, bytes of a row; means."""
    n_rows = sum(map(len, shards)) / len(shards)
    first = sum(shard_size(kind, rows[:1]) for rows in shards) / len(shards)
    whole = sum(shard_size(kind, rows) for rows in shards) / len(shards)
    row = (whole - first) / (n_rows - 1) if n_rows > 1 else 0.0
    return n_rows, first - row, row


def _timed(work: Callable[[], Sequence[Any]]) -> tuple[float, Sequence[Any]]:
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made
