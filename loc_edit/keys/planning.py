"""Estimates what key statistics will cost from the start of the corpus and a few measured batches."""

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from loc_edit.files import cache_folder
from loc_edit.keys.corpora import Corpus, open_corpus
from loc_edit.keys.moments import BadKeyStats, free_memory
from loc_edit.keys.streaming import BATCH, start_pass, strict_products
from loc_edit.keys.tokens import TokenRows, bunches, write_tokens
from loc_edit.models.checks import check_layers
from loc_edit.models.model import Model

PATIENCE = 2.0
"""Seconds for which each batch size is measured, or the time of one batch if that is longer."""
LOOK = 300_000
"""Characters of the corpus that are read."""


@dataclass(frozen=True)
class StatsPlan:
    """What a pass takes; sizes in bytes, times in seconds.

    Attributes:
        d_mlp: the size of a second moment.
        layers: the number of layers.
        tokens: the tokens that the pass will use: the limit, or all tokens of a smaller corpus.
        tokens_there: about how many tokens the corpus has; `None` if only reading all of it would tell.
        result: the size of the file of statistics.
        disk: the most that the cache needs while the pass runs: two checkpoints and the token ids.
        disk_free: the free space on the cache's disk.
        memory: the model, the sums, and what a batch and the solving at a share of the sample take.
        memory_free: the free memory now, with the model loaded.
        solving: the memory for solving at one layer: its moment and its factor.
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
        """The number of tokens below which C cannot have full rank."""
        return self.d_mlp

    @property
    def seconds(self) -> float:
        """The time for reading and for the pass."""
        return self.tokens / self.speed + self.tokens / self.reading

    @property
    def error(self) -> float:
        """The expected error of C^-1 k as a share of its length: sqrt(d_mlp / tokens), as for Gaussian keys."""
        return float((self.d_mlp / self.tokens) ** 0.5)

    def tokens_for(self, error: float) -> int:
        """Returns the number of tokens after which `error` is expected."""
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
    """Estimates what `key_stats` with the same arguments will take; measures a few seconds of it and keeps nothing.

    Raises:
        BadCorpus: the corpus cannot be read.
        BadKeyStats: the corpus is empty.
    """
    check_layers(model, list(layers))
    size, n = int(model.cfg.d_mlp or 0), len(set(layers))
    corpus_tokens, reading, speed = _measure(model, layers, open_corpus(corpus), dtype)
    tokens = tokens if corpus_tokens is None else min(tokens, corpus_tokens)
    moment = size * size
    place = cache_folder("key_stats", cache)
    while not place.exists():
        place = place.parent
    return StatsPlan(
        d_mlp=size,
        layers=n,
        tokens=tokens,
        tokens_there=corpus_tokens,
        result=n * moment * dtype.itemsize,
        disk=n * moment * 16 + 4 * tokens,
        disk_free=shutil.disk_usage(place).free,
        memory=sum(p.nbytes for p in model.parameters()) + (8 * n + 16 + dtype.itemsize) * moment,
        memory_free=free_memory(model.W_E.device),
        solving=moment * (dtype.itemsize + 16),
        speed=speed,
        reading=reading,
    )


def _measure(
    model: Model, layers: Sequence[int], source: Corpus, dtype: torch.dtype
) -> tuple[int | None, float, float]:
    """Reads the start of a corpus: about how many tokens it has, the speed of reading, and the speed of the pass."""
    texts = next(bunches(source.documents(), LOOK, most=LOOK), [])
    characters = sum(map(len, texts))
    with tempfile.TemporaryDirectory(prefix="loc_edit_") as folder:
        start = time.perf_counter()
        rows = write_tokens(model, texts, characters + len(texts), Path(folder))
        reading = rows.n_tokens / (time.perf_counter() - start)
        if not rows.n_tokens:
            raise BadKeyStats(f"corpus {source.name!r} has no tokens")
        speed = _speed(model, layers, rows, dtype)
    corpus_tokens: int | None = rows.n_tokens
    if characters >= LOOK and (corpus_tokens := source.size()):
        corpus_tokens = int(corpus_tokens / sum(len(text.encode()) for text in texts) * rows.n_tokens)
    return corpus_tokens, reading, speed


def _speed(model: Model, layers: Sequence[int], rows: TokenRows, dtype: torch.dtype) -> float:
    """Returns tokens a second; tries small batches first, as a full-size batch may take minutes on a large model."""
    best, batch = 0.0, 128
    while True:
        work = start_pass(model, layers, dtype, batch)
        work.samples.marks = ()
        start = time.perf_counter()
        seconds = 0.0
        with strict_products():
            for _ in work.batches(model, rows):
                seconds = time.perf_counter() - start
                if seconds > PATIENCE:
                    break
        best = max(best, work.seen / seconds)
        if batch >= BATCH or seconds > 2 * PATIENCE:
            return best
        batch *= 4
