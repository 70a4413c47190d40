"""Units of work: the rows of some facts in one cell of the grid, or their traces."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isnan
from typing import Any

import pandas as pd
import torch

from loc_edit.editing.problems import EditRequest, pose
from loc_edit.editing.registry import EDITORS
from loc_edit.editing.update import Edit
from loc_edit.editing.value import EditFailed
from loc_edit.experiment.workbench import Cell, Workbench
from loc_edit.facts.fact import Fact
from loc_edit.localization.cells import Localization, grid_options, no_trace
from loc_edit.localization.hooks import window_layers
from loc_edit.localization.registry import localize
from loc_edit.localization.trace import Trace
from loc_edit.localization.tracing import trace_many
from loc_edit.models.memory import out_of_memory
from loc_edit.names import METHODS, PROBLEMS, TRACING
from loc_edit.prompts.encoding import Prompt, encode
from loc_edit.prompts.sampling import sample_essences
from loc_edit.scoring.probes import Meter, Probes, make_probes
from loc_edit.scoring.scores import EditScore, compare

log = logging.getLogger(__name__)

Rows = list[dict[str, Any]]


@dataclass
class Posed:
    """A problem posed to a chunk: the requests, what measures each, and the facts it makes no sense for."""

    requests: list[EditRequest]
    meter: Meter
    skipped: list[tuple[Fact, str]]


class Chunk:
    """Facts that are computed together; what neither method nor layer changes is computed once."""

    def __init__(self, bench: Workbench, facts: Sequence[Fact]) -> None:
        self.bench, self.facts = bench, facts
        self.contents = {fact.fact_id: fact.content for fact in facts}
        self.noiseless: dict[int, str] = {}
        self._posed: dict[str, Posed] = {}

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Each fact's edit prompt."""
        return [encode(self.bench.model, fact) for fact in self.facts]

    @cached_property
    def noise(self) -> list[torch.Tensor | None]:
        """Each fact's subject noise; of those for which there is none, `noiseless` says why."""
        return [self._noise_of(prompt) for prompt in self.prompts]

    def _noise_of(self, prompt: Prompt) -> torch.Tensor | None:
        bench, config = self.bench, self.bench.config
        try:
            return bench.corruption.draw(bench.model, prompt, samples=config.noise_samples, seed=config.seed)
        except ValueError as error:  # no subject takes the place of this one
            self.noiseless[prompt.fact_id] = str(error)
            log.warning("%s: it has no trace", error)
            return None

    @cached_property
    def essences(self) -> list[list[torch.Tensor]]:
        """Each fact's essence texts, sampled from the unedited model."""
        if not self.bench.config.essence:
            return [[] for _ in self.facts]
        subjects, ids = [fact.subject for fact in self.facts], [fact.fact_id for fact in self.facts]
        return sample_essences(self.bench.model, subjects, ids, seed=self.bench.config.seed)

    def traces(self, what: Localization) -> list[Trace]:
        """Each fact's trace; one of NaN where the fact has no noise, or no false object where that is needed."""
        model, config = self.bench.model, self.bench.config
        found = []
        for fact, prompt, noise in zip(self.facts, self.prompts, self.noise, strict=True):
            if noise is None or (what.metric == "logit_difference" and fact.target_new is None):
                found.append(no_trace(model, prompt, fact.target_true, what, config.site))
            elif what.localizer == TRACING:
                found.append(self._traced[prompt.fact_id, what.window])
            else:
                options = grid_options(what.localizer, model, fact, self.bench.data, config.seed)
                options |= {"localizer": what.localizer, "site": config.site, "window": what.window}
                found.append(localize(model, prompt, fact.target_true, noise=noise, **options))
        return found

    @cached_property
    def _traced(self) -> dict[tuple[int, int], Trace]:
        """Causal Tracing by fact and window; all facts and windows share the clean and the corrupted runs."""
        model, config = self.bench.model, self.bench.config
        some = [(p, f.target_true, n) for p, f, n in zip(self.prompts, self.facts, self.noise, strict=True)]
        prompts, targets, noises = zip(*[(p, t, n) for p, t, n in some if n is not None], strict=True)
        found = trace_many(model, prompts, targets, noises=noises, site=config.site, windows=config.windows)
        return {
            (prompt.fact_id, window): trace
            for prompt, traces in zip(prompts, found, strict=True)
            for window, trace in zip(config.windows, traces, strict=True)
        }

    def posed(self, problem: str) -> Posed:
        """The requests of a problem, with their probes measured on the unedited model; only the last is kept."""
        if problem not in self._posed:
            self._posed = {problem: self._pose(problem)}
        return self._posed[problem]

    def _pose(self, problem: str) -> Posed:
        bench = self.bench
        requests: list[EditRequest] = []
        probes: list[Probes] = []
        skipped: list[tuple[Fact, str]] = []
        for fact, noise, texts in zip(self.facts, self.noise, self.essences, strict=True):
            if noise is None and PROBLEMS[problem].sees_noise:
                skipped.append((fact, self.noiseless[fact.fact_id]))
                continue
            try:
                sigma, seed = bench.corruption.sigma, bench.config.seed
                request = pose(fact, problem, bench.model, noise=noise, noise_scale=sigma, seed=seed)
                mine = make_probes(bench.model, fact, request, texts)
            except ValueError as error:
                skipped.append((fact, str(error)))
            else:
                requests.append(request)
                probes.append(mine)
        return Posed(requests, Meter(bench.model, probes, bench.layers), skipped)


