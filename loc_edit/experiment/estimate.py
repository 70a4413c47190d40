"""What an experiment would take in time, disk and memory, estimated by computing a few of its rows."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import pandas as pd

from loc_edit import events
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
AnyEditCell = TypeVar("AnyEditCell", bound=EditCell)

PROBED_FACTS = 4
"""Facts that are computed to estimate the rest, unless the first takes long."""
LONG = 20.0
"""Seconds after which one fact is enough."""


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
        disk: the rows of traces, edits and controls that are missing.  Measured on the rows of those few facts: bytes
            per shard, and bytes per row in it, which are fewer in fuller shards, as they compress better.
        stats_disk: the key statistics in the cache, d_mlp^2 x 4 bytes x layers of the model; 0 if no method
            needs them.  (Computing them takes more for a while: `loc-edit stats --plan`.)
        model: the model's parameters, as they are in memory.
        stats_memory: d_mlp^2 x 8 bytes x layers of the model: the float64 sums while key statistics are computed,
            and afterwards at most their float64 factors, as many as fit in half of the free memory.
        processes: how many compute side by side, each with a model and factors of its own.
        probed: how many facts were computed to tell.
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
    probed: int

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
    """The plan of an experiment; computes the missing cells of a few facts, but for the layers beside the middle one.

    Args:
        setup: what its cells share.
        facts: its facts.
        cells: what is computed for each fact.
        copied_cells: what is copied from finished rows.
        n_on_disk: by the name of a cell, how many of the facts are on disk.
        processes: how many will compute side by side.
    """
    traces, edits, sequences = _by_kind(cells)

    def missing_facts(some_cells: Sequence[Cell]) -> list[int]:
        n_facts = {"sequences": setup.config.sequence}
        return [n_facts.get(cell.kind, len(facts)) - n_on_disk.get(cell.name(setup), 0) for cell in some_cells]

    work, disk = 0.0, 0.0
    probed_facts, probes = _probe_few(setup, facts, [cell for cell in cells if any(missing_facts([cell]))])
    share, n_chunks = len(facts) / len(probed_facts), math.ceil(len(facts) / setup.config.chunk)
    for probed in probes:
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
        edits_missing=sum(missing_facts(edits)),
        sequences=len(sequences) * setup.config.sequence,
        sequences_missing=sum(missing_facts(sequences)),
        work=work,
        statistics=_seconds_of_statistics(setup) if any(missing_facts([*edits, *sequences])) else 0.0,
        disk=round(disk),
        stats_disk=4 * moments,
        model=sum(p.nbytes for p in setup.model.parameters()),
        stats_memory=8 * moments,
        processes=processes,
        probed=len(probed_facts),
    )


def _by_kind(cells: Sequence[Cell]) -> tuple[list[TraceCell], list[EditCell], list[SequenceCell]]:
    """The cells of traces, of single edits, and of edits in sequence; controls are left out."""
    traces = [cell for cell in cells if isinstance(cell, TraceCell)]
    sequences = [cell for cell in cells if isinstance(cell, SequenceCell)]
    edits = [cell for cell in cells if isinstance(cell, EditCell) and not isinstance(cell, SequenceCell)]
    return traces, edits, sequences


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


def _probe_few(setup: Setup, facts: Sequence[Fact], cells: Sequence[Cell]) -> tuple[Sequence[Fact], list[_Probed]]:
    """Compute one fact, with a prompt of the usual length; and if that was quick, a few together, as a run would."""
    usual = sorted(facts, key=lambda fact: len(fact.prompt))[len(facts) // 2]
    start = time.perf_counter()
    probes = list(_probe(setup, [usual], cells))
    if time.perf_counter() - start > LONG:
        return [usual], probes
    return facts[:PROBED_FACTS], list(_probe(setup, facts[:PROBED_FACTS], cells))


def _probe(setup: Setup, facts: Sequence[Fact], cells: Sequence[Cell]) -> Iterator[_Probed]:
    """Compute a few facts: each localizer with its windows, which may share work, and the edits at the middle layer.

    Of sequences only the edits count, as a short one is measured nearly as often as a long one.

    No key statistics are computed for it: with the identity in their place, an edit takes as long.
    """
    traces, edits, sequences = _by_kind(cells)
    localizers = list(dict.fromkeys(cell.localizer for cell in traces))
    problems = list(dict.fromkeys(cell.problem for cell in edits))
    total, done = len(localizers) + len(problems), 0
    setup = setup.with_stats(KeyStats.identity(setup.model, range(setup.model.cfg.n_layers)))
    batch = Batch(setup, facts)
    for localizer in localizers:
        windows = [cell for cell in traces if cell.localizer == localizer]
        events.progress("probes", done := done + 1, total, detail=localizer)
        yield _Probed("traces", *_timed(batch, partial(_rows, windows, batch)), windows)
    shards, seconds, once = list[pd.DataFrame](), 0.0, 0.0
    for problem in problems:
        events.progress("probes", done := done + 1, total, detail=problem)
        middle = _middle_layers([cell for cell in edits if cell.problem == problem])
        once += _timed(batch, partial(batch.posed, problem))[1]  # with the essence texts, the first time
        of_problem, seconds_of_problem = _timed(batch, partial(_rows, middle, batch))
        shards, seconds = shards + of_problem, seconds + seconds_of_problem
    if edits:
        yield _Probed("edits", shards, seconds, edits, once)
    if sequences:
        frames = [cell.rows(batch) for cell in _middle_layers(sequences)]
        yield _Probed("sequences", frames, sum(float(frame["seconds"].mean()) for frame in frames), sequences)


def _middle_layers(cells: Sequence[AnyEditCell]) -> list[AnyEditCell]:
    """Of each problem and method (and way of a sequence), the cell in the middle of its layers."""
    groups: dict[Any, list[AnyEditCell]] = {}
    for cell in cells:
        groups.setdefault((cell.problem, cell.method, cell.window, getattr(cell, "way", "")), []).append(cell)
    return [group[len(group) // 2] for group in groups.values()]


def _rows(cells: Sequence[Cell], batch: Batch) -> list[pd.DataFrame]:
    """The rows of each cell."""
    return [cell.rows(batch) for cell in cells]


def _timed(batch: Batch, work: Callable[[], T]) -> tuple[T, float]:
    """What the work returns, and the seconds that it took for one fact of the batch."""
    start = time.perf_counter()
    return work(), (time.perf_counter() - start) / len(batch.facts)
