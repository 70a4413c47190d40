"""Failures of single facts: an error in one fact's work becomes its row, and only many of them stop a run."""

import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from loc_edit.contract import spelled_out
from loc_edit.events import emit
from loc_edit.experiment.batch import Batch
from loc_edit.experiment.cell import Cell
from loc_edit.experiment.study import TraceCell
from loc_edit.models.checks import ends_run

SHARE = 0.2
"""A run stops if unexpected errors strike a larger share of the facts computed in a cell, and two facts at least."""


class ManyFailed(RuntimeError):
    """The same work failed for many facts, so the fault lies elsewhere; rows written before are kept."""


@dataclass(frozen=True)
class Failure:
    """An error that nobody expected in the work of one fact.

    Attributes:
        fact_id: the fact.
        reason: the error in words.
        traceback: where it came from.
    """

    fact_id: int
    reason: str
    traceback: str


def rows_or_reasons(cell: Cell, batch: Batch) -> tuple[pd.DataFrame, list[Failure]]:
    """The rows of a cell for a batch; after an error, fact by fact, with a row that says why for each that fails.

    Raises:
        Exception: it is not one fact's own: memory or disk has run out, or a plug-in has spoiled the model.
    """
    try:
        return cell.rows(batch), []
    except Exception as error:
        if ends_run(error):
            raise
        if len(batch.facts) == 1 or cell.kind == "sequences":
            reason = spelled_out(error)
            failure = Failure(batch.facts[0].fact_id, reason, traceback.format_exc())
            return _failed_rows(cell, batch, reason), [failure]
    parts = [rows_or_reasons(cell, Batch(batch.setup, [fact])) for fact in batch.facts]
    return pd.concat([rows for rows, _ in parts], ignore_index=True), [f for _, failures in parts for f in failures]


def _failed_rows(cell: Cell, batch: Batch, reason: str) -> pd.DataFrame:
    """Rows without numbers, of one fact, or of a sequence, which fails as a whole."""
    if isinstance(cell, TraceCell):
        batch.leave_untraced(cell.localizer)
        return cell.rows(batch).assign(reason=reason)
    fact, columns = batch.facts[0], {**cell.columns(batch.setup), "reason": reason}
    columns |= {"n_edits": 0} if cell.kind == "sequences" else {"status": "failed"}
    return pd.DataFrame([{**columns, "fact_id": fact.fact_id, "fact_content": fact.content}])


class FailureBound:
    """Counts facts and failures by cell, and stops a run in which too many fail."""

    def __init__(self) -> None:
        self._facts, self._failed = Counter[str](), Counter[str]()

    def check(self, cell: Cell, n_facts: int, failures: Sequence[Failure]) -> None:
        """Count the facts of a finished task, and emit an event for each failure.

        Raises:
            ManyFailed: too many of the cell's facts have failed.
        """
        name = str(cell)
        self._facts[name] += n_facts
        self._failed[name] += len(failures)
        for failure in failures:
            emit("failure", cell=name, **asdict(failure))
        n_failed, n_facts = self._failed[name], self._facts[name]
        if failures and n_failed > max(1, SHARE * n_facts):
            raise ManyFailed(
                f"{name}: {n_failed} of {n_facts} facts failed, fact {failures[0].fact_id} with "
                f"{failures[0].reason}; the rows before are kept, and the run's log has the traceback"
            )
