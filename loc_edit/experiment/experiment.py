"""An experiment: the study of a configuration, computed where it is missing and written to a run folder.

What is on disk is not computed again: a run that was stopped goes on, and one with more facts, layers, methods,
problems, windows or localizers computes just those.  What is computed stands in `study`, the page to read first.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from loc_edit.analysis.run import Run, load_run
from loc_edit.experiment.cell import Cell
from loc_edit.experiment.config import ExperimentConfig
from loc_edit.experiment.engine.engine import Engine, compute_tasks, cores
from loc_edit.experiment.estimate import Plan, make_plan
from loc_edit.experiment.failures import FailureBound
from loc_edit.experiment.planting import planted_layers
from loc_edit.experiment.plugins import Plugin, check_defined, described, origins, to_send
from loc_edit.experiment.random_layer import RandomLayerCell, random_layer_cells
from loc_edit.experiment.run_log import Tally, run_log
from loc_edit.experiment.schedule import Task, facts_on_disk, missing_sequences, missing_tasks, select
from loc_edit.experiment.sequence import SequenceCell, sequence_cells, sequence_of
from loc_edit.experiment.setup import Setup
from loc_edit.experiment.stats_record import refuse_other_key_stats, save_key_stats
from loc_edit.experiment.study import EditCell, cells
from loc_edit.experiment.texts import (
    save_contexts,
    saved_contexts,
    set_damaged_contexts_aside,
)
from loc_edit.experiment.worker import Computed, Worker
from loc_edit.facts.fact import BadFact, Fact
from loc_edit.facts.sampling import sample_by_relation
from loc_edit.keys.corpora import IDENTITY, check_corpus, corpus_content
from loc_edit.keys.moments import free_memory
from loc_edit.localization.hooks import check_site
from loc_edit.models.identity import fingerprint, versions
from loc_edit.models.model import Model
from loc_edit.prompts.encoding import encode_all
from loc_edit.prompts.recall import known_facts
from loc_edit.store.layout import CONFIG, KEY_STATS
from loc_edit.store.mirror import Mirror
from loc_edit.store.run import RunFolder
from loc_edit.store.settings import cell_key

COPIES = 4
"""A process takes about this many times its model's size: weights, key statistics, and what a batch keeps."""
WITHOUT_MODEL = 2**29
"""Bytes that a process takes besides."""

WHERE = ("workers", "engine", "address", "gpus", "mirror")
"""Options that say where rows are computed and kept, not what they are."""