def trace_rows(chunk: Chunk, what: Localization) -> pd.DataFrame:
    """The traces of a chunk's facts by one localiser at one window, as rows."""
    cell = chunk.bench.trace_cell(what)
    frames = [
        found.to_frame().assign(relation=fact.relation, cell=cell, fact_content=fact.content)
        for fact, found in zip(chunk.facts, chunk.traces(what), strict=True)
    ]
    return pd.concat(frames, ignore_index=True)


def edit_rows(chunk: Chunk, cell: Cell) -> Rows:
    """One row per fact of a chunk: its edit in one cell, scored; or why there is none."""
    start, posed = time.perf_counter(), chunk.posed(cell.problem)
    common = {name: getattr(cell, name) for name in ("problem", "method", "window", "layer")}
    common |= {"seed": chunk.bench.config.seed, "cell": chunk.bench.edit_cell(cell)}
    edits = edit_all(chunk.bench, cell, posed.requests)
    after = posed.meter.measure([edit if isinstance(edit, Edit) else None for edit in edits])
    compared = zip(posed.meter.before, after, posed.requests, edits, strict=True)
    results = [scored(compare(p, q, r)) if isinstance(edit, Edit) else _failed(edit) for p, q, r, edit in compared]
    seconds = (time.perf_counter() - start) / max(1, len(edits))
    rows = skipped_rows(common, posed)
    for i, request in enumerate(posed.requests):
        rows.append({**common, **request_columns(chunk, request), "seconds": seconds, **results[i]})
    return rows


def skipped_rows(common: dict[str, Any], posed: Posed) -> Rows:
    """The rows of the facts that the problem makes no sense for."""
    return [
        {**common, "fact_id": fact.fact_id, "fact_content": fact.content, "status": "skipped", "reason": why}
        for fact, why in posed.skipped
    ]


def request_columns(chunk: Chunk, request: EditRequest) -> dict[str, Any]:
    """What a row says of its fact and of what is asked of it."""
    return {
        "fact_id": request.fact_id,
        "fact_content": chunk.contents[request.fact_id],
        "target": request.target,
        "objective": request.objective,
    }


def edit_all(bench: Workbench, cell: Cell, requests: Sequence[EditRequest]) -> list[Edit | Exception]:
    """An edit of each request, or why there is none: a batch that fails is done again one by one.

    Where memory does not suffice, a batch is done in halves; for one request it must.
    """
    if not requests:
        return []
    try:
        return list(_edit_batch(bench, cell, list(requests)))
    except (EditFailed, ValueError, torch.linalg.LinAlgError) as error:
        if len(requests) == 1:
            log.warning("%s: %s", cell, error)
            return [error]
        return [result for request in requests for result in edit_all(bench, cell, [request])]
    except (RuntimeError, MemoryError) as error:
        if len(requests) == 1 or not out_of_memory(error):
            raise
        refused = str(error).partition("\n")[0]
    # Not in the `except` clause: the error holds on to the memory of the frames that it came through.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = (len(requests) + 1) // 2
    log.warning("%s: out of memory for %d facts, going on with %d at a time (%s)", cell, len(requests), half, refused)
    return [*edit_all(bench, cell, requests[:half]), *edit_all(bench, cell, requests[half:])]


def _edit_batch(bench: Workbench, cell: Cell, requests: list[EditRequest]) -> list[Edit]:
    model, settings = bench.model, cell.settings
    layers = list(window_layers(cell.layer, cell.window, model.cfg.n_layers))
    given: dict[str, Any] = {"settings": settings}
    if style := METHODS[cell.method].contexts:
        given |= {"stats": bench.stats(), "contexts": bench.contexts[style]}
    return EDITORS[cell.method](model, requests, layers, **given)


def _failed(why: Exception) -> dict[str, Any]:
    return {"status": "failed", "reason": str(why)}


def scored(score: EditScore) -> dict[str, Any]:
    """The score's columns; an edit is done where its rewrite score is a number, and failed where p is none after it."""
    status = "failed" if isnan(score.after.rewrite) else "skipped" if isnan(score.rewrite) else "done"
    return {**score.to_row(), "status": status, "reason": score.reason}
