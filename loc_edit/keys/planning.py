"""What key statistics would cost, told by a look at the corpus and a few batches."""

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from loc_edit.files import cache_folder
from loc_edit.keys.corpora import open_corpus
from loc_edit.keys.moments import BadKeyStats, free_memory
from loc_edit.keys.streaming import BATCH, start_pass
from loc_edit.keys.tokens import TokenRows, write_tokens
from loc_edit.models.checks import check_layers
from loc_edit.models.model import Model

PATIENCE = 2.0
"""Seconds that each size of batch is measured, or one batch if it takes longer."""
LOOK = 300_000
"""Characters that are read."""


@dataclass(frozen=True)
class StatsPlan:
    """What a pass means; sizes in bytes, time in seconds.

    Attributes:
        d_mlp: size of a second moment.
        layers: how many.
        tokens: that a pass would use: the limit, or about what the corpus has.
        tokens_there: about how many the corpus has; `None` if that is not known without reading it.
        result: the file of statistics.
        disk: at most needed in the cache while the pass runs: two checkpoints and the token ids.
        disk_free: what the cache's disk has.
        memory: model, sums, and what a batch and a look at the convergence take.
        memory_free: what there is now, the model being loaded.
        solving: memory for one layer while solving: its moment and its factor.
        speed: tokens a second of the pass, measured.
        reading: tokens a second of reading and tokenizing, measured.
    """

    d_mlp: int
    layers: int
    tokens: int
    tokens_there: int | None
    result: int
    disk: int
    disk_free: int
    memory: int
    memory_free: int
    solving: int
    speed: float
    reading: float

    @property
    def full_rank(self) -> int:
        """Tokens below which C cannot have full rank."""
        return self.d_mlp

    @property
    def seconds(self) -> float:
        """Time of reading and of the pass."""
        return self.tokens / self.speed + self.tokens / self.reading

    @property
    def error(self) -> float:
        """Error of C^-1 k to expect, as a share of it: sqrt(d_mlp / tokens), that of independent Gaussian keys."""
        return float((self.d_mlp / self.tokens) ** 0.5)

    def tokens_for(self, error: float) -> int:
        """Tokens after which `error` is expected; see there."""
        return round(self.d_mlp / error**2)


def plan_stats(
    model: Model,
    layers: Sequence[int],
    corpus: str | Path = "builtin",
    *,
    tokens: int = 200_000,
    dtype: torch.dtype = torch.float32,
    cache: str | Path | None = None,
) -> StatsPlan:
    """What `key_stats` with the same arguments would take; measures a few seconds of it and keeps nothing.

    Raises:
        BadCorpus, BadKeyStats: the corpus cannot be read, or is empty.
    """
    check_layers(model, list(layers))
    source, size, n = open_corpus(corpus), int(model.cfg.d_mlp or 0), len(set(layers))
    with tempfile.TemporaryDirectory(prefix="loc_edit_") as folder:
        texts, whole = _first(source.documents())
        start = time.perf_counter()
        rows = write_tokens(model, texts, len("".join(texts)) + len(texts), Path(folder))
        reading = rows.n_tokens / (time.perf_counter() - start)
        if not rows.n_tokens:
            raise BadKeyStats(f"corpus {source.name!r} holds no tokens")
        speed = _speed(model, layers, rows, dtype)
    there: int | None = rows.n_tokens
    if not whole:
        bytes_there = source.size()
        there = bytes_there and int(bytes_there / sum(len(text.encode()) for text in texts) * rows.n_tokens)
    wanted = tokens if there is None else min(tokens, there)
    moment = size * size
    place = cache_folder("key_stats", cache)
    while not place.exists():
        place = place.parent
    return StatsPlan(
        d_mlp=size,
        layers=n,
        tokens=wanted,
        tokens_there=there,
        result=n * moment * dtype.itemsize,
        disk=n * moment * 16 + 4 * wanted,
        disk_free=shutil.disk_usage(place).free,
        memory=sum(p.nbytes for p in model.parameters()) + (8 * n + 16 + dtype.itemsize) * moment,
        memory_free=free_memory(model.W_E.device),
        solving=moment * (dtype.itemsize + 16),
        speed=speed,
        reading=reading,
    )


def _first(documents: Iterator[str]) -> tuple[list[str], bool]:
    """The first documents, and whether there are no others."""
    texts: list[str] = []
    length = 0
    for text in documents:
        texts.append(text)
        length += len(text)
        if length > LOOK:
            return texts, False
    return texts, True


def _speed(model: Model, layers: Sequence[int], rows: TokenRows, dtype: torch.dtype) -> float:
    """Tokens a second; small batches are tried first, as one of full size may take minutes on a large model."""
    best, batch = 0.0, 128
    while True:
        work, clock = start_pass(model, layers, dtype, batch), [time.perf_counter()]
        work.probes.marks = ()

        def told(seen: int, total: int, clock: list[float] = clock) -> None:
            clock.append(time.perf_counter())
            if clock[-1] - clock[0] > PATIENCE:
                raise _Enough

        with suppress(_Enough):
            work.run(model, rows, told)
        best = max(best, work.seen / (clock[-1] - clock[0]))
        if batch >= BATCH or clock[-1] - clock[0] > 2 * PATIENCE:
            return best
        batch *= 4


class _Enough(Exception):
    """Enough has been measured."""