class Experiment:
    """An experiment, ready to run: its configuration, and the model and facts that it names.

    `Experiment.from_toml("full").run()`, or `Experiment(ExperimentConfig(facts=20)).run()`.
    """

    def __init__(self, config: ExperimentConfig | None = None) -> None:
        self.config = config or ExperimentConfig()
        self.setup = Setup(self.config)

    @classmethod
    def from_toml(cls, path: str | Path) -> "Experiment":
        """The experiment of a TOML file or a named configuration (`default`, `smoke`, `full`)."""
        return cls(ExperimentConfig.from_toml(path))

    @property
    def model(self) -> Model:
        """The model, checked to be one that can be edited."""
        return self.setup.model

    @cached_property
    def facts(self) -> list[Fact]:
        """The chosen facts in the order of computing; each fits the model's context together with each of its objects.

        Raises:
            BadFact: the model knows none of the facts, all of them are skipped, or two facts share an id.
            BadPrompt, SubjectNotFound: a fact cannot be encoded; it is named.
        """
        pool, config = self.setup.data, self.config
        if config.known or config.min_probability > 0:
            pool = known_facts(self.model, pool, known=config.known, min_probability=config.min_probability)
            if not pool:
                raise BadFact(f"{config.data}: the model knows none of the {len(self.setup.data)} facts")
        facts = sample_by_relation(pool)[config.skip_facts :][: config.facts]
        if config.skip_facts and not facts:
            raise BadFact(f"{config.data}: skip_facts {config.skip_facts} leaves none of {len(pool)} facts")
        counts = Counter(fact.fact_id for fact in facts)
        if repeated := sorted(fact_id for fact_id, n in counts.items() if n > 1):
            raise BadFact(f"{config.data}: several facts have the ids {repeated}; expected one fact per id")
        for encoded in encode_all(self.model, facts):
            if isinstance(encoded, Exception):
                raise encoded
        return facts

    @property
    def cells(self) -> list[Cell]:
        """What is computed for every fact, in order."""
        return cells(self.setup)

    @property
    def sequence_cells(self) -> list[SequenceCell]:
        """What is computed for all facts of a sequence together."""
        return sequence_cells(self.setup, self.facts)

    @property
    def copied_cells(self) -> list[RandomLayerCell]:
        """What is copied from finished rows for every fact: the random-layer controls."""
        return random_layer_cells(self.cells)

    def resolved(self) -> dict[str, Any]:
        """The whole configuration with nothing left to a default: what a run's folder records."""
        setup, config = self.setup, self.config
        values = config.model_dump(mode="json", exclude={"out", "preset", "settings", *WHERE})
        if config.edit:
            values |= {"edit": Path(config.edit).name, "planted": planted_layers(config.edit)}
        values |= {"plugins": described(config.used) or None, "scores": config.scores or None}
        values |= {"sequence": config.sequence or None}
        if config.corpus not in ("builtin", IDENTITY):  # a file's name does not say what is in it
            values["corpus_content"] = corpus_content(config.corpus)
        settings: dict[str, dict[str, Any]] = {}
        for cell in self.cells:
            if isinstance(cell, EditCell):
                settings.setdefault(f"{cell.method}-{cell.window}", {})[cell.problem] = asdict(cell.settings)
        sigma = setup.corruption.sigma
        noise = {"corruption": dict(setup.corruption.identity)} if sigma is None else {"sigma": sigma}
        return {**values, "layers": setup.layers, **noise, "settings": settings}

    def run(self, out: str | Path | None = None, workers: int | None = None, *, retry_failed: bool = False) -> Run:
        """Compute what is missing in the run's folder, and return the run for reading.

        Args:
            out: the folder; the configuration's by default.
            workers: processes (or Ray actors) that compute side by side, each with its own copy of the model; the
                configuration's by default, or 1, which is this process (Ray: as many as the cluster has room for).
                A script that asks for more needs the usual `if __name__ == "__main__":`.
            retry_failed: compute failed edits and traces of the folder again.

        Raises:
            RunMismatch: the folder holds a run of another model, of other facts or of other key statistics.
            BadModel, BadFact, ValueError: the model, a fact or a layer cannot be used.
            StoreError: the disk refused; rows written before are kept, and running again goes on.
            WorkerDied: a task has ended several workers.
            ManyFailed: the same work failed for more than a fifth of the facts.
        """
        for _ in self.rows(out, workers, retry_failed=retry_failed):
            pass
        return load_run(out or self.config.out)

    def rows(
        self, out: str | Path | None = None, workers: int | None = None, *, retry_failed: bool = False
    ) -> Iterator[pd.DataFrame]:
        """Like `run`, but yields the rows of each shard when they are on disk."""
        facts, folder = self.facts, Path(out or self.config.out).expanduser()
        self._refuse_what_cannot_run()  # before a folder is made
        mirror = Mirror(self.config.mirror, folder) if self.config.mirror else None
        if mirror:
            mirror.fetch()
        set_damaged_contexts_aside(folder)
        setup = self.setup_for(folder)
        computed_cells = {cell.name(setup): cell for cell in self.cells}
        sequences = {cell.name(setup): cell for cell in sequence_cells(setup, facts)}
        copied_cells = {cell.name(setup): cell for cell in self.copied_cells}
        provenance = {**versions(), "model_fingerprint": fingerprint(self.model), "seed": self.config.seed}
        selection = select([*self.cells, *sequences.values(), *self.copied_cells], setup, facts)
        chunk = self.config.chunk

        def missing(run: RunFolder) -> list[list[Task]]:
            streams = missing_tasks(computed_cells, len(facts), chunk, facts_on_disk(run, facts))
            return streams + missing_sequences(sequences, sequence_of(setup, facts), run)

        def check(run: RunFolder) -> None:
            if (run.path / KEY_STATS).is_file() and need_stats(missing(run)):
                refuse_other_key_stats(run.path, setup)

        with (
            RunFolder.create(folder, self.resolved(), provenance, selection, check) as run,
            run_log(run.path),
        ):
            if retry_failed:
                run.forget_failed()
            save_contexts(run.path, self.config.seed, setup.contexts)
            streams = missing(run)
            copies = missing_tasks(copied_cells, len(facts), chunk, facts_on_disk(run, facts))
            total = len(computed_cells | copied_cells) * -(-len(facts) // chunk) + len(sequences)
            tally = Tally(total, total - sum(map(len, [*streams, *copies])))
            if mirror:
                mirror.finish()  # what makes it a run, and what earlier starts could not copy
            with tally.counting(
                config=cell_key(run.config), facts=len(facts), versions=provenance, folder=str(run.path)
            ):
                if need_stats(streams):
                    save_key_stats(folder, setup)  # workers find the statistics in the cache
                worker, bound = Worker(setup, facts), FailureBound()
                for task, computed in chain(self._compute(streams, worker, workers), copy_rows(copies, run, worker)):
                    bound.check(task.cell, len(task.facts), computed.failures)
                    shard = run.write(task.cell.kind, worker.shard_name(task), computed.rows)
                    if mirror:
                        mirror.copy(shard.path)
                    tally.count(str(task), shard.key, computed)
                    yield computed.rows
            if mirror:
                mirror.finish()

    def _refuse_what_cannot_run(self) -> None:
        check_site(self.model, self.config.site)
        _ = self.setup.references
        check_corpus(self.config.corpus)

    def setup_for(self, folder: str | Path) -> Setup:
        """The setup, with the context texts that were saved in a run's folder, if there are any."""
        return self.setup.with_contexts(saved_contexts(Path(folder).expanduser(), self.config.seed))

    def _compute(self, streams: list[list[Task]], here: Worker, workers: int | None) -> Iterator[tuple[Task, Computed]]:
        """Every task with its rows, computed in this process or in others."""
        config = self.config
        workers = workers or config.workers or (1 if config.engine == "local" else None)
        engine = Engine(config.engine, workers, config.address, config.gpus)
        if engine == Engine():
            return compute_tasks(streams, lambda: here, engine)
        return compute_tasks(streams, partial(_open_worker, to_send(config.used), here.setup, self.facts), engine)

    def default_workers(self) -> int | None:
        """On the CPU one worker for each core, or as many as fit into half of the free memory; on a GPU 1.

        Two processes with one thread each do more work than one process with two threads.  One, where a plug-in is
        defined in this program or notebook.  How many a Ray cluster has
        room for is not known before it is there: `None`.
        """
        if self.config.engine == "ray":
            return self.config.workers
        if self.config.workers or self.model.W_E.device.type != "cpu":
            return self.config.workers or 1
        if not all(origin.can_be_sent for origin in origins(self.config.used).values()):
            return 1
        process = WITHOUT_MODEL + COPIES * sum(p.nbytes for p in self.model.parameters())
        return max(1, min(cores(), free_memory("cpu") // (2 * process)))

    def frame(self) -> pd.DataFrame:
        """The edit rows of the run's folder, each with its tracing effect."""
        return load_run(self.config.out).frame()

    def plan(self) -> Plan:
        """What the experiment means in traces and edits, time, disk and memory; computes a few rows to tell.

        What is in the run's folder already is not to be computed; the folder is only looked at.
        """
        folder, facts = Path(self.config.out).expanduser(), self.facts
        n_on_disk: dict[str, int] = {}
        if (folder / CONFIG).is_file():
            run = RunFolder.open(folder)
            n_on_disk = {name: int(on_disk.sum()) for name, on_disk in facts_on_disk(run, facts).items()}
            n_on_disk |= {shard.cell: self.config.sequence for shard in run.shards("sequences")}
        setup, processes = self.setup_for(folder), self.default_workers() or 1
        return make_plan(
            setup, facts, [*self.cells, *self.sequence_cells], self.copied_cells, n_on_disk, processes=processes
        )


def need_stats(streams: list[list[Task]]) -> bool:
    """Whether key statistics are needed for one of the tasks."""
    return any(task.cell.needs_stats for stream in streams for task in stream)


def _open_worker(plugins: Sequence[Plugin], setup: Setup, facts: Sequence[Fact]) -> Worker:
    """In another process: what computes the tasks of these facts there."""
    for plugin in plugins:
        plugin.load()
    check_defined(setup.config.used)
    return Worker(setup, facts, elsewhere=True)


def copy_rows(streams: list[list[Task]], run: RunFolder, worker: Worker) -> Iterator[tuple[Task, Computed]]:
    """The tasks of copied cells, a cell at a time, so that its finished rows are read once."""
    tasks = [task for stream in streams for task in stream]
    for cell in dict.fromkeys(task.cell for task in tasks):
        assert isinstance(cell, RandomLayerCell)
        finished = run.read("edits", lists=True, cells=[source.name(worker.setup) for source in cell.among])
        for task in tasks:
            if task.cell == cell:
                start = time.perf_counter()
                rows = cell.copied_rows(worker.batch(task.facts), finished)
                yield task, Computed(rows, time.perf_counter() - start)
