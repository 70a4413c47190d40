"""The study, end to end: facts -> traces and edits -> rows on disk.  The page to read first.

`Experiment.run` goes through the facts a chunk at a time: it traces each fact once per window, poses each problem,
edits at each layer with each method, scores, and writes the rows of every unit of work as one shard.  What is on disk
is not computed again: a run that was stopped goes on, and one that has more facts, layers, methods, problems, windows
or localisers computes those.
"""

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from loc_edit.analysis.run import Run, load_run
from loc_edit.analysis.tables.localized import windows_of
from loc_edit.experiment.config import ExperimentConfig
from loc_edit.experiment.contexts import save_contexts, saved_contexts
from loc_edit.experiment.controls import random_layer_rows
from loc_edit.experiment.engine.engine import Engine, cores, spread_out
from loc_edit.experiment.estimate import Plan, make_plan
from loc_edit.experiment.grid import Place, Unit, last_places, missing, on_disk, places, select
from loc_edit.experiment.run_log import journal
from loc_edit.experiment.ticker import Progress, Ticker
from loc_edit.experiment.units import Rows
from loc_edit.experiment.workbench import NEED_STATS, Cell, Workbench
from loc_edit.experiment.worker import Outcome, Worker
from loc_edit.facts.fact import BadFact, Fact
from loc_edit.facts.loading import load_facts
from loc_edit.facts.sampling import sample_by_relation
from loc_edit.keys.compute import key_stats
from loc_edit.keys.corpora import IDENTITY, check_corpus, corpus_content
from loc_edit.keys.moments import KeyStats
from loc_edit.localization.cells import Localization
from loc_edit.localization.hooks import check_site, window_layers
from loc_edit.models.checks import check_editable, check_layers
from loc_edit.models.identity import fingerprint, versions
from loc_edit.models.loading import load_model
from loc_edit.models.model import Model
from loc_edit.names import parse_method
from loc_edit.prompts.batches import make_batch
from loc_edit.prompts.encoding import encode, target_tokens
from loc_edit.prompts.noise import Corruption, corruption
from loc_edit.prompts.recall import known_facts
from loc_edit.prompts.sampling import sample_contexts
from loc_edit.store.mirror import Mirror
from loc_edit.store.settings import cell_key

SMALL = 50_000_000
"""Parameters up to which a copy of the model per core is no burden."""

ENGINE = ("workers", "engine", "address", "gpus", "mirror")
"""Options that say where rows are computed and kept, not what they are."""

