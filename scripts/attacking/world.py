"""What is attacked: a small finished run of the built-in model, its cache, an edit and a report; and what is right."""

import logging
import os
import resource
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from transformers.utils.logging import disable_progress_bar

import loc_edit
from loc_edit.experiment.experiment import Experiment
from loc_edit.experiment.setup import Setup
from loc_edit.files import short_hash
from loc_edit.models.loading import load_model
from loc_edit.store.rows import KEYS, KINDS

PATIENCE = 120
"""Seconds after which an attempt counts as hung."""
MEMORY = 12 * 2**30
"""Bytes of address space that a child may take more than its parent has."""


@dataclass(frozen=True)
class Attempt:
    """One attack and what came of it.

    Attributes:
        number: with the seed, it says all about the attack.
        kind: kill, damage or feed.
        what: was done.
        outcome: `right`: the numbers are those of the undisturbed run.  `named`: refused, in words that say what is
            wrong and where.  `accepted`: input that may be good.  The others must not be: `illegal`: input that is
            good nowhere was accepted.  `traceback`: an error that does not name what was wrong.  `silent`: other
            numbers without a word.  `lost`, `doubled`: rows.  `hung`.
        text: the error, or what differs.
    """

    number: int
    kind: str
    what: str
    outcome: str
    text: str = ""

    @property
    def is_bad(self) -> bool:
        return self.outcome not in ("right", "named", "accepted")


class World:
    """The files that are attacked, in `whole`, and the rows that are right.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        logging.disable(logging.WARNING)
        disable_progress_bar()
        self.folder, self.whole = folder, folder / "whole"
        self.whole.mkdir()
        self.facts = loc_edit.load_facts()[:60:20]
        loc_edit.save_facts(self.facts, folder / "facts.jsonl")
        self.model = load_model("builtin", device="cpu")
        Setup.model = self.model  # each run would load it again
        self.rows = self.rows_of(self.experiment(self.whole).run())
        contexts = ["{}", "It was raining. {}"]
        request = loc_edit.pose(self.facts[0], "error_injection", self.model)
        self.given = {"stats": loc_edit.KeyStats.identity(self.model), "contexts": contexts}
        self.edit = loc_edit.rome(self.model, request, 2, settings=loc_edit.RomeSettings(steps=2), **self.given)
        self.request = request
        self.edit.save(self.whole / "edit.safetensors")

    def experiment(self, folder: Path) -> Experiment:
        """The experiment whose rows are known, in `folder/run` with the cache `folder/cache`."""
        os.environ["LOC_EDIT_CACHE"] = str(folder / "cache")
        config = {
            "data": str(self.folder / "facts.jsonl"), "min_probability": 1e-9, "facts": 3, "layers": (1, 5),
            "methods": ("rome", "finetune-1"), "windows": (1,), "noise_samples": 2, "chunk": 1, "essence": False,
            "corpus_tokens": 2000, "ridge": 0.1, "settings": {name: {"steps": 2} for name in ("rome", "finetune")},
            "workers": 1, "out": str(folder / "run"),
        }  # fmt: skip
        return Experiment(loc_edit.ExperimentConfig(**config))

    @staticmethod
    def rows_of(run: loc_edit.Run) -> dict[str, str]:
        """A digest of each row by its key; the time that it took does not count."""
        found: dict[str, str] = {}
        for kind in KINDS:
            frame: pd.DataFrame = run.read(kind, lists=True)
            names = sorted(set(frame.columns) - {"seconds", *KEYS[kind]})
            for row in frame.to_dict("records"):
                key = "/".join([kind, *(str(row[name]) for name in KEYS[kind])])
                if key in found:
                    raise AssertionError(f"doubled: {key}")
                values = {name: row[name] for name in names}
                # a column that no row has yet is no difference
                given = {
                    n: value for n, value in values.items() if np.ndim(value) or not (pd.isna(value) or value == "")
                }
                found[key] = short_hash(repr(given))
        return found


def in_child(work: Callable[[], Any], at_start: Callable[[int], None] | None = None) -> Any:
    """Does some work in a forked process; returns what the work returned or how it failed, `None` if it was killed.

    Args:
        work: returns plain values.
        at_start: is called with the id of the process, which it may kill.
    """
    reader, writer = get_context("fork").Pipe(duplex=False)
    process = get_context("fork").Process(target=_answer, args=(work, writer))
    process.start()
    writer.close()
    if at_start:
        at_start(process.pid)
    try:
        answer = reader.recv()
    except EOFError:
        answer = None
    process.join()
    return answer


def _answer(work: Callable[[], Any], writer: Connection) -> None:
    """Does some work in this process, silently and with limits of time and memory, and sends the answer."""
    try:
        signal.alarm(PATIENCE)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
        null = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(null, stream)
        answer = work()
    except BaseException as error:
        answer = described(error)
    writer.send(answer)


def described(error: BaseException) -> dict[str, str]:
    """The kind and words of an error, and where it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "loc_edit" in frame.filename] or frames[-1:]
    where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
    clean = isinstance(error, ValueError | OSError | RuntimeError) and not isinstance(error, RecursionError)
    return {"kind": type(error).__name__, "text": str(error)[:500], "where": where, "clean": "yes" if clean else ""}


def judged(error: dict[str, str], *names: str) -> tuple[str, str]:
    """The outcome of an error: `named` if its words have one of the names, else `traceback`."""
    named = error["clean"] and any(name in error["text"] for name in names)
    return ("named" if named else "traceback"), f"{error['kind']} at {error['where']}: {error['text']}"
