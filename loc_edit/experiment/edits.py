"""The edits of one cell for a batch of facts: made together, scored together, and put into rows."""

import logging
from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

import pandas as pd
import torch

from loc_edit.editing.problems import EditRequest
from loc_edit.editing.registry import EDITORS
from loc_edit.editing.settings import Settings
from loc_edit.editing.update import Edit
from loc_edit.editing.value import EditFailed
from loc_edit.experiment import movement as movement  # registers it
from loc_edit.experiment.batch import Batch, Posed
from loc_edit.experiment.setup import Setup
from loc_edit.localization.hooks import window_layers
from loc_edit.models.memory import halving
from loc_edit.names import METHODS
from loc_edit.scoring import registry as registry  # registers the scores
from loc_edit.scoring.contract import with_others
from loc_edit.scoring.scores import EditScore, compare

log = logging.getLogger(__name__)

Outcome = EditScore | Exception
"""What came of an edit: its score, or why there is none."""
EDIT_ERRORS = (EditFailed, ValueError, torch.linalg.LinAlgError)
"""Errors by which an editor says that it cannot make an edit."""


def edit_batch(
    setup: Setup,
    requests: Sequence[EditRequest],
    method: str,
    window: int,
    layer: int,
    settings: Settings,
    **more: Any,
) -> list[Edit | Exception]:
    """An edit for each request, or why there is none.

    A batch that fails is done again one request at a time, so that one fact cannot spoil another.  If memory runs
    out, a batch is done in halves; a single request must fit.

    Args:
        setup: gives the model and what the method needs besides.
        requests: from `pose`; any number.
        method: one of `loc_edit.names.METHODS`.
        window: how many layers are edited.
        layer: their center.
        settings: the method's.
        more: what else the method's editor takes.

    Raises:
        RuntimeError, MemoryError: memory does not suffice for one request.
    """
    if not requests:
        return []
    layers = list(window_layers(layer, window, setup.model.cfg.n_layers))
    texts = texts_of(setup, method)
    outcomes: list[Edit | Exception] = []

    def edit(some: Sequence[EditRequest]) -> list[Edit | Exception]:
        try:
            return list(EDITORS[method](setup.model, list(some), layers, settings=settings, **texts, **more))
        except EDIT_ERRORS as error:
            if len(some) == 1:
                log.warning("%s-%d, layer %d: %s", method, window, layer, error)
                return [error]
            return [outcome for request in some for outcome in edit([request])]

    halving(len(requests), len(requests), lambda part: outcomes.extend(edit(requests[part])), unit="facts")
    return outcomes


def texts_of(setup: Setup, method: str) -> dict[str, Any]:
    """What a method takes from texts: key statistics and contexts, by the editor's keyword."""
    known = METHODS[method]
    texts: dict[str, Any] = {"stats": setup.stats} if known.stats else {}
    return texts | ({"contexts": setup.contexts[known.contexts]} if known.contexts else {})


def score_batch(posed: Posed, edits: Sequence[Edit | Exception | None]) -> list[Outcome]:
    """The score of each request's edit (`None`: of the unedited model), or why it has none."""
    after = posed.meter.measure([edit if isinstance(edit, Edit) else None for edit in edits])
    outcomes: list[Outcome] = []
    for i, (edit, before, measured) in enumerate(zip(edits, posed.meter.before, after, strict=True)):
        if isinstance(edit, Exception):
            outcomes.append(edit)
            continue
        request, others = posed.requests[i], {name: values[i] for name, values in posed.before.items()}
        score = compare(before, measured, request.objective)
        model, fact = posed.meter.model, posed.facts[i]
        outcomes.append(with_others(score, others, model, fact, request, edit, **posed.given[i]))
    return outcomes


def rows_of_edits(
    columns: Mapping[str, Any], batch: Batch, posed: Posed, outcomes: Sequence[Outcome], **more: Any
) -> pd.DataFrame:
    """One row per fact of a batch: scored, failed, or skipped because the problem makes no sense for it.

    Args:
        columns: the same in every row: what names the cell.
        batch: gives the facts' contents.
        posed: the requests, and the facts skipped.
        outcomes: one per request.
        more: further columns of rows that are not skipped.
    """
    rows: list[dict[str, Any]] = [
        {**columns, "fact_id": fact.fact_id, "fact_content": fact.content, "status": "skipped", "reason": reason}
        for fact, reason in posed.skipped
    ]
    for request, outcome in zip(posed.requests, outcomes, strict=True):
        about_request = {
            "fact_id": request.fact_id,
            "fact_content": batch.contents[request.fact_id],
            "target": request.target,
            "objective": request.objective,
        }
        rows.append({**columns, **about_request, **more, **_scores(outcome)})
    return pd.DataFrame(rows)


def _scores(outcome: Outcome) -> dict[str, Any]:
    """An edit is done if its rewrite score is a number, failed if p after it is none, else skipped."""
    if isinstance(outcome, Exception):
        return {"status": "failed", "reason": str(outcome)}
    status = "failed" if isnan(outcome.after.rewrite) else "skipped" if isnan(outcome.rewrite) else "done"
    return {**outcome.to_row(), "status": status, "reason": outcome.reason}
