"""The study on one page: trace every fact, then edit it at every layer, and score each edit.

A batch is some facts with what all cells share about them.  A cell turns a batch into rows: the traces of one
localizer, the unedited model's scores on one problem, or the edits of one method at one layer for one problem.  The
study is every cell of every batch.  The rest of this room decides which rows are missing (`schedule`), where they
are computed (`engine`) and what is written about it (`run_log`); none of that changes a row.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from loc_edit.editing.settings import Settings
from loc_edit.experiment.batch import Batch
from loc_edit.experiment.cell import Cell
from loc_edit.experiment.edits import edit_batch, rows_of_edits, score_batch
from loc_edit.experiment.setup import Setup, plugin
from loc_edit.facts.fact import Fact
from loc_edit.names import LOCALIZERS, METHODS, NO_LAYER, TRACING, parse_method, windows_of


def study(setup: Setup, facts: Sequence[Fact]) -> Iterator[tuple[Cell, pd.DataFrame]]:
    """Every batch of facts through every cell, one after another: the whole study, in order, in one process."""
    for start in range(0, len(facts), setup.config.chunk):
        batch = Batch(setup, facts[start : start + setup.config.chunk])
        for cell in cells(setup):
            yield cell, cell.rows(batch)


def cells(setup: Setup) -> list[Cell]:
    """The cells of the configuration: the traces, then problem by problem the unedited model and every edit."""
    return [
        *trace_cells(setup),
        *(cell for problem in setup.config.problems for cell in (UneditedCell(problem), *edit_cells(setup, problem))),
    ]


def trace_cells(setup: Setup) -> list["TraceCell"]:
    """Every localizer at every window."""
    config = setup.config
    return [
        TraceCell(name, window)
        for name in config.localizers
        for window in windows_of(name, config.windows, config.localizer_windows)
    ]


def edit_cells(setup: Setup, problem: str) -> list["EditCell"]:
    """Every method at every layer, for one problem."""
    return [
        EditCell(problem, *parse_method(name), layer, setup.config.settings_of(name, problem))
        for name in setup.config.methods
        for layer in setup.layers
    ]


@dataclass(frozen=True)
class TraceCell(Cell):
    """The traces of one localizer, which takes `window` layers together."""

    localizer: str
    window: int
    kind = "traces"

    def identity(self, setup: Setup) -> dict[str, Any]:
        """The noise and the site, and what the localizer depends on besides."""
        identity = {**setup.noise_identity, "site": setup.config.site, "window": self.window}
        if self.localizer != TRACING:
            localizer = LOCALIZERS[self.localizer]
            identity |= {"localizer": self.localizer, "metric": localizer.metric, **plugin(localizer.origin)}
            identity |= {"options": dict(localizer.options)} if localizer.options else {}
            identity |= {"references": [localizer.references, setup.reference_identity]} if localizer.references else {}
            identity |= {"data": setup.data_identity} if localizer.facts else {}
        return identity

    def rows(self, batch: Batch) -> pd.DataFrame:
        """Trace: one row per fact, layer and position."""
        frames = [
            trace.to_frame().assign(relation=fact.relation, cell=self.name(batch.setup), fact_content=fact.content)
            for fact, trace in zip(batch.facts, batch.traces(self.localizer, self.window), strict=True)
        ]
        return pd.concat(frames, ignore_index=True)

    def __str__(self) -> str:
        return f"{'tracing' if self.localizer == TRACING else self.localizer}, window {self.window}"


@dataclass(frozen=True)
class EditCell(Cell):
    """The edits of one method at one layer, the center of `window` layers, for one problem."""

    problem: str
    method: str
    window: int
    layer: int
    settings: Settings
    kind = "edits"

    @property
    def needs_stats(self) -> bool:
        """Whether the method gets key statistics."""
        return METHODS[self.method].stats

    def identity(self, setup: Setup) -> dict[str, Any]:
        """What scores depend on, the edit's settings, and the texts behind its keys and contexts."""
        method = METHODS[self.method]
        identity = {**setup.score_identity(self.problem), "cell": asdict(self), **plugin(method.origin)}
        return identity | (setup.texts_identity(method) if method.stats or method.contexts else {})

    def rows(self, batch: Batch) -> pd.DataFrame:
        """Pose, edit, score: one row per fact; a fact that cannot be edited has a row that says why."""
        posed, more = batch.posed(self.problem), {}
        if self.needs_stats:  # before the clock starts: the first edit should not be charged with them
            more["key_stats"] = batch.setup.stats_checksum(self.layer, self.window)
        start = time.perf_counter()
        edits = edit_batch(batch.setup, posed.requests, self.method, self.window, self.layer, self.settings)
        scores = score_batch(posed, edits)
        seconds = (time.perf_counter() - start) / max(1, len(edits))
        return rows_of_edits(self.columns(batch.setup), batch, posed, scores, seconds=seconds, **more)

    def __str__(self) -> str:
        return f"{self.problem}, {self.method}-{self.window}, layer {self.layer}"


@dataclass(frozen=True)
class UneditedCell(Cell):
    """The control that no edit should lose against: the unedited model scored on one problem."""

    problem: str
    method: str = "none"
    window: int = 0
    layer: int = NO_LAYER
    kind = "edits"

    def identity(self, setup: Setup) -> dict[str, Any]:
        """What scores depend on."""
        return {**setup.score_identity(self.problem), "control": "none", "problem": self.problem}

    def rows(self, batch: Batch) -> pd.DataFrame:
        """Pose and score: one row per fact."""
        posed = batch.posed(self.problem)
        scores = score_batch(posed, [None] * len(posed.requests))
        return rows_of_edits(self.columns(batch.setup), batch, posed, scores)

    def __str__(self) -> str:
        return f"{self.problem}, no edit"
