"""The study, end to end: facts -> traces and edits -> rows on disk.  The page to read first.

`Experiment.run` goes through the facts a chunk at a time: it traces each fact once per window, poses each problem,
edits at each layer with each method, scores, and writes the rows of every unit of work as one shard.  A unit that is
on disk is not computed again.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from transformer_lens import HookedTransformer

from loc_edit.batching import make_batch
from loc_edit.config import ExperimentConfig
from loc_edit.controls import random_layer_cell, random_layer_rows, unedited_cell, unedited_rows
from loc_edit.corpora import IDENTITY, check_corpus, corpus_content
from loc_edit.data.builtin import spread
from loc_edit.engine import cores, spread_out
from loc_edit.facts import BadFact, Fact, load_facts
from loc_edit.keys import KeyStats, key_stats
from loc_edit.known import known_facts
from loc_edit.models import check_editable, check_layers, fingerprint, load_model, versions
from loc_edit.noise import noise_scale
from loc_edit.planning import Plan, make_plan
from loc_edit.prompts import encode, target_tokens
from loc_edit.sampling import sample_contexts
from loc_edit.settings import parse_method
from loc_edit.store import Kind, Run, load_run, write_atomic
from loc_edit.tracing.hooks import check_site, window_layers
from loc_edit.units import Cell, Chunk, Rows, Workbench, edit_rows, trace_rows

SMALL = 50_000_000
"""Parameters up to which a copy of the model per core is no burden."""

NEED_STATS = ("rome", "memit")

Progress = Callable[[str, int, int], None]
"""Called with a few words, the number of units done, and the number of units in all."""


@dataclass(frozen=True)
class Unit:
    """Some facts in one cell, or their traces: computed, written and resumed as one."""

    kind: Kind
    key: str
    words: str
    chunk: Chunk
    compute: Callable[[], Rows | pd.DataFrame]


class Experiment:
    """An experiment, ready to run: its configuration, and the model and facts that it names.

    `Experiment.from_toml("full").run()`, or `Experiment(ExperimentConfig(facts=20)).run()`.
    """

    controls = True
    """Whether rows without an edit, and at a random layer, are part of the grid."""

    def __init__(self, config: ExperimentConfig | None = None) -> None:
        self.config = config or ExperimentConfig()

    @classmethod
    def from_toml(cls, path: str | Path) -> "Experiment":
        """The experiment of a TOML file or a named configuration (`default`, `smoke`, `full`)."""
        return cls(ExperimentConfig.from_toml(path))

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs to make the same experiment: no model, no facts."""
        kinds = type(self).__mro__
        cached = {name for kind in kinds for name, v in vars(kind).items() if isinstance(v, cached_property)}
        return {name: value for name, value in vars(self).items() if name not in cached}

    @cached_property
    def model(self) -> HookedTransformer:
        """The model, checked to be one that can be edited."""
        model = load_model(self.config.model)
        check_editable(model)
        return model

    @cached_property
    def facts(self) -> list[Fact]:
        """The chosen facts; each has its subject in its prompt and fits the model's context with its object."""
        pool, config = self._data, self.config
        if config.known or config.min_probability > 0:
            pool = known_facts(self.model, pool, known=config.known, min_probability=config.min_probability)
            if not pool:
                raise BadFact(f"{config.data}: the model knows none of the {len(self._data)} facts")
        facts = spread(pool, config.facts or len(pool))
        ids = [fact.fact_id for fact in facts]
        if twice := {i for i in ids if ids.count(i) > 1}:
            raise BadFact(f"{self.config.data}: fact ids {sorted(twice)} are there twice")
        for fact in facts:
            prompt = encode(self.model, fact)
            make_batch(self.model, [prompt], [target_tokens(self.model, prompt.text, fact.target_true)])
        return facts

    @cached_property
    def _data(self) -> list[Fact]:
        config = self.config
        return load_facts(config.data, limit=config.data_limit, seed=config.seed, skip_invalid=config.skip_invalid)

    @cached_property
    def layers(self) -> list[int]:
        """The layers to edit."""
        layers = list(range(self.model.cfg.n_layers) if self.config.layers is None else self.config.layers)
        check_layers(self.model, layers)
        return layers

    @property
    def windows(self) -> tuple[int, ...]:
        """The restoration windows to trace with."""
        return self.config.windows

    @cached_property
    def sigma(self) -> float:
        """The noise's standard deviation; an `s` scale is over all subjects of the data set."""
        return noise_scale(self.model, self.config.noise, self._data)

    @cached_property
    def stats(self) -> KeyStats:
        """Second moments of the keys, of every layer that an editor needs them of."""
        config, n_layers = self.config, self.model.cfg.n_layers
        edited = [window_layers(cell.layer, cell.window, n_layers) for cell in self.cells if cell.method in NEED_STATS]
        layers = sorted({layer for window in edited for layer in window})
        return key_stats(self.model, layers, config.corpus, tokens=config.corpus_tokens, ridge=config.ridge)

    @property
    def _needs_stats(self) -> bool:
        return any(cell.method in NEED_STATS for cell in self.cells)

    @cached_property
    def cells(self) -> list[Cell]:
        """Every problem x method x layer, in the order of computing."""
        return [
            Cell(problem, *parse_method(name), layer, self.config.settings_of(name, problem))
            for problem in self.config.problems
            for name in self.config.methods
            for layer in self.layers
        ]

    def resolved(self) -> dict[str, Any]:
        """The whole configuration with nothing left to a default: what a run's folder records and compares."""
        values = self.config.model_dump(mode="json", exclude={"out", "preset", "settings", "workers"})
        if self.config.corpus not in ("builtin", IDENTITY):  # a file's name does not say what is in it
            values["corpus_content"] = corpus_content(self.config.corpus)
        settings: dict[str, dict[str, Any]] = {}
        for cell in self.cells:
            settings.setdefault(f"{cell.method}-{cell.window}", {})[cell.problem] = asdict(cell.settings)
        return {**values, "layers": self.layers, "sigma": self.sigma, "settings": settings}

    def run(self, out: str | Path | None = None, progress: Progress | None = None, workers: int | None = None) -> Run:
        """Compute what is missing in the run's folder, and return the run for reading.

        Args:
            out: the folder; the configuration's by default.
            progress: told of every unit.
            workers: processes that compute side by side, each with its own copy of the model; the
                configuration's by default, or 1, which is this process.  (A script that asks for more needs the
                usual `if __name__ == "__main__":`.)

        Raises:
            RunMismatch: the folder holds a run of another configuration or model.
            BadModel, BadFact, ValueError: the model, a fact or a layer cannot be used.
            StoreError: the disk refused; rows written before are kept, and running again goes on.
        """
        for _ in self.rows(out, progress, workers):
            pass
        return load_run(out or self.config.out)

    def rows(
        self, out: str | Path | None = None, progress: Progress | None = None, workers: int | None = None
    ) -> Iterator[Rows | pd.DataFrame]:
        """Like `run`, but yields the rows of each unit when they are on disk."""
        provenance = {**versions(), "model_fingerprint": fingerprint(self.model), "seed": self.config.seed}
        _ = self.facts  # refuse bad facts, and a bad site, before a folder is made
        check_site(self.model, self.config.site)
        check_corpus(self.config.corpus)
        with Run.create(out or self.config.out, self.resolved(), provenance) as run:
            bench = self.bench(run.path)
            done = run.done("traces") | run.done("edits")
            chunks = self.chunks(bench)
            units = [list(self.units(chunk)) for chunk in chunks]
            missing = [[unit for unit in stream if unit.key not in done] for stream in units]
            last = [unit for unit in self.last_units(chunks, run) if unit.key not in done]
            total = sum(map(len, units)) + len(self.last_units(chunks, run))
            finished = total - sum(map(len, missing)) - len(last)
            if finished and progress:
                progress("found on disk", finished, total)
            computed = self._compute(missing, run.path, workers or self.config.workers or 1)
            for unit, rows in chain(computed, ((unit, unit.compute()) for unit in last)):
                run.write(unit.kind, unit.key, rows)
                finished += 1
                if progress:
                    progress(unit.words, finished, total)
                yield rows

    def _compute(
        self, streams: list[list[Unit]], folder: Path, workers: int
    ) -> Iterator[tuple[Unit, Rows | pd.DataFrame]]:
        """Every unit with its rows, in this process or in several."""
        if workers == 1:
            for stream in streams:
                for unit in stream:
                    yield unit, unit.compute()
                for unit in stream[:1]:
                    unit.chunk.forget()
            return
        if self._needs_stats and any(streams):
            _ = self.stats  # computed here once; the workers find them in the cache
        units = {unit.key: unit for stream in streams for unit in stream}
        tasks = [[unit.key for unit in stream] for stream in streams]
        for key, rows in spread_out(tasks, partial(_open_worker, self, folder), workers):
            yield units[key], rows

    def default_workers(self) -> int:
        """One worker per core for a small model on the CPU, as small products do not fill several threads; else 1."""
        small = sum(p.numel() for p in self.model.parameters()) <= SMALL and self.model.W_E.device.type == "cpu"
        return self.config.workers or (cores() if small else 1)

    def frame(self) -> pd.DataFrame:
        """The edit rows of the run's folder, each with its tracing effect."""
        return load_run(self.config.out).frame()

    def units(self, chunk: Chunk) -> Iterator[Unit]:
        """Every unit of work of some facts: first the traces, then the edits."""
        for window in self.windows:
            key = f"{chunk.bench.trace_cell(window)}-{chunk.name}"
            yield Unit("traces", key, f"tracing, window {window}", chunk, partial(trace_rows, chunk, window))
        for problem in self.config.problems:
            if self.controls:
                key = f"{unedited_cell(chunk.bench, problem)}-{chunk.name}"
                yield Unit("edits", key, f"{problem}, no edit", chunk, partial(unedited_rows, chunk, problem))
            for cell in self.cells:
                if cell.problem == problem:
                    key = f"{chunk.bench.edit_cell(cell)}-{chunk.name}"
                    yield Unit("edits", key, str(cell), chunk, partial(edit_rows, chunk, cell))

    def last_units(self, chunks: list[Chunk], run: Run) -> list[Unit]:
        """What is made of the finished rows: the random-layer control of each method and problem."""
        if not self.controls:
            return []
        groups: dict[tuple[str, str, int], list[Cell]] = {}
        for cell in self.cells:
            groups.setdefault((cell.problem, cell.method, cell.window), []).append(cell)
        finished = cache(lambda: run.read("edits", lists=True))
        return [
            Unit(
                "edits",
                f"{random_layer_cell(chunk.bench, cells)}-{chunk.name}",
                "random-layer control",
                chunk,
                lambda chunk=chunk, cells=cells: random_layer_rows(chunk, cells, finished()),  # type: ignore[misc]
            )
            for chunk in chunks
            for cells in groups.values()
        ]

    def chunks(self, bench: Workbench) -> list[Chunk]:
        """The facts, some at a time."""
        size = self.config.chunk
        return [Chunk(bench, self.facts[i : i + size]) for i in range(0, len(self.facts), size)]

    def bench(self, folder: Path | None = None) -> Workbench:
        """What all units share; context texts are those saved in `folder`, else sampled, and saved there."""
        lowest = [min(window_layers(cell.layer, cell.window, self.model.cfg.n_layers)) for cell in self.cells]
        return Workbench(
            self.config, self.model, self.sigma, sorted(set(lowest)), self._contexts(folder), lambda: self.stats
        )

    def _contexts(self, folder: Path | None) -> dict[str, list[str]]:
        path = folder / "contexts.json" if folder else None
        if path and path.is_file():
            return dict(json.loads(path.read_text(encoding="utf-8")))
        seed = self.config.seed
        contexts = {
            "rome": list(sample_contexts(self.model, "rome", seed=seed)),
            "memit": list(sample_contexts(self.model, "memit", seed=seed)),
        }
        if path:
            write_atomic(path, json.dumps(contexts, indent=1, ensure_ascii=False).encode())
        return contexts

    def plan(self) -> Plan:
        """What the experiment means in traces and edits, time, disk and memory; computes a few rows to tell."""
        return make_plan(
            self.bench(),
            self.facts,
            self.cells,
            windows=self.windows,
            controls=self.controls,
            processes=self.default_workers(),
        )


def _open_worker(experiment: Experiment, folder: Path) -> Callable[[str], Rows | pd.DataFrame]:
    """In a worker process: the same experiment, and what computes one of its units by key."""
    units = {
        unit.key: unit for chunk in experiment.chunks(experiment.bench(folder)) for unit in experiment.units(chunk)
    }
    at_work: list[Chunk] = []

    def compute(key: str) -> Rows | pd.DataFrame:
        unit = units[key]
        if at_work and at_work[0] is not unit.chunk:
            at_work.pop().forget()
        at_work[:] = [unit.chunk]
        return unit.compute()

    return compute
