"""Units of work: the rows of some facts in one cell of the grid, or their traces."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import isnan
from typing import Any

import pandas as pd
import torch
from transformer_lens import HookedTransformer

from loc_edit.batching import out_of_memory
from loc_edit.config import ExperimentConfig
from loc_edit.corpora import corpus_content
from loc_edit.editing.methods import METHODS
from loc_edit.editing.update import Edit
from loc_edit.editing.value import EditFailed
from loc_edit.facts import Fact
from loc_edit.keys import KeyStats
from loc_edit.models import fingerprint
from loc_edit.noise import subject_noise
from loc_edit.probing import Meter, Probes, make_probes
from loc_edit.problems import EditRequest, pose, sees_noise
from loc_edit.prompts import encode
from loc_edit.sampling import sample_essences
from loc_edit.scores import EditScore, compare
from loc_edit.settings import Settings
from loc_edit.store import cell_key
from loc_edit.tracing import Trace, trace_many, window_layers

log = logging.getLogger(__name__)

Rows = list[dict[str, Any]]

NEED_STATS = tuple(name for name, method in METHODS.items() if method.texts)
"""Methods that need key statistics and context texts."""


@dataclass(frozen=True)
class Cell:
    """One problem, method and layer of the grid."""

    problem: str
    method: str
    window: int
    layer: int
    settings: Settings

    def __str__(self) -> str:
        return f"{self.problem}, {self.method}-{self.window}, layer {self.layer}"


@dataclass(frozen=True)
class Workbench:
    """What all units share, and the names of cells.

    A cell's name holds all that its rows depend on but for the fact, and nothing else: a changed noise leaves edits as
    they are that see none, and another corpus leaves fine-tuning as it is.

    Attributes:
        config: the experiment's configuration.
        model: the model.
        sigma: the noise's standard deviation.
        layers: the lowest layers that edits will change.
        contexts: the editors' context texts, by method.
        stats: makes the key statistics, when an editor first asks for them.
    """

    config: ExperimentConfig
    model: HookedTransformer
    sigma: float
    layers: Sequence[int]
    contexts: Mapping[str, Sequence[str]]
    stats: Callable[[], KeyStats]
    _names: dict[object, str] = field(default_factory=dict, repr=False, compare=False)

    def trace_cell(self, window: int) -> str:
        """Names all that a trace's numbers depend on, but for the fact."""
        return self._name(("trace", window), lambda: {**self._noise, "site": self.config.site, "window": window})

    def edit_cell(self, cell: Cell) -> str:
        """Names all that an edit's numbers depend on, but for the fact."""
        config = self.config

        def about() -> dict[str, Any]:
            found = {**self._scores(cell.problem), "cell": asdict(cell)}
            if cell.method in NEED_STATS:
                found["contexts"] = list(self.contexts.get(METHODS[cell.method].texts or "", ()))
                found["corpus"] = [corpus_content(config.corpus), config.corpus_tokens, config.ridge]
            return found

        return self._name(cell, about)

    def unedited_cell(self, problem: str) -> str:
        """Names all that an unedited row's numbers depend on, but for the fact."""
        return self._name(("none", problem), lambda: {**self._scores(problem), "control": "none", "problem": problem})

    def _scores(self, problem: str) -> dict[str, Any]:
        """What scores depend on for a problem: noise too, where the problem sees any."""
        noise = self._noise if sees_noise(problem) else {}
        return {**noise, "essence": self.config.essence}

    @property
    def _noise(self) -> dict[str, Any]:
        return {"sigma": self.sigma, "samples": self.config.noise_samples}

    def _name(self, key: object, about: Callable[[], dict[str, Any]]) -> str:
        """The name of a cell, made once."""
        if key not in self._names:
            self._names[key] = cell_key({"model": self._fingerprint, "seed": self.config.seed, **about()})
        return self._names[key]

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self.model)


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
        self._posed: dict[str, Posed] = {}

    @cached_property
    def noise(self) -> list[torch.Tensor]:
        """Each fact's subject noise."""
        model, sigma, config = self.bench.model, self.bench.sigma, self.bench.config
        prompts = [encode(model, fact) for fact in self.facts]
        return [
            subject_noise(model, prompt, scale=sigma, samples=config.noise_samples, seed=config.seed)
            for prompt in prompts
        ]

    @cached_property
    def essences(self) -> list[list[torch.Tensor]]:
        """Each fact's essence texts, sampled from the unedited model."""
        if not self.bench.config.essence:
            return [[] for _ in self.facts]
        subjects, ids = [fact.subject for fact in self.facts], [fact.fact_id for fact in self.facts]
        return sample_essences(self.bench.model, subjects, ids, seed=self.bench.config.seed)

    @cached_property
    def traces(self) -> dict[int, list[Trace]]:
        """Each fact's traces, by window; all windows share the clean and the corrupted runs."""
        model, config = self.bench.model, self.bench.config
        prompts = [encode(model, fact) for fact in self.facts]
        targets = [fact.target_true for fact in self.facts]
        found = trace_many(model, prompts, targets, noises=self.noise, site=config.site, windows=config.windows)
        return {window: [traces[i] for traces in found] for i, window in enumerate(config.windows)}

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
            try:
                request = pose(fact, problem, bench.model, noise=noise, noise_scale=bench.sigma, seed=bench.config.seed)
                mine = make_probes(bench.model, fact, request, texts)
            except ValueError as error:
                skipped.append((fact, str(error)))
            else:
                requests.append(request)
                probes.append(mine)
        return Posed(requests, Meter(bench.model, probes, bench.layers), skipped)


def trace_rows(chunk: Chunk, window: int) -> pd.DataFrame:
    """The traces of a chunk's facts at one window, as rows."""
    cell = chunk.bench.trace_cell(window)
    frames = [
        found.to_frame().assign(relation=fact.relation, cell=cell, fact_content=fact.content)
        for fact, found in zip(chunk.facts, chunk.traces[window], strict=True)
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
    method = METHODS[cell.method]
    given: dict[str, Any] = {"settings": settings}
    if method.texts:
        given |= {"stats": bench.stats(), "contexts": bench.contexts[method.texts]}
    return method.edit(model, requests, layers, **given)


def _failed(why: Exception) -> dict[str, Any]:
    return {"status": "failed", "reason": str(why)}


def scored(score: EditScore) -> dict[str, Any]:
    """The score's columns; an edit is done where its rewrite score is a number, and failed where p is none after it."""
    status = "failed" if isnan(score.after.rewrite) else "skipped" if isnan(score.rewrite) else "done"
    return {**score.to_row(), "status": status, "reason": score.reason}
