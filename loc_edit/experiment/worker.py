"""What computes units, wherever it stands: it has the model, and the chunk of facts that it is at."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pandas as pd

from loc_edit.experiment.grid import Block, Unit
from loc_edit.experiment.units import Chunk, Rows
from loc_edit.experiment.workbench import Workbench
from loc_edit.facts.fact import Fact
from loc_edit.store.settings import cell_key

Said = tuple[str, int, str]
"""A logged message: logger, level, text."""


@dataclass(frozen=True)
class Outcome:
    """The rows of a unit.

    Attributes:
        rows: as `Run.write` takes them.
        seconds: that computing took.
        said: warnings meanwhile, where the worker is another process: they belong into the run's log.
    """

    rows: Rows | pd.DataFrame
    seconds: float
    said: Sequence[Said] = ()


class Worker:
    """Computes units one after another; those of the same facts in succession share work.

    Args:
        bench: what all units share.
        facts: the experiment's, in the order of `grid.ranked`.
        away: whether this is another process than that of the run.
    """

    def __init__(self, bench: Workbench, facts: Sequence[Fact], *, away: bool = False) -> None:
        self.bench, self.facts, self.away = bench, facts, away
        self._at: Block = ()
        self._names: dict[Block, str] = {}
        self._chunk: Chunk | None = None

    def __call__(self, unit: Unit) -> Outcome:
        """The rows of a unit."""
        start = time.perf_counter()
        if not self.away:
            return Outcome(unit.place.compute(self.chunk(unit.facts)), time.perf_counter() - start)
        with _listening() as said:
            rows = unit.place.compute(self.chunk(unit.facts))
        return Outcome(rows, time.perf_counter() - start, said)

    def name(self, block: Block) -> str:
        """The name of some facts, which depends on their contents."""
        if block not in self._names:
            facts = [self.facts[index] for index in block]
            self._names[block] = cell_key({"facts": [[fact.fact_id, fact.content] for fact in facts]})
        return self._names[block]

    def chunk(self, block: Block) -> Chunk:
        """The chunk of some facts; what was computed once for the last one is let go."""
        if self._chunk is None or self._at != block:
            self._at, self._chunk = block, Chunk(self.bench, [self.facts[index] for index in block])
        return self._chunk


@contextmanager
def _listening() -> Iterator[list[Said]]:
    """Collects the package's warnings in place of printing them where nobody looks."""
    said: list[Said] = []
    logger, ear = logging.getLogger("loc_edit"), logging.Handler(logging.WARNING)
    ear.emit = lambda record: said.append((record.name, record.levelno, record.getMessage()))  # type: ignore[method-assign]
    logger.addHandler(ear)
    logger.propagate = False
    try:
        yield said
    finally:
        logger.removeHandler(ear)
        logger.propagate = True
