"""What computes tasks, in whatever process: it has the setup, the facts, and the batch that it is working on."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pandas as pd

from loc_edit.experiment.batch import Batch
from loc_edit.experiment.failures import Failure, rows_or_reasons
from loc_edit.experiment.schedule import FactIndices, Task
from loc_edit.experiment.setup import Setup
from loc_edit.facts.fact import Fact
from loc_edit.store.settings import cell_key


@dataclass(frozen=True)
class LogMessage:
    """A message that was logged in another process."""

    logger: str
    level: int
    text: str

    def repeat(self) -> None:
        """Log it in this process."""
        logging.getLogger(self.logger).log(self.level, "%s", self.text)


@dataclass(frozen=True)
class Computed:
    """The rows of a task.

    Attributes:
        rows: as a run folder takes them.
        seconds: how long computing took.
        failures: the facts that an unexpected error has struck; their rows say so.
        warnings: logged meanwhile, if the worker is another process: they belong into the run's log.
    """

    rows: pd.DataFrame
    seconds: float
    failures: Sequence[Failure] = ()
    warnings: Sequence[LogMessage] = ()


class Worker:
    """Computes tasks one after another; tasks of the same facts in succession share a batch.

    Args:
        setup: what all tasks share.
        facts: the experiment's facts.
        elsewhere: whether this is another process than the run's.
    """

    def __init__(self, setup: Setup, facts: Sequence[Fact], *, elsewhere: bool = False) -> None:
        self.setup, self.facts, self.elsewhere = setup, facts, elsewhere
        self._indices: FactIndices = ()
        self._batch: Batch | None = None
        self._names: dict[FactIndices, str] = {}

    def __call__(self, task: Task) -> Computed:
        """The rows of a task."""
        start = time.perf_counter()
        with _collected_warnings(self.elsewhere) as warnings:
            rows, failures = rows_or_reasons(task.cell, self.batch(task.facts))
        return Computed(rows, time.perf_counter() - start, failures, warnings)

    def batch(self, indices: FactIndices) -> Batch:
        """The batch of some facts; what was computed once for the last batch is let go."""
        if self._batch is None or self._indices != indices:
            self._indices, self._batch = indices, Batch(self.setup, [self.facts[index] for index in indices])
        return self._batch

    def shard_name(self, task: Task) -> str:
        """The name of a task's shard: its cell's, and a hash of its facts with their contents."""
        if task.facts not in self._names:
            facts = [self.facts[index] for index in task.facts]
            self._names[task.facts] = cell_key({"facts": [[fact.fact_id, fact.content] for fact in facts]})
        return f"{task.name}-{self._names[task.facts]}"


@contextmanager
def _collected_warnings(elsewhere: bool) -> Iterator[list[LogMessage]]:
    """Collects the package's warnings in another process, instead of printing them where nobody looks."""
    messages: list[LogMessage] = []
    if not elsewhere:
        yield messages
        return
    logger, handler = logging.getLogger("loc_edit"), logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(  # type: ignore[method-assign]
        LogMessage(record.name, record.levelno, record.getMessage())
    )
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = True
