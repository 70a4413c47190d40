"""What an experiment would take in time, disk and memory, estimated by computing a few of its rows."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import pandas as pd

from loc_edit.experiment.batch import Batch
from loc_edit.experiment.cell import Cell
from loc_edit.experiment.sequence import SequenceCell
from loc_edit.experiment.setup import Setup
from loc_edit.experiment.study import EditCell, TraceCell
from loc_edit.facts.fact import Fact
from loc_edit.keys.compute import are_cached
from loc_edit.keys.corpora import IDENTITY
from loc_edit.keys.moments import KeyStats
from loc_edit.keys.planning import plan_stats
from loc_edit.store.rows import Kind
from loc_edit.store.shards import shard_size

T = TypeVar("T")

PROBED_FACTS = 4
"""Facts that are computed to estimate the rest."""


@dataclass(frozen=True)
class Plan:
    """What an experiment means; sizes in bytes, time in seconds, all estimates.

    Attributes:
        facts: how many.
        traces: facts x windows x localizers, each at every layer and position.
        edits: facts x layers x methods x problems, controls not counted.
        combinations: methods x problems.
        layers: layers to edit.
        traces_missing: how many traces are not in the run's folder yet.
        edits_missing: how many edits are not in the run's folder yet.
        sequences: edits in sequence: their facts x layers x methods, in each of its ways, x problems.
        sequences_missing: how many of these are not in the run's folder yet.
        work: seconds that one process needs for what is missing; from a few facts, the edits at the middle layer.  With
            the essence texts and the scores of the unedited model; without key statistics.
        statistics: seconds that computing the key statistics takes; 0 if they are in the cache, or none are needed.
        disk: the rows of traces, edits and controls.  Measured on the rows of those few facts: bytes per shard, and
            bytes per row in it, which are fewer in fuller shards, as they compress better.
        stats_disk: the key statistics in the cache, d_mlp^2 x 4 bytes x layers of the model; 0 if no method
            needs them.  (Computing them takes more for a while: `loc-edit stats --plan`.)
        model: the model's parameters, as they are in memory.
        stats_memory: d_mlp^2 x 8 bytes x layers of the model: the float64 sums while key statistics are computed,
            and afterwards at most their float64 factors, as many as fit in half of the free memory.
        processes: how many compute side by side, each with a model and factors of its own.
    """

    facts: int
    traces: int
    edits: int
    combinations: int
    layers: int
    traces_missing: int
    edits_missing: int
    sequences: int
    sequences_missing: int
    work: float
    statistics: float
    disk: int
    stats_disk: int
    model: int
    stats_memory: int
    processes: int

    @property
    def seconds(self) -> float:
        """The key statistics, and the work divided by the processes; if these share cores, it takes longer."""
        return self.statistics + self.work / self.processes

    @property
    def memory(self) -> int:
        """Models and key statistics of all processes; what a batch takes comes on top."""
        return self.processes * (self.model + self.stats_memory)


def make_plan(
    setup: Setup,
    facts: Sequence[Fact],
    cells: Sequence[Cell],
    copied_cells: Sequence[Cell],
    n_on_disk: Mapping[str, int],
    *,
    processes: int = 1,
) -> Plan:
    """The plan of an experiment; computes all cells of a few facts but for the layers beside the middle one.

    Args:
        setup: what its cells share.
        facts: its facts.
        cells: what is computed for each fact.
        copied_cells: what is copied from finished rows.
        n_on_disk: by the name of a cell, how many of the facts are on disk.
        processes: how many will compute side by side.
    """
    traces = [cell for cell in cells if isinstance(cell, TraceCell)]
    sequences = [cell for cell in cells if isinstance(cell, SequenceCell)]
    edits = [cell for cell in cells if isinstance(cell, EditCell) and cell not in sequences]

    def missing_facts(some_cells: Sequence[Cell]) -> list[int]:
        n_facts = {"sequences": setup.config.sequence}
        return [n_facts.get(cell.kind, len(facts)) - n_on_disk.get(cell.name(setup), 0) for cell in some_cells]

    missing_edits = missing_facts(edits)
    work, disk = 0.0, 0.0
    share, n_chunks = len(facts) / min(PROBED_FACTS, len(facts)), math.ceil(len(facts) / setup.config.chunk)
    for probed in _probe(setup, facts[:PROBED_FACTS], traces, edits, sequences):
        of_each_cell = missing_facts(probed.stands_for)
        work += probed.seconds * sum(of_each_cell) / probed.n_cells + probed.once * max(of_each_cell)
        n_cells = len(probed.stands_for)
        if probed.kind == "sequences":  # a few rows for each, whatever the number of facts
            disk += n_cells * probed.bytes_per_cell(1, 1.0)
            continue
        if probed.kind == "edits":  # controls have the same columns
            n_cells += len(cells) - len(traces) - len(edits) - len(sequences) + len(copied_cells)
        disk += n_cells * probed.bytes_per_cell(n_chunks, share)
    cfg = setup.model.cfg
    moments = cfg.n_layers * int(cfg.d_mlp or 0) ** 2 if any(cell.needs_stats for cell in cells) else 0
    return Plan(
        facts=len(facts),
        traces=len(facts) * len(traces),
        edits=len(facts) * len(edits),
        combinations=len({(cell.problem, cell.method, cell.window) for cell in edits}),
        layers=len({cell.layer for cell in edits}),
        traces_missing=sum(missing_facts(traces)),
        edits_missing=sum(missing_edits),
        sequences=len(sequences) * setup.config.sequence,
        sequences_missing=sum(missing_facts(sequences)),
        work=work,
        statistics=_seconds_of_statistics(setup) if any(missing_edits + missing_facts(sequences)) else 0.0,
        disk=round(disk),
        stats_disk=4 * moments,
        model=sum(p.nbytes for p in setup.model.parameters()),
        stats_memory=8 * moments,
        processes=processes,
    )


def _seconds_of_statistics(setup: Setup) -> float:
    config, layers = setup.config, setup.layers_of_stats
    if not layers or config.corpus == IDENTITY:
        return 0.0
    if are_cached(setup.model, layers, config.corpus, tokens=config.corpus_tokens):
        return 0.0
    return plan_stats(setup.model, layers, config.corpus, tokens=config.corpus_tokens).seconds


@dataclass(frozen=True)
class _Probed:
    """The rows of some cells for a few facts.

    Attributes:
        kind: of rows.
        shards: the rows, one frame per cell that was computed.
        seconds: what these took together for one fact.
        once: what was computed besides, once for all cells of a fact.
        stands_for: the cells that take as long and as much.
    """

    kind: Kind
    shards: Sequence[pd.DataFrame]
    seconds: float
    stands_for: Sequence[Cell]
    once: float = 0.0

    @property
    def n_cells(self) -> int:
        """How many cells were computed."""
        return len(self.shards)

    def bytes_per_cell(self, n_chunks: int, share: float) -> float:
        """What the rows of one cell take on disk.

        Args:
            n_chunks: how many shards a cell has.
            share: the number of facts, in units of the few that were computed.
        """
        n_rows = sum(map(len, self.shards)) / self.n_cells
        one_row = sum(shard_size(self.kind, rows[:1]) for rows in self.shards) / self.n_cells
        all_rows = sum(shard_size(self.kind, rows) for rows in self.shards) / self.n_cells
        row = (all_rows - one_row) / (n_rows - 1) if n_rows > 1 else 0.0
        return n_chunks * (one_row - row) + share * n_rows * row


def _probe(
    setup: Setup,
    facts: Sequence[Fact],
    traces: Sequence[TraceCell],
    edits: Sequence[EditCell],
    sequences: Sequence[SequenceCell],
) -> Iterator[_Probed]:
    """Compute a few facts: each localizer with its windows, which may share work, and the edits at the middle layer.

    Of sequences only the edits count, as a short one is measured nearly as often as a long one.

    No key statistics are computed for it: with the identity in their place, an edit takes as long.
    """
    setup = setup.with_stats(KeyStats.identity(setup.model, range(setup.model.cfg.n_layers)))
    batch = Batch(setup, facts)
    for localizer in dict.fromkeys(cell.localizer for cell in traces):
        windows = [cell for cell in traces if cell.localizer == localizer]
        yield _Probed("traces", *_timed(batch, partial(_rows, windows, batch)), windows)
    layers = list(dict.fromkeys(cell.layer for cell in edits))
    shards, seconds, once = list[pd.DataFrame](), 0.0, 0.0
    for problem in setup.config.problems:
        middle = [cell for cell in edits if cell.problem == problem and cell.layer == layers[len(layers) // 2]]
        once += _timed(batch, partial(batch.posed, problem))[1]  # with the essence texts, the first time
        of_problem, seconds_of_problem = _timed(batch, partial(_rows, middle, batch))
        shards, seconds = shards + of_problem, seconds + seconds_of_problem
    yield _Probed("edits", shards, seconds, edits, once)
    if sequences:
        frames = [cell.rows(batch) for cell in sequences if cell.layer == layers[len(layers) // 2]]
        yield _Probed("sequences", frames, sum(float(frame["seconds"].mean()) for frame in frames), sequences)


def _rows(cells: Sequence[Cell], batch: Batch) -> list[pd.DataFrame]:
    """The rows of each cell."""
    return [cell.rows(batch) for cell in cells]


def _timed(batch: Batch, work: Callable[[], T]) -> tuple[T, float]:
    """What the work returns, and the seconds that it took for one fact of the batch."""
    start = time.perf_counter()
    return work(), (time.perf_counter() - start) / len(batch.facts)