SENT = ("facts", "corruption", "references", "layers")
"""What another process is given, not left to compute again."""


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
        """What another process needs to make the same experiment: its facts and noise, but no model."""
        return {name: value for name, value in vars(self).items() if name in SENT or not self._is_cached(name)}

    def _is_cached(self, name: str) -> bool:
        return any(isinstance(vars(kind).get(name), cached_property) for kind in type(self).__mro__)

    @cached_property
    def model(self) -> Model:
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
        facts = sample_by_relation(pool, config.facts)
        counts = Counter(fact.fact_id for fact in facts)
        if twice := [fact_id for fact_id, n in counts.items() if n > 1]:
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
    def localizations(self) -> list[Localization]:
        """Every localiser x window."""
        windows, others = self.config.windows, self.config.localizer_windows
        return [Localization(name, w) for name in self.config.localizers for w in windows_of(name, windows, others)]

    @cached_property
    def corruption(self) -> Corruption:
        """The subject noise; what depends on subjects does so on all of the data set."""
        return corruption(self.model, self.config.noise, self._data)

    @property
    def sigma(self) -> float | None:
        """The noise's standard deviation, where it is Gaussian."""
        return self.corruption.sigma

    @cached_property
    def references(self) -> list[Fact]:
        """The data set, where a localiser draws other facts' prompts from it."""
        return self._data if any(what.needs_references for what in self.localizations) else []

    @cached_property
    def stats(self) -> KeyStats:
        """Second moments of the keys, of every layer that an editor needs them of."""
        config, n_layers = self.config, self.model.cfg.n_layers
        edited = [window_layers(cell.layer, cell.window, n_layers) for cell in self.cells if cell.method in NEED_STATS]
        layers = sorted({layer for window in edited for layer in window})
        return key_stats(self.model, layers, config.corpus, tokens=config.corpus_tokens, ridge=config.ridge)

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
        """The whole configuration with nothing left to a default: what a run's folder records."""
        values = self.config.model_dump(mode="json", exclude={"out", "preset", "settings", *ENGINE})
        if self.config.corpus not in ("builtin", IDENTITY):  # a file's name does not say what is in it
            values["corpus_content"] = corpus_content(self.config.corpus)
        settings: dict[str, dict[str, Any]] = {}
        for cell in self.cells:
            settings.setdefault(f"{cell.method}-{cell.window}", {})[cell.problem] = asdict(cell.settings)
        noise = {"corruption": dict(self.corruption.identity)} if self.sigma is None else {"sigma": self.sigma}
        return {**values, "layers": self.layers, **noise, "settings": settings}

    def run(self, out: str | Path | None = None, progress: Progress | None = None, workers: int | None = None) -> Run:
        """Compute what is missing in the run's folder, and return the run for reading.

        Args:
            out: the folder; the configuration's by default.
            progress: told of every unit.
            workers: processes (or Ray actors) that compute side by side, each with its own copy of the model; the
                configuration's by default, or 1, which is this process (Ray: as many as the cluster has room for).
                A script that asks for more needs the usual `if __name__ == "__main__":`.

        Raises:
            RunMismatch: the folder holds a run of another model or of other facts.
            BadModel, BadFact, ValueError: the model, a fact or a layer cannot be used.
            StoreError: the disk refused; rows written before are kept, and running again goes on.
            WorkerDied: a unit has ended several workers.
        """
        for _ in self.rows(out, progress, workers):
            pass
        return load_run(out or self.config.out)

    def rows(
        self, out: str | Path | None = None, progress: Progress | None = None, workers: int | None = None
    ) -> Iterator[Rows | pd.DataFrame]:
        """Like `run`, but yields the rows of each unit when they are on disk."""
        provenance = {**versions(), "model_fingerprint": fingerprint(self.model), "seed": self.config.seed}
        facts = self.facts  # refuse bad facts, and a bad site, before a folder is made
        check_site(self.model, self.config.site)
        if self.references and len({fact.subject for fact in self.references}) < 2:
            raise BadFact(f"{self.config.data}: mean and resample ablation want facts of several subjects")
        check_corpus(self.config.corpus)
        folder = Path(out or self.config.out).expanduser()
        mirror = Mirror(self.config.mirror, folder) if self.config.mirror else None
        if mirror:
            mirror.fetch()
        bench = self.bench(folder)
        wanted, last = self.places(bench), self.last_places(bench)
        selection = select([*wanted, *last], facts)
        with Run.create(folder, self.resolved(), provenance, selection) as run, journal(run.path):
            save_contexts(run.path, self.config.seed, bench.contexts)
            done = on_disk([*run.shards("traces"), *run.shards("edits")], facts)
            streams = missing(wanted, len(facts), self.config.chunk, done)
            copied = missing(last, len(facts), self.config.chunk, done)
            n_missing = sum(map(len, streams)) + sum(map(len, copied))
            total = (len(wanted) + len(last)) * math.ceil(len(facts) / self.config.chunk)
            meter = Ticker(progress, total, total - n_missing)
            if mirror:
                mirror.finish()  # what makes it a run, and what earlier starts could not copy
            with meter.told(config=cell_key(run.config), facts=len(facts), versions=provenance, folder=str(run.path)):
                worker = Worker(bench, facts)
                computed = chain(
                    self._compute(streams, worker, workers or self.config.workers),
                    _copy(copied, run, worker),
                )
                for unit, outcome in computed:
                    chunk_name = worker.name(unit.facts)
                    shard = run.write(unit.place.kind, f"{unit.place.name}-{chunk_name}", outcome.rows)
                    if mirror:
                        mirror.copy(shard.path)
                    meter.unit(unit.place.words, chunk_name, outcome)
                    yield outcome.rows
            if mirror:
                mirror.finish()

    def _compute(self, streams: list[list[Unit]], here: Worker, workers: int | None) -> Iterator[tuple[Unit, Outcome]]:
        """Every unit with its rows, in this process or in others."""
        config = self.config
        if config.engine == "local":
            workers = workers or 1
        engine = Engine(config.engine, workers, config.address, config.gpus)
        if engine == Engine():
            return spread_out(streams, lambda: here, engine)
        if any(unit.place.needs_stats for stream in streams for unit in stream):
            _ = self.stats  # computed here once; the workers find them in the cache
        return spread_out(streams, partial(_open_worker, self, here.bench.contexts), engine)

    def default_workers(self) -> int | None:
        """One worker per core for a small model on the CPU, as small products do not fill several threads; else 1.

        Of a Ray cluster nobody knows before it is there: `None`.
        """
        if self.config.engine == "ray":
            return self.config.workers
        small = sum(p.numel() for p in self.model.parameters()) <= SMALL and self.model.W_E.device.type == "cpu"
        return self.config.workers or (cores() if small else 1)

    def frame(self) -> pd.DataFrame:
        """The edit rows of the run's folder, each with its tracing effect."""
        return load_run(self.config.out).frame()

    def places(self, bench: Workbench) -> list[Place]:
        """What is computed for every fact."""
        return places(bench, self.localizations, self.config.problems, self.cells, controls=self.controls)

    def last_places(self, bench: Workbench) -> list[Place]:
        """What is made for every fact of its finished rows."""
        return last_places(bench, self.cells) if self.controls else []

    def bench(self, contexts: Path | Mapping[str, Sequence[str]] | None = None) -> Workbench:
        """What all units share.

        Args:
            contexts: the editors' context texts, or a run's folder, of which those are taken that were saved there;
                sampled where there are none.
        """
        lowest = [min(window_layers(cell.layer, cell.window, self.model.cfg.n_layers)) for cell in self.cells]
        if not isinstance(contexts, Mapping):
            seed = self.config.seed
            contexts = saved_contexts(contexts, seed) or {
                "rome": sample_contexts(self.model, "rome", seed=seed),
                "memit": sample_contexts(self.model, "memit", seed=seed),
            }
        shared = self.config, self.model, self.corruption, sorted(set(lowest)), contexts
        return Workbench(*shared, lambda: self.stats, self.references)

    def plan(self) -> Plan:
        """What the experiment means in traces and edits, time, disk and memory; computes a few rows to tell.

        What is in the run's folder already is not to be computed; the folder is only looked at.
        """
        folder, facts = Path(self.config.out).expanduser(), self.facts
        bench = self.bench(folder)
        done: dict[str, np.ndarray] = {}
        if (folder / "config.toml").is_file():
            run = load_run(folder)
            done = on_disk([*run.shards("traces"), *run.shards("edits")], facts)
        return make_plan(
            bench,
            facts,
            self.cells,
            localizations=self.localizations,
            controls=self.controls,
            processes=self.default_workers() or 1,
            done=lambda cell: int(done[cell].sum()) if cell in done else 0,
        )


def _open_worker(experiment: Experiment, contexts: Mapping[str, Sequence[str]]) -> Worker:
    """In another process: the same experiment, and what computes one of its units."""
    return Worker(experiment.bench(contexts), experiment.facts, away=True)


def _copy(streams: list[list[Unit]], run: Run, worker: Worker) -> Iterator[tuple[Unit, Outcome]]:
    """The units of `last_places`, a place at a time: its finished rows are read once."""
    units = [unit for stream in streams for unit in stream]
    for place in dict.fromkeys(unit.place for unit in units):
        assert isinstance(place.what, tuple)
        names = [worker.bench.edit_cell(cell) for cell in place.what]
        finished = run.read("edits", lists=True, cells=names)
        for unit in units:
            if unit.place is place:
                start = time.perf_counter()
                rows = random_layer_rows(worker.chunk(unit.facts), place.what, finished)
                yield unit, Outcome(rows, time.perf_counter() - start)
